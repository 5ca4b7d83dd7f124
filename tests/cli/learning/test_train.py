"""``prompt-serve train`` and ``inspect`` as a user runs them."""

import html
import json
import re
from dataclasses import replace
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from prompt_serve.cli.learning.evaluate import evaluate
from prompt_serve.cli.learning.inspect import inspect
from prompt_serve.cli.learning.methods import methods
from prompt_serve.cli.learning.train import train
from prompt_serve.errors import ConfigInvalid, DatasetInvalid, PromptFileInvalid
from prompt_serve.prompts.prompt_file import read_prompt_file, to_bytes
from prompt_serve.prompts.quantized_tensor import dequantize
from prompt_serve.training.config import (
    RELATIVE_RATE,
    TrainConfig,
    make_config,
    with_user_settings,
)
from prompt_serve.training.methods import METHODS
from prompt_serve.training.settings import settings_of
from tests.drawings import draw_dataset
from tests.golden import path_of
from tests.no_torch import run_without_torch

pytestmark = pytest.mark.usefixtures("few_steps")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_dataset(tmp_path_factory.mktemp("photos"), train=4, test=2)


def invoke(photos: Path, backbone: Path, out: Path, *options: str) -> Result:
    """Train with few images and epochs; with DIP unless the options name a method."""
    arguments = [photos, "--backbone", backbone, "--out", out, "--cache", out.parent / "cache"]
    method = [] if {"--method", "--config"} & set(options) else ["--method", "dip"]
    few = ["--shots", "3", "--epochs", "3", "--views", "2"]
    return CliRunner().invoke(
        train,
        [*map(str, arguments), *method, *few, *options],
        catch_exceptions=False,
    )


def test_it_prints_a_report_and_writes_file_and_log(
    photos: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    out, log = tmp_path / "out" / "c.safetensors", tmp_path / "logs" / "c.jsonl"
    given = ["--class-name", "red=crimson red", "--log", str(log), "--no-sketch"]
    result = invoke(photos, tiny_folder, out, *given)
    assert result.exit_code == 0
    prompt = read_prompt_file(out)
    assert prompt.name == "c"
    assert prompt.class_names == ("blue", "green", "crimson red", "yellow")
    assert prompt.created == ""
    for expected in (
        r"4 classes; images: 12 train, 4 val, 8 test",
        r"val +\d+\.\d% +\d+\.\d%",
        r"test +\d+\.\d% +\d+\.\d%",
        r"crimson red +\d+\.\d% +\d+\.\d%",
        r"learned +36 numbers \(learning rate 0.01\)",
        r"payload +72 bytes",
        r"most confused \(test, images\): \w+.* as \w+.* \(\d\)",
        rf"file +{out.stat().st_size:,} bytes, {out}",
    ):
        assert re.search(expected, result.stdout), expected
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["epoch"] for line in lines[:-1]] == [0, 1, 2]
    assert set(lines[0]) >= {"loss", "learning_rate", "val_accuracy", "idk", "seconds"}
    assert lines[-1]["metrics"] == prompt.metrics


def test_two_runs_write_equal_bytes_and_a_stamp_does_not(
    photos: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    first, second = tmp_path / "a" / "x.safetensors", tmp_path / "b" / "x.safetensors"
    invoke(photos, tiny_folder, first, "--quiet")
    assert invoke(photos, tiny_folder, second, "--quiet").stdout == ""
    assert first.read_bytes() == second.read_bytes()
    invoke(photos, tiny_folder, second, "--stamp")
    assert re.match(r"20\d\d-\d\d-\d\dT.*\+00:00$", read_prompt_file(second).created)


def test_options_win_over_the_settings_file(
    photos: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    settings = tmp_path / "c.toml"
    settings.write_text('method = "coop"\nseed = 7\nepochs = 9\nlearning_rate = 0.5\n')
    out = tmp_path / "x.safetensors"
    invoke(photos, tiny_folder, out, "--config", str(settings), "--learning-rate", "0.25")
    training = read_prompt_file(out).training
    assert training["method"] == "coop"
    assert training["seed"] == 7
    assert training["learning_rate"] == 0.25
    assert training["epochs"] == 3  # given as an option


def test_several_templates_make_a_zero_shot_ensemble(
    photos: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "x.safetensors"
    templates = ["--template", "a {}.", "--template", "the {}."]
    result = invoke(photos, tiny_folder, out, "--method", "zero-shot", *templates)
    assert read_prompt_file(out).templates == ("a {}.", "the {}.")
    assert "learned " not in result.stdout


def test_faults_are_raised_for_the_command_line_to_show(
    photos: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "x.safetensors"
    with pytest.raises(ConfigInvalid, match="rank is 0"):
        invoke(photos, tiny_folder, out, "--rank", "0")
    with pytest.raises(DatasetInvalid, match="fewer than 5 shots"):
        invoke(photos, tiny_folder, out, "--shots", "5")
    assert "is not OLD=NEW" in invoke(photos, tiny_folder, out, "--class-name", "red").stderr
    assert (
        "is not a number or 'auto'"
        in invoke(photos, tiny_folder, out, "--learning-rate", "x").stderr
    )
    assert "is a folder" in invoke(photos, tiny_folder, tmp_path).stderr
    assert not out.exists()


def help_of(*arguments: str) -> str:
    """The help, with every option in one line."""
    result = CliRunner().invoke(train, [*arguments, "--help"], catch_exceptions=False)
    assert result.exit_code == 0
    return re.sub(r"\n {3,}", " ", result.stdout)


def options_in(text: str) -> set[str]:
    """The long options of a help text that has each in one line."""
    lines = [line.split("  ")[1] for line in text.splitlines() if line.startswith("  -")]
    return {flag for line in lines for flag in re.findall(r"(?<![\w-])--[a-z-]+", line)}


def flag_of(setting: str) -> str:
    return f"--{setting.replace('_', '-')}"


@pytest.mark.parametrize("name", METHODS)
def test_the_help_of_a_method_lists_its_own_settings_and_no_others(name: str) -> None:
    method, text = METHODS[name], help_of("--method", name)
    shared, own = settings_of(TrainConfig), settings_of(method.settings)
    common = [option for option in train.params if isinstance(option, click.Option)]
    assert all(option.help for option in common)
    expected = {"--help", *(flag for o in common for flag in (*o.opts, *o.secondary_opts))}
    expected = {flag for flag in expected if flag.startswith("--")}
    for setting, described in {**shared, **own}.items():
        expected |= {flag_of(setting)}
        expected |= {flag_of(f"no_{setting}")} if False in described.choices else set()
    assert options_in(text) == expected
    groups = ["Data:", "Learning:", "Output:", "Backbone:", "Other options:"]
    if own:
        groups.insert(4, f"Settings of {name} ({method.paper}):")
    places = [text.index(f"\n{title}\n") for title in groups]
    assert places == sorted(places)


@pytest.mark.parametrize("name", METHODS)
def test_the_help_states_each_default(name: str) -> None:
    text, method = help_of("--method", name), METHODS[name]
    config = make_config(with_user_settings({"method": name}))
    defaults = {**config.shared(), **config.own(), "n_ctx": config.n_vectors}
    for setting in (*settings_of(TrainConfig), *settings_of(method.settings)):
        line = next(one for one in text.splitlines() if one.startswith(f"  {flag_of(setting)} "))
        found = re.search(r"\[default: ([^]]+)\]$", line)
        assert found, line
        value, shown = defaults[setting], found[1]
        if isinstance(value, bool):
            assert shown == ("yes" if value else "no")
        elif value is not None:
            assert shown == str(value)
        elif setting == "learning_rate" and method.learner:
            assert float(shown) == RELATIVE_RATE


def test_the_help_follows_the_settings_file(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text('method = "adapt"\n')
    assert "--tokens-per-block" in help_of("--config", str(path))
    assert "--rank" not in help_of("--config", str(path))
    assert "--rank" in help_of("--config", str(path), "--method=dip")
    assert "--rank" not in help_of()
    assert "--max-seconds" in help_of()  # of auto, the default
    assert "--max-bytes" in help_of("--method", "auto")
    assert "--max-bytes" not in help_of("--method", "dip")


def test_without_torch_the_help_lists_the_common_options(tmp_path: Path) -> None:
    def shown(*arguments: str) -> str:
        done = run_without_torch(tmp_path, "-m", "prompt_serve", "train", *arguments)
        return " ".join((done.stdout + done.stderr).split())

    text = shown("--method", "coop", "--help")
    assert "--shots" in text
    assert "--class-specific" not in text
    assert "settings of method coop are listed once torch is installed" in text
    needed = "Training dip needs torch: pip install 'prompt-serve[train]'"
    assert needed in shown("photos", "--method", "dip", "--out", "x")
    assert "--bits" in shown("--method", "class-vectors", "--help")


def test_options_of_other_methods_are_refused(
    photos: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    out, settings = tmp_path / "x.safetensors", tmp_path / "c.toml"

    def refused(*options: str) -> str:
        result = invoke(photos, tiny_folder, out, *options)
        assert result.exit_code == 2
        return result.stderr

    for flag, method, owners in (
        ("--rank=2", "coop", "dip, dip-maple"),
        ("--no-frozen-init", "coop", "dip, dip-maple"),
        ("--max-bytes=80", "dip", "auto"),
    ):
        name = flag.partition("=")[0]
        expected = f"{name} is not an option of method '{method}'; it belongs to: {owners}."
        assert expected in refused("--method", method, flag)
    assert "No such option" in refused("--magic", "80")
    with pytest.raises(ConfigInvalid, match="method is 'magic'; expected one of 'zero-shot'"):
        invoke(photos, tiny_folder, out, "--method", "magic")
    settings.write_text('method = "coop"\nrank = 2\n')
    with pytest.raises(ConfigInvalid, match="rank is not a setting of method 'coop'"):
        invoke(photos, tiny_folder, out, "--config", str(settings))
    assert not out.exists()


def test_the_methods_are_listed_with_what_they_are_set_by() -> None:
    def shown(*arguments: str) -> str:
        return CliRunner().invoke(methods, arguments, catch_exceptions=False).output

    listed = shown()
    for name, method in METHODS.items():
        assert re.search(rf"^{name} +{re.escape(method.summary)}$", listed, re.MULTILINE)
        own = shown(name)
        assert set(re.findall(r"^  --([a-z-]+)", own, re.MULTILINE)) == {
            setting.replace("_", "-") for setting in settings_of(method.settings)
        }
        assert f"Absolute learning rate: {method.learning_rate:g};" in own or not method.learner
    assert "is none of zero-shot, class-vectors, coop" in shown("magic")


def test_settings_of_methods_are_read_as_what_they_are(
    photos: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "x.safetensors"
    given = ["--method", "coop", "--depth", "2", "--noise-std", "0.01", "--no-calibrate"]
    assert invoke(photos, tiny_folder, out, *given, "--precision", "bf16").exit_code == 0
    training = read_prompt_file(out).training
    assert (training["depth"], training["noise_std"], training["precision"]) == (2, 0.01, "bf16")
    assert read_prompt_file(out).temperature == 1.0
    adapt = ["--method", "adapt", "--tokens", "x"]
    assert "is not a whole number or 'auto'" in invoke(photos, tiny_folder, out, *adapt).stderr


def test_an_interrupted_run_resumes_from_its_checkpoint(
    photos: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    whole, out = tmp_path / "a" / "x.safetensors", tmp_path / "b" / "x.safetensors"
    kept = tmp_path / "run.pt"
    invoke(photos, tiny_folder, whole)
    result = invoke(photos, tiny_folder, out, "--checkpoint", str(kept))
    assert kept.exists()
    log = tmp_path / "log.jsonl"
    again = invoke(photos, tiny_folder, out, "--checkpoint", str(kept), "--log", str(log))
    assert len(log.read_text().splitlines()) == 1  # no epoch was left to learn
    assert out.read_bytes() == whole.read_bytes()
    assert (result.exit_code, again.exit_code) == (0, 0)


def test_several_seeds_are_learned_and_reported_together(
    photos: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    one, out = tmp_path / "one.safetensors", tmp_path / "x.safetensors"
    invoke(photos, tiny_folder, one, "--seed", "2", "--name", "x")
    result = invoke(photos, tiny_folder, out, "--seeds", "1,2", "--name", "x")
    assert result.exit_code == 0
    assert not out.exists()
    both = [tmp_path / f"x-seed{seed}.safetensors" for seed in (1, 2)]
    assert [read_prompt_file(path).training["seed"] for path in both] == [1, 2]
    alone, stacked = read_prompt_file(one).tensors, read_prompt_file(both[1]).tensors
    for name, tensor in alone.items():
        # float32 sums in another order, rounded to float16.
        difference = dequantize(tensor).astype(float) - dequantize(stacked[name]).astype(float)  # type: ignore[arg-type]  # no bytes among them
        assert abs(difference).max() < 1e-3
    assert re.search(r"^mean +\d+\.\d ± \d+\.\d", result.stdout, re.MULTILINE)
    assert "names a seed twice" in invoke(photos, tiny_folder, out, "--seeds", "1,1").stderr


def test_auto_chooses_under_a_budget_and_writes_the_frontier(
    photos: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    out, table = tmp_path / "x.safetensors", tmp_path / "frontier.tsv"
    given = ["--method", "auto", "--max-bytes", "80", "--frontier", str(table)]
    result = invoke(photos, tiny_folder, out, *given)
    assert result.exit_code == 0
    prompt = read_prompt_file(out)
    assert prompt.payload_bytes <= 80
    lines = table.read_text().splitlines()
    assert len(lines) > 3
    assert re.search(r"^> ", result.stdout, re.MULTILINE)
    settings = tmp_path / "c.toml"
    settings.write_text('method = "auto"\n')
    refused = invoke(photos, tiny_folder, out, "--config", str(settings), "--seeds", "1,2")
    assert "--seeds works neither with --method auto" in refused.stderr
    single = invoke(photos, tiny_folder, out, "--method", "auto", "--rank", "2")
    assert "--rank is not an option of method 'auto'; it belongs to: dip" in single.stderr
    settings.write_text('method = "auto"\nrank = 2\n')
    with pytest.raises(ConfigInvalid, match="rank is a setting of single methods"):
        invoke(photos, tiny_folder, out, "--config", str(settings))


def test_a_prompt_gets_a_sketch_unless_it_is_turned_off(
    photos: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    out, plain = tmp_path / "a" / "x.safetensors", tmp_path / "b" / "x.safetensors"
    result = invoke(photos, tiny_folder, out)
    invoke(photos, tiny_folder, plain, "--no-sketch")
    learned, without = read_prompt_file(out), read_prompt_file(plain)
    assert learned.sketch is not None
    shown = re.search(r"^sketch +(\d+) of these bytes", result.stdout, re.MULTILINE)
    assert shown
    assert int(shown[1]) == learned.payload_bytes - without.payload_bytes
    assert without.sketch is None
    assert learned.learned_numbers == without.learned_numbers == 36
    kept = replace(learned, sketch=None, unlike_below=-1.0, metrics={})
    assert to_bytes(kept) == to_bytes(replace(without, metrics={}))


@pytest.mark.parametrize(
    ("method", "options", "has_sketch"),
    [("coop", (), True), ("qcoop", (), True), ("vpt", (), True), ("maple", (), True),
     ("dip", ("--seeds", "1,2"), True), ("dip", ("--seeds", "1,2", "--no-sketch"), False),
     ("class-vectors", (), True), ("class-vectors", ("--no-sketch",), False),
     ("auto", (), True), ("auto", ("--no-sketch",), False),
     ("auto", ("--candidates", "text", "--max-bytes", "200"), True),
     ("zero-shot", (), False), ("zero-shot", ("--sketch",), False)],
)  # fmt: skip
def test_whatever_is_learned_from_images_gets_a_sketch(
    photos: Path,
    tiny_folder: Path,
    tmp_path: Path,
    method: str,
    options: tuple[str, ...],
    has_sketch: bool,
) -> None:
    out = tmp_path / "x.safetensors"
    result = invoke(photos, tiny_folder, out, "--method", method, "--epochs", "1", *options)
    assert result.exit_code == 0, result.output
    prompt = read_prompt_file(next(tmp_path.glob("x*.safetensors")))
    assert (prompt.sketch is not None) == has_sketch
    assert (prompt.unlike_below > -1) == has_sketch


@pytest.mark.parametrize(
    ("options", "part"),
    [((), "test"), (("--method", "auto"), "test"), (("--method", "class-vectors"), "test"),
     (("--method", "zero-shot"), "test"), (("--method", "vpt"), "test")],
)  # fmt: skip
def test_the_page_of_a_training_is_that_of_its_test_images(
    photos: Path, tiny_folder: Path, tmp_path: Path, options: tuple[str, ...], part: str
) -> None:
    out, page = tmp_path / "x.safetensors", tmp_path / "pages" / "x.html"
    result = invoke(photos, tiny_folder, out, *options, "--report", str(page))
    assert result.exit_code == 0, result.output
    assert f"report       {page}" in result.stdout
    again = tmp_path / "again.html"
    evaluated = CliRunner().invoke(
        evaluate,
        [str(out), str(photos), "--backbone", str(tiny_folder), "--report", str(again)],
        catch_exceptions=False,
    )
    assert evaluated.exit_code == 0, evaluated.output
    # The same as of evaluate with the file, but for the notes and what was drawn.
    differing = re.compile(r'<ul class="notes">.*?</ul>|<section id="data".*</section>', re.DOTALL)
    text = page.read_text()
    assert differing.sub("", text) == differing.sub("", again.read_text())
    assert f"of part {part}" in text
    noted = re.findall(r"^Note: (.*)$", result.stdout, re.MULTILINE)
    assert noted
    assert all(html.escape(note) in text for note in noted)


@pytest.mark.parametrize(
    ("method", "part", "images", "left_out"),
    [("auto", "cross-validation", 16, "nothing"),
     ("class-vectors", "cross-validation", 16, "nothing"),
     ("class-vectors --shots 3", "cross-validation", 12, "4 images not drawn"),
     ("dip", "val", 4, "16 images of part train"), ("maple", "val", 4, "16 images of part train"),
     ("zero-shot", "val", 4, "16 images of part train")],
)  # fmt: skip
def test_without_test_images_the_page_shows_images_that_were_left_out(
    tiny_folder: Path, tmp_path: Path, method: str, part: str, images: int, left_out: str
) -> None:
    root = draw_dataset(tmp_path / "photos", all=5 if part == "val" else 4)
    out, page = tmp_path / "x.safetensors", tmp_path / "x.html"
    given = ["--shots", "4", "--method", *method.split(), "--report", str(page)]
    result = invoke(root, tiny_folder, out, *given)
    assert result.exit_code == 0, result.output
    prompt = read_prompt_file(out)
    assert prompt.metrics[part]["images"] == images
    text = page.read_text()
    shown = "train (left out in turn)" if part == "cross-validation" else part
    assert f"{images} of part {shown}" in text
    assert f"Left out: {left_out}" in text
    accuracy = re.search(r'accuracy<strong><data value="([0-9.]+)"', text)
    assert accuracy
    assert float(accuracy[1]) == pytest.approx(prompt.metrics[part]["accuracy"], abs=1e-3)
    error = re.search(r'calibration error<strong><data value="([0-9.e-]+)"', text)
    assert error
    assert float(error[1]) == pytest.approx(prompt.metrics[part]["calibration_error"], abs=1e-3)


def test_a_page_needs_images_that_were_left_out(tiny_folder: Path, tmp_path: Path) -> None:
    root = draw_dataset(tmp_path / "photos", all=1)
    page = tmp_path / "x.html"
    given = ["--method", "auto", "--shots", "1", "--report", str(page)]
    result = invoke(root, tiny_folder, tmp_path / "x.safetensors", *given)
    assert "not written: no image was held out" in result.stdout
    assert "Every class has a single image" in result.stdout
    assert not page.exists()
    both = [*given[2:], "--seeds", "1,2"]
    refused = invoke(root, tiny_folder, tmp_path / "x.safetensors", *both)
    assert "--report is for one run" in refused.stderr


def test_without_options_all_images_are_used_and_a_method_is_chosen(
    photos: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "x.safetensors"
    arguments = [photos, "--backbone", tiny_folder, "--out", out, "--cache", tmp_path / "cache"]
    result = CliRunner().invoke(train, [*map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    prompt = read_prompt_file(out)
    n_images = len(list((photos / "train").rglob("*.png")))
    assert prompt.metrics["images"]["train"] == n_images
    assert prompt.metrics["cross-validation"]["images"] == n_images
    assert re.search(r"^> class-vectors bits=4 ", result.stdout, re.MULTILINE)
    assert re.search(r"^cross-validation .* \d+\.\d% to \d+\.\d%$", result.stdout, re.MULTILINE)


@pytest.mark.parametrize("name", ["zero_shot", "dense_class_specific", "low_rank"])
def test_inspect_shows_all_there_is(name: str) -> None:
    path = path_of(name)
    prompt = read_prompt_file(path)
    text = CliRunner().invoke(inspect, [str(path)], catch_exceptions=False).stdout
    for expected in (
        prompt.name,
        prompt.method,
        prompt.backbone.fingerprint,
        *prompt.class_names,
        *(repr(template) for template in prompt.templates),
        f"{prompt.payload_bytes:,} bytes",
        f"{path.stat().st_size:,} bytes",
        *prompt.training,
        *prompt.metrics,
    ):
        assert expected in text
    as_json = CliRunner().invoke(inspect, [str(path), "--json"], catch_exceptions=False).stdout
    document = json.loads(as_json)
    assert document["class_names"] == list(prompt.class_names)
    assert document["file_bytes"] == path.stat().st_size
    if prompt.text is not None:
        shapes = {f"text.{key}": list(t.shape) for key, t in prompt.text.tensors().items()}
        assert {key: t["shape"] for key, t in document["tensors"].items()} == shapes


def test_inspect_refuses_what_is_no_prompt_file(tmp_path: Path) -> None:
    path = tmp_path / "cat.jpg"
    path.write_bytes(b"\xff\xd8\xff and so on, a picture")
    with pytest.raises(PromptFileInvalid, match="Not a prompt file"):
        CliRunner().invoke(inspect, [str(path)], catch_exceptions=False)
