"""Wrong inputs of every command: exit code 2, and one line that says what is wrong."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import Result

from prompt_serve.cli.main import COMMANDS
from tests.cli.conftest import Run
from tests.client.fake_service import FakeService
from tests.drawings import draw_dataset, draw_image

OUT = "--out new.safetensors"
RUN = "--out run --no-cache"
RUNS = "--out runs"

# Command line -> a part of its error. The folder it runs in has: photos/ (a dataset), notes.txt,
# image.png, bad.safetensors (text), bad.toml, wrong.toml (a misspelled setting), runs.toml (a
# misspelled method), empty/, table.csv.
WRONG: dict[str, str] = {
    # Verbs and options
    "trian photos": "No such command 'trian'. Did you mean 'train' or 'train-many'?",
    "clasify image.png": "No such command 'clasify'. Did you mean 'classify'?",
    "xyzzy": "No such command 'xyzzy'. See prompt-serve --help.",
    "tasks lsit": "No such command 'lsit'. Did you mean 'list'? See prompt-serve tasks --help.",
    "keys revok ci": "No such command 'revok'. Did you mean 'revoke'?",
    "registry exprt": "No such command 'exprt'.",
    "data iconbnch": "No such command 'iconbnch'. Did you mean 'iconbench'?",
    "protocol base-to-old photos": "No such command 'base-to-old'. Did you mean 'base-to-new'?",
    "reproduce base-to-old --out run": "'base-to-old' is not one of 'base-to-new', 'few-shot'",
    "--versoin": "Did you mean one of: '--verbose', '--version'?) See prompt-serve --help.",
    f"train photos {OUT} --shot 3": "No such option '--shot'.",
    f"train photos {OUT} --rank 3": "--rank is not an option of method 'auto'; it belongs to: dip",
    "doctor --jsn": "No such option '--jsn'. Did you mean '--json'?",
    "tasks list --josn": "No such option '--josn'. Did you mean '--json'?",
    "score photos --task pets --out t.csv --concurency 2": "'--concurrency'?) See prompt-serve",
    "serve --prot 3": "Did you mean one of: '--host', '--port'?",
    "cache clea": "No such command 'clea'. Did you mean 'clear'?",
    # Missing and superfluous arguments
    "train": "Missing argument 'DATASET'. See prompt-serve train --help.",
    "train photos": "Missing option '--out' / '-o'.",
    "export embedded": "Missing option '-o' / '--out'.",
    "classify image.png": "Missing option '--task' (or '--tag').",
    "inspect": "Missing argument 'FILE'.",
    "inspect a b": "Got unexpected extra argument (b).",
    "export-task": "Missing argument 'PROMPT'. See prompt-serve export-task --help.",
    "export-task pets.safetensors": "Missing option '-o' / '--out'.",
    "predict": "Missing argument 'PROMPT... IMAGE...'.",
    "predict pets.safetensors": "No images were given.",
    "serve extra": "Got unexpected extra argument (extra).",
    "tasks create pets": "Missing argument 'CLASS...'.",
    "report": "Missing argument 'RUN...'.",
    # Values
    f"train photos {OUT} --method dipp": "method is 'dipp'; expected one of 'zero-shot'",
    f"train photos {OUT} --method coopp --shots 2": "Did you mean 'coop' or 'qcoop' or 'kgcoop'?",
    f"train photos {OUT} --epochs ten": "'ten' is not a whole number.",
    f"train photos {OUT} --method coop --epochs 0": "epochs is 0; expected a whole number from 1",
    f"train photos {OUT} --learning-rate fast": "'fast' is not a number or 'auto'.",
    f"train photos {OUT} --method coop --seeds 1,x": "'1,x' is not a list of numbers, as in 1,2,3.",
    f"train photos {OUT} --method coop --seeds 1,1": "'1,1' names a seed twice.",
    f"train photos {OUT} --on-bad-image ignore": "'ignore' is not one of 'error', 'skip'.",
    f"train photos {OUT} --class-name red": "'red' is not OLD=NEW, as in roses=rose.",
    f"train photos {OUT} --device cuda:9 --method coop": "--device requests CUDA, but torch finds",
    f"train photos {OUT} --template x --method zero-shot": "template",
    f"train photos {OUT} --config bad.toml": "bad.toml is not TOML: ",
    f"train photos {OUT} --config none.toml": "none.toml cannot be read: No such file",
    f"train photos {OUT} --config wrong.toml": "epoch is not a setting. Did you mean 'epochs'",
    "train-many": "Missing argument 'SPEC'. See prompt-serve train-many --help.",
    "train-many bad.toml": "Missing option '--out' / '-o'.",
    f"train-many bad.toml {RUNS}": "bad.toml is not TOML: ",
    f"train-many none.toml {RUNS}": "none.toml cannot be read: No such file",
    f"train-many wrong.toml {RUNS}": "epoch is not a key; expected backbone, seeds, shots",
    f"train-many runs.toml {RUNS}": "methods.dipp: method is 'dipp'; expected one of 'zero-shot'",
    f"train-many runs.toml {RUNS} --jobs 0": "0 is not in the range x>=1.",
    f"train-many runs.toml {RUNS} --address auto": "--address needs --engine ray.",
    f"train-many runs.toml {RUNS} --engine ray --jobs 2": "--jobs needs --engine processes.",
    "methods coo": "Did you mean 'coop' or 'qcoop' or 'kgcoop'? See prompt-serve methods --help.",
    "export embeded -o new": "open_clip has no model 'embeded'. Did you mean 'embedded'",
    "export vitb16/openai -o new": "open_clip has no model 'vitb16'. Did you mean 'ViT-B-16'",
    "export ViT-B-32/opnai -o new": "has no pretrained weights called 'opnai'. Known: openai, ",
    "export ViT-B-32/opnai --out new": "Did you mean 'openai'? Write MODEL/TAG",
    "export ViT-B-32/openai@none.pt -o new": "There is no checkpoint file none.pt.",
    "export embedded -o new --precision fp8": "'fp8' is not one of 'fp32', 'int8', 'bf16', 'fp16'.",
    "cache clear feature": "There is no cache 'feature'",
    "predict pets.safetensors cat.jpg --top-k 0": "0 is not in the range x>=1.",
    "classify image.png --task pets --top-k 0": "0 is not in the range x>=1.",
    "classify image.png --task pets --deadline x": "'x' is not a number. See",
    "score photos --task pets --out t.csv --deadline x": "'x' is not a number. See",
    "serve --port x": "'x' is not a whole number. See",
    "predict pets.safetensors cat.jpg --top-k 1.5": "'1.5' is not a whole number. See",
    "keys audit --limit all": "'all' is not a whole number. See",
    "baselines photos --seed one": "'one' is not a whole number. See",
    "classify image.png --task pets --url ftp://x": "ftp://x",
    "score photos --task pets --out t.txt": "t.txt has no known table format; expected the suffix",
    "score photos --task pets --out t.parquet --resume": "A Parquet table cannot be resumed",
    "score photos --task pets --out table.csv": "table.csv exists. Add --overwrite to replace it",
    "keys create ci --role root": "'root' is not one of 'infer', 'admin'.",
    "keys create ci --expires soon": "'soon' is invalid; expected a duration (12h, 30d, 8w)",
    "keys audit --limit 0": "0 is not in the range 1<=x<=100000.",
    "registry info --database mysql://host/x": "is a database that is not supported: expected",
    "registry info --database nonsense": "'nonsense' is not a database URL: expected sqlite",
    "data check oxfrd_pets": "Did you mean 'oxford_pets'",
    f"protocol few-shot photos {RUN} --shots 0": "'0' is not a list of positive numbers",
    f"protocol base-to-new photos {RUN} --shots 1,2": "base-to-new takes one number of --shots",
    f"protocol base-to-new photos {RUN} --methods cop": "unknown method 'cop'; expected zero-shot",
    f"protocol base-to-new photos {RUN} --methods promtsrc": "Did you mean 'promptsrc'?",
    f"protocol base-to-new photos {RUN} --set epoch=1": "epoch is not a setting.",
    f"protocol base-to-new photos {RUN} --datasets photo": "Did you mean 'photos'?",
    f"protocol few-shot photos {RUN} --jobs 2": "--jobs needs --engine processes.",
    f"protocol few-shot photos {RUN} --threads 2": "--threads needs --engine processes or ray.",
    f"protocol few-shot photos {RUN} --address auto": "--address needs --engine ray.",
    f"protocol few-shot photos {RUN} --engine rya": "'rya' is not one of 'local', 'processes'",
    f"protocol domain-generalization photos {RUN} --domain x": "'x' is not NAME=DATASET",
    f"protocol cross-dataset photos {RUN} --source photo": "No dataset is named 'photo'; there are",
    # Files that are not there, or are something else
    f"train none {OUT}": "There is no folder or file none.",
    f"train empty {OUT}": "empty",
    f"train notes.txt {OUT}": "notes.txt",
    f"train image.png {OUT}": "image.png is not a dataset file; expected a .csv, .tsv, .json, ",
    f"train table.csv {OUT}": "column 'path' is missing; the table has image (name the column with",
    f"train table.csv {OUT} --image-column image": "column 'label' is missing; the table has image",
    f"train table.csv {OUT} --image-column image --label-column x": "column 'x' is missing; the",
    f"train photos {OUT} --label-column species": "so there are no columns to name; its folders",
    f"train photos/*.tar {OUT}": "No such file or folder:",
    f"train photos/train/*/*.png {OUT}": "images need labels: name their folder, or a table.",
    f"train photos/* {OUT}": "name one folder, or tables and archives.",
    f"train nope://photos {OUT}": "nope://photos cannot be opened: Protocol not known",
    "score photos --prompt x.safetensors --out - --resume": "standard output cannot be resumed",
    "score photos --prompt x.safetensors --out - --engine ray": "--engine ray writes parts",
    "score photos --prompt x.safetensors --out - --json": "both write to standard output",
    f"train photos {OUT} --backbone ./none": "There is no backbone in './none'.",
    f"train photos --out {Path('/proc/none/x.safetensors')}": "/proc/none/x.safetensors cannot be",
    "train photos --out empty": "empty is a folder; name a file in it.",
    "evaluate none.safetensors photos": "There is no file none.safetensors.",
    "evaluate bad.safetensors photos": "Not a prompt file",
    "inspect none.safetensors": "There is no file none.safetensors.",
    "inspect bad.safetensors": "Not a prompt file",
    "inspect image.png": "Not a prompt file",
    "inspect empty": "empty",
    "classify none.png image.png --task pets": "No such file or folder:",
    "classify empty --task pets": "No images in empty.",
    "score none --task pets --out t.csv": "No such file or folder:",
    "score empty --task pets --out t.csv": "No images in empty. Searched for files with",
    "tasks upload none.safetensors": "none.safetensors",
    "tasks upload bad.safetensors": "bad.safetensors",
    "tasks upload photos --name pets": "--name, --expected and --new need a single prompt file.",
    "registry import none.zip": "none.zip",
    "baselines none": "There is no folder or file none.",
    "report none": "none cannot be read: No such file or directory. Expected a run folder with",
    "report empty": "results.jsonl cannot be read",
    "report image.png": "image.png is not text. Expected a run folder with results.jsonl",
    "report notes.txt": "notes.txt, line 1 is not a protocol result",
    "report wrong.toml": "wrong.toml, line 1 is not a protocol result",
    f"protocol few-shot none {RUN}": "there is no folder or file none.",
    "reproduce few-shot --datasets-root empty --out run": "Datasets are missing:",
    "reproduce few-shot --bench icon --icon-folder empty --out run": "empty",
    "data iconbench --offline --cache empty --out run": "is not in empty",
    # The Hugging Face Hub
    "push": "Missing argument 'PROMPT'. See prompt-serve push --help.",
    "push image.png": "Missing argument 'USER/NAME'.",
    "push none.safetensors me/pets": "'none.safetensors' does not exist.",
    "push empty me/pets": "'empty' is a directory.",
    "push bad.safetensors me/pets": "Not a prompt file",
    "push image.png me/pets": "Not a prompt file",
    "pull": "Missing argument 'USER/NAME'.",
    "pull me/pets -o empty": "empty is a folder; name a file in it.",
    "pull me/pets/more": "'me/pets/more' is not a repository. Expected user/name",
    "pull me/pe?ts": "'me/pe?ts' is not a repository. Expected user/name",
    # Trackers
    f"train photos {OUT} --track wandb": "'wandb' is not one of 'mlflow', 'tensorboard'.",
    f"train photos {OUT} --track-uri sqlite:///x.db": "--track-uri needs --track mlflow.",
    f"train photos {OUT} --track-dir runs": "--track-dir needs --track tensorboard.",
    f"train photos {OUT} --track-run first": "--track-run needs --track.",
    # Keys
    "keygen": "Missing argument 'FILE'.",
    "keygen notes.txt": "notes.txt exists and is not replaced",
    "keygen empty": "empty is a folder; name a file in it.",
    "sign image.png": "Missing option '--key'.",
    "sign image.png --key notes.txt": "notes.txt has no private key that can be read",
    f"train photos {OUT} --sign wrong.toml": "wrong.toml has no private key that can be read",
    "verify image.png": "Missing option '--trusted'",
    "verify image.png --trusted notes.txt": "The trusted keys are invalid:",
    "verify image.png --trusted image.png": "The trusted keys in image.png cannot be read",
    "verify image.png --trusted empty": "empty has no trusted key",
    # Names that the service does not know
    "classify image.png --task pest": "No task",
    "score photos --task pest --out t.csv": "No task",
    "tasks show pest": "No task",
    "tasks delete pest": "No task",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Working folder with a few files."""
    work = tmp_path / "work"
    draw_dataset(work / "photos", train=2, test=1)
    (work / "empty").mkdir()
    (work / "notes.txt").write_text("Buy milk.\n")
    (work / "bad.safetensors").write_text("Buy milk.\n")
    (work / "bad.toml").write_text("epochs = = 3\n")
    (work / "wrong.toml").write_text('method = "coop"\nepoch = 3\n')
    (work / "runs.toml").write_text('[datasets]\nphotos = "photos"\n[methods.dipp]\n')
    (work / "table.csv").write_text("image\n")
    draw_image(work / "image.png", (200, 0, 0), 1)
    monkeypatch.chdir(work)
    monkeypatch.setenv("PROMPT_SERVE_HOME", str(tmp_path / "home"))
    return work


def check_misuse(result: Result, said: str) -> None:
    first, *faults = result.stderr.splitlines() or [""]
    assert result.exit_code == 2, result.output
    assert first.startswith("Error: ")
    # An error with several faults has a line for each.
    assert all(line.startswith("  - ") for line in faults)
    assert not faults or first.endswith(":")
    assert "Traceback" not in result.output
    assert said in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(("line", "said"), WRONG.items(), ids=list(WRONG))
def test_misuse_is_one_line_and_exit_code_2(
    run: Run, folder: Path, service: FakeService, line: str, said: str
) -> None:
    before = sorted(folder.rglob("*"))

    result = run(*line.split())

    check_misuse(result, said)
    assert sorted(folder.rglob("*")) == before


def test_the_table_is_long_and_has_every_command() -> None:
    assert len(WRONG) > 50
    assert set(COMMANDS) <= {line.split()[0] for line in WRONG}


@pytest.mark.parametrize(
    "line",
    [
        "inspect none.safetensors",
        "trian photos",
        "keygen empty",
        "cache clear feature",
        "data check oxfrd_pets",
    ],
)
def test_the_installed_command_ends_as_in_process(folder: Path, line: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "prompt_serve", *line.split()], capture_output=True, text=True
    )

    assert done.returncode == 2
    assert re.fullmatch(r"Error: [^\n]+\n", done.stderr)
    assert done.stdout == ""


@pytest.mark.parametrize("flag", ["-v", "--verbose"])
@pytest.mark.parametrize(
    "line",
    [
        "inspect {} none.safetensors",
        "report {} notes.txt",
        "train photos --out new.safetensors {} --method coop --epochs 0",
        "tasks show {} pest",
        "{} tasks show pest",
        "registry info --database nonsense {}",
    ],
)
def test_verbose_prints_the_traceback_before_the_line(
    run: Run, folder: Path, service: FakeService, line: str, flag: str
) -> None:
    result = run(*line.format(flag).split())

    assert result.exit_code == 2
    lines = result.stderr.splitlines()
    assert "Traceback (most recent call last):" in lines
    assert any(text.startswith("Error: ") for text in lines)
    assert result.stdout == ""


def test_verbose_shows_requests_and_is_over_after_the_command(
    run: Run, folder: Path, service: FakeService
) -> None:
    verbose = run("tasks", "list", "-v")
    plain = run("tasks", "list")

    assert verbose.exit_code == 0, verbose.output
    assert f"HTTP Request: GET {service.url}/v1/tasks?limit=" in verbose.stderr
    assert plain.stderr == ""
    assert plain.stdout == verbose.stdout


@pytest.mark.parametrize("command", ["export", "train"])
@pytest.mark.parametrize("name", ["ViT-B-32/openai", "RN50/cc12m"])
def test_weights_that_cannot_be_downloaded_are_one_line_within_seconds(
    run: Run,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    command: str,
    name: str,
) -> None:
    for variable in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")  # a port where nothing listens
    monkeypatch.setenv("NO_PROXY", "")
    photos = [str(folder / "photos"), "--backbone"] if command == "train" else []

    result = run(command, *photos, name, "--out", folder / "new")

    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert f"The weights of {name} could not be downloaded from https://" in result.stderr
    assert "Connection refused. Download them where there is a network, copy" in result.stderr
    assert f"name it: {name}@/path/to/the/file" in result.stderr
    assert "Retrying" not in caplog.text
