"""``prompt-serve train-many``: wrong files, plans, results, and runs that are cut short."""

import csv
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.cli.conftest import Run
from tests.drawings import COLORS, draw_dataset, draw_image
from tests.sources.stores import running_s3

TIMEOUT_S = 400
GOOD = """
backbone = "{backbone}"
seeds = [1, 2]
shots = [2, 4]
[settings]
epochs = 3
[datasets]
paints = "paints"
[methods.zero-shot]
[methods.coop]
[methods.wide]
method = "dip"
rank = 2
n_ctx = 4
"""


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("many")
    draw_dataset(folder / "paints", train=6, test=4)
    (folder / "good.toml").write_text(GOOD.format(backbone=tiny_folder))
    return folder


def spec(work: Path, tmp_path: Path, text: str) -> Path:
    """A file beside the drawings of ``work``."""
    (tmp_path / "paints").symlink_to(work / "paints")
    (tmp_path / "empty").mkdir()
    path = tmp_path / "runs.toml"
    path.write_text(text)
    return path


DATA = '[datasets]\npaints = "paints"\n'
METHOD = "[methods.coop]\n"
# A wrong file -> a part of what is said about it.
WRONG = {
    # Not a file of this kind
    "seeds = = 3": "is not TOML",
    "": "there is nothing in [datasets]; add a line, such as pets",
    DATA: "there is nothing in [methods]; add a line, such as dip = {}",
    METHOD: "there is nothing in [datasets]",
    "datasets = 3\n" + METHOD: "there is nothing in [datasets]",
    # Unknown keys
    "seed = [1]\n" + DATA + METHOD: "seed is not a key; expected backbone, seeds, shots",
    "sedes = [1]\n" + DATA + METHOD: "Did you mean 'seeds'?",
    DATA + "[method.coop]\n" + METHOD: "method is not a key",
    "[datasets]\npaints = { path = 'paints', image = 'x' }\n" + METHOD: (
        "datasets.paints.image is not a key; expected path, images"
    ),
    DATA + "[settings]\nepoch = 3\n" + METHOD: "epoch is not a setting. Did you mean 'epochs'?",
    DATA + "[methods.coop]\nepoch = 3\n": "methods.coop: epoch is not a setting",
    # Methods
    DATA + "[methods.cop]\n": "methods.cop: method is 'cop'; expected one of 'zero-shot'",
    DATA + "[methods.coopp]\n": "Did you mean 'coop'",
    DATA + "[methods.mine]\nmethod = 'dipp'\n": "methods.mine: method is 'dipp'",
    DATA + "[methods.mine]\nmethod = 3\n": "methods.mine: method is 3",
    DATA + "[methods.auto]\n": "methods.auto: method is 'auto'",
    "methods.coop = 3\n" + DATA: "methods.coop is 3; expected a table of settings",
    DATA + "[methods.coop]\nrank = 3\n": "rank is not a setting of method 'coop'; it belongs to",
    # Datasets
    "[datasets]\npaint = 'paint'\n" + METHOD: "datasets.paint: There is no folder or file",
    "[datasets]\npaint = 'paint.csv'\n" + METHOD: "paint.csv",
    "[datasets]\nempty = 'empty'\n" + METHOD: "datasets.empty: ",
    "[datasets]\npaints = 3\n" + METHOD: "datasets.paints has no path; write paints = 'paints/'",
    "[datasets]\npaints = {}\n" + METHOD: "datasets.paints has no path",
    "[datasets]\n'a/b' = 'paints'\n" + METHOD: "datasets: 'a/b' cannot name a folder",
    "[datasets]\npaints = { path = 'paints', on_bad_image = 'hide' }\n" + METHOD: (
        "on_bad_image is 'hide'; expected 'error' or 'skip'"
    ),
    "[datasets]\npaints = { path = 'paints', class_names = { pink = 'rose' } }\n" + METHOD: (
        "no class is called 'pink'"
    ),
    # Numbers
    "seeds = 'one'\n" + DATA + METHOD: "seeds is 'one'; expected different whole numbers from 0",
    "seeds = [1, 1]\n" + DATA + METHOD: "seeds is [1, 1]; expected different whole numbers",
    "seeds = [-1]\n" + DATA + METHOD: "seeds is [-1]",
    "seeds = []\n" + DATA + METHOD: "seeds is []",
    "shots = [1.5]\n" + DATA + METHOD: "shots is [1.5]; expected different whole numbers from 1",
    "shots = 0\n" + DATA + METHOD: "shots is 0",
    # Settings
    DATA + "[settings]\nepochs = 0\n" + METHOD: "epochs is 0; expected a whole number from 1",
    DATA + "[settings]\nrank = 3\n[methods.dip]\n": "rank belongs to dip",
    DATA + "[settings]\nseed = 3\n" + METHOD: "seed is set at the top of the file",
    DATA + "[methods.coop]\nseed = 3\n": "methods.coop: seed is set at the top of the file",
    "shots = 2\n" + DATA + "[methods.coop]\nshots = 3\n": "shots is set at the top of the file",
    "backbone = 3\n" + DATA + METHOD: "backbone is 3; expected a name",
}


@pytest.mark.parametrize(("text", "said"), WRONG.items(), ids=range(len(WRONG)))
def test_a_wrong_file_says_what_is_wrong_before_any_work(
    run: Run, work: Path, tmp_path: Path, text: str, said: str
) -> None:
    path = spec(work, tmp_path, text)

    result = run("train-many", path, "--out", tmp_path / "out")

    assert result.exit_code == 2, result.output
    assert result.stderr.startswith(f"Error: {path} ")
    assert said in result.stderr
    assert result.stdout == ""
    assert not (tmp_path / "out").exists()


def test_all_faults_of_a_file_are_listed_at_once(run: Run, work: Path, tmp_path: Path) -> None:
    text = "seedz = [1]\nshots = 0\n[datasets]\nx = 'x'\ny = 'y'\n[methods.cop]\n[methods.dpi]\n"

    result = run("train-many", spec(work, tmp_path, text), "--out", tmp_path / "out")

    first, *faults = result.stderr.splitlines()
    assert first.endswith(" cannot be run:")
    assert len(faults) == 6
    assert all(fault.startswith("  - ") for fault in faults)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--address", "auto"), "--address needs --engine ray."),
        (("--engine", "ray", "--jobs", 2), "--jobs needs --engine processes."),
        (("--engine", "rya"), "'rya' is not one of 'processes', 'ray'."),
        (("--jobs", 0), "0 is not in the range x>=1."),
        (("--device", "cuda:9"), "--device requests CUDA, but torch finds none."),
    ],
)
def test_wrong_options_say_what_was_wanted(
    run: Run, work: Path, tmp_path: Path, options: tuple[object, ...], said: str
) -> None:
    result = run("train-many", work / "good.toml", "--out", tmp_path / "out", *options)

    assert result.exit_code == 2
    assert said in result.stderr
    assert not (tmp_path / "out").exists()


def plan(run: Run, path: Path, out: Path) -> dict[str, dict[str, Any]]:
    result = run("train-many", path, "--out", out, "--dry-run", "--json")
    assert result.exit_code == 0, result.output
    return {entry["run"]: entry for entry in json.loads(result.stdout)}


def test_a_dry_run_lists_every_run_and_writes_nothing(run: Run, work: Path, tmp_path: Path) -> None:
    shown = run("train-many", work / "good.toml", "--out", tmp_path / "out", "--dry-run")

    listed = plan(run, work / "good.toml", tmp_path / "out")
    assert list(listed) == [
        f"paints/{method}/{k}-shots/seed-{seed}"
        for k in (2, 4)
        for method in ("zero-shot", "coop", "wide")
        for seed in (1, 2)
    ]
    wide = listed["paints/wide/4-shots/seed-2"]
    assert wide["settings"] == {
        "method": "dip", "epochs": 3, "rank": 2, "n_ctx": 4, "shots": 4, "seed": 2,
    }  # fmt: skip
    assert wide["state"] == "new"
    assert shown.stdout.splitlines()[-1] == "12 runs, 0 complete."
    assert [line.split()[0] for line in shown.stdout.splitlines()[1:-1]] == list(listed)
    assert not (tmp_path / "out").exists()


# Runs of real processes, from here on.


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "prompt_serve", *map(str, words)]


def environment(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PROMPT_SERVE_CACHE": str(tmp_path / "cache")}


def done(tmp_path: Path, *words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*words),
        capture_output=True,
        text=True,
        env=environment(tmp_path),
        timeout=TIMEOUT_S,
    )


@pytest.fixture(scope="module")
def complete(work: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All runs of the good file; copy it before you change it."""
    folder = tmp_path_factory.mktemp("complete")
    finished = done(folder, "train-many", work / "good.toml", "--out", folder / "out", "--json")
    assert finished.returncode == 0, finished.stderr
    (folder / "printed.json").write_text(finished.stdout)
    return folder


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def prompts(out: Path) -> dict[str, bytes]:
    found = sorted((out / "runs").rglob("prompt.safetensors"))
    return {str(path.parent.relative_to(out / "runs")): path.read_bytes() for path in found}


@pytest.mark.long
def test_the_table_has_mean_and_deviation_of_the_runs(complete: Path) -> None:
    out = complete / "out"
    document = json.loads((out / "results.json").read_text())
    printed = json.loads((complete / "printed.json").read_text())

    assert {**document, "report": str(out / "report.html")} == printed
    assert len(document["runs"]) == 12
    assert len(document["table"]) == 6
    for line in document["table"]:
        key = (line["dataset"], line["method"], line["shots"])
        own = [
            r["accuracy"]
            for r in document["runs"]
            if (r["dataset"], r["method"], r["shots"]) == key
        ]
        assert (line["seeds"], line["failed"], line["part"]) == (2, 0, "test")
        assert line["accuracy"] == pytest.approx(statistics.mean(own))
        assert line["accuracy_std"] == pytest.approx(statistics.stdev(own))
    for name, kind in (("results.csv", "table"), ("runs.csv", "runs")):
        in_csv = rows(out / name)
        assert len(in_csv) == len(document[kind])
        for text, values in zip(in_csv, document[kind], strict=True):
            assert text == {k: "" if v is None else str(v) for k, v in values.items()}
    page = (out / "report.html").read_text()
    for run_ in document["runs"]:
        assert run_["prompt"] in page


@pytest.mark.long
def test_a_run_is_what_train_and_evaluate_make_of_it(
    run: Run, work: Path, complete: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    out, name = complete / "out", "paints/wide/4-shots/seed-2"
    words = ("train", work / "paints", "--method", "dip", "--rank", 2, "--n-ctx", 4, "--epochs", 3,
             "--shots", 4, "--seed", 2, "--backbone", tiny_folder)  # fmt: skip

    alone = done(tmp_path, *words, "--out", tmp_path / "paints.safetensors")

    assert alone.returncode == 0, alone.stderr
    assert (tmp_path / "paints.safetensors").read_bytes() == prompts(out)[name]
    measured = run("evaluate", out / "runs" / name / "prompt.safetensors", work / "paints",
                   "--backbone", tiny_folder, "--json")  # fmt: skip
    [row] = [r for r in rows(out / "runs.csv") if name in r["prompt"]]
    assert float(row["accuracy"]) == json.loads(measured.stdout)["accuracy"]
    # The folder of the run has all that train needs to do it again.
    again = done(tmp_path, "train", work / "paints", "--config", out / "runs" / name / "train.toml",
                 "--backbone", tiny_folder, "--out", tmp_path / "again.safetensors",
                 "--name", "paints")  # fmt: skip
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "again.safetensors").read_bytes() == prompts(out)[name]


def another_image(folder: Path) -> None:
    draw_image(folder / "paints" / "train" / "red" / "new.png", COLORS["red"], 99)


def other_bytes(folder: Path) -> None:
    draw_image(folder / "paints" / "train" / "red" / "00.png", COLORS["red"], 99)


def one_image_less(folder: Path) -> None:
    (folder / "paints" / "test" / "red" / "00.png").unlink()


def replaced(old: str, new: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "good.toml"
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))

    return change


ALL = {"zero-shot", "coop", "wide"}
CHANGES: list[tuple[Callable[[Path], None], set[str], int]] = [
    # change, methods that it concerns, runs that are new
    (replaced("rank = 2", "rank = 3"), {"wide"}, 0),
    (replaced("epochs = 3", "epochs = 4"), ALL, 0),
    (replaced("[methods.coop]", "[methods.coop]\nlearning_rate = 0.1"), {"coop"}, 0),
    (replaced("seeds = [1, 2]", "seeds = [1, 2, 3]"), set(), 6),
    (replaced("shots = [2, 4]", "shots = [4]"), set(), 0),
    (replaced("[methods.zero-shot]", "[methods.zero-shot]\n[methods.kgcoop]"), set(), 4),
    (replaced('"paints"', "{ path = 'paints', on_bad_image = 'skip' }"), ALL, 0),
    (replaced('"paints"', "{ path = 'paints', class_names = { red = 'rose' } }"), ALL, 0),
    (replaced("seeds = [1, 2]", "# the same\nseeds = [2, 1]"), set(), 0),
    (another_image, ALL, 0),
    (other_bytes, ALL, 0),
    (one_image_less, ALL, 0),
]


@pytest.fixture(scope="module")
def marked_complete(work: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the good file, its drawings, and runs that count as complete."""
    from prompt_serve.training.many.plan import PROMPT, plan_runs
    from prompt_serve.training.many.spec import read_spec

    folder = tmp_path_factory.mktemp("marked")
    shutil.copytree(work, folder, dirs_exist_ok=True)
    for planned in plan_runs(read_spec(folder / "good.toml"), folder / "out"):
        planned.prepare()
        (planned.folder / PROMPT).write_bytes(b"")
        planned.store("complete")
    return folder


@pytest.mark.parametrize(("change", "concerned", "new"), CHANGES, ids=range(len(CHANGES)))
def test_a_change_concerns_the_runs_that_depend_on_it(
    run: Run,
    marked_complete: Path,
    change: Callable[[Path], None],
    concerned: set[str],
    new: int,
    tmp_path: Path,
) -> None:
    kept = tmp_path / "kept"
    shutil.copytree(marked_complete / "paints", kept)
    text = (marked_complete / "good.toml").read_text()
    before = plan(run, marked_complete / "good.toml", marked_complete / "out")
    assert {entry["state"] for entry in before.values()} == {"complete"}
    try:
        change(marked_complete)

        after = plan(run, marked_complete / "good.toml", marked_complete / "out")

        for entry in after.values():
            if entry["run"] in before:
                expected = "changed" if entry["method"] in concerned else "complete"
                assert entry["state"] == expected, entry
        assert [entry["state"] for entry in after.values()].count("new") == new
    finally:
        shutil.rmtree(marked_complete / "paints")
        shutil.copytree(kept, marked_complete / "paints")
        (marked_complete / "good.toml").write_text(text)


@pytest.mark.long
def test_only_what_changed_is_trained_again(work: Path, complete: Path, tmp_path: Path) -> None:
    shutil.copytree(complete / "out", tmp_path / "out")
    text = (work / "good.toml").read_text().replace('"paints"', f'"{work / "paints"}"')
    (tmp_path / "runs.toml").write_text(text.replace("rank = 2", "rank = 3"))
    before = prompts(tmp_path / "out")

    second = done(tmp_path, "train-many", tmp_path / "runs.toml", "--out", tmp_path / "out")

    assert second.returncode == 0, second.stderr
    assert "8 runs complete already." in second.stderr
    after = prompts(tmp_path / "out")
    assert {name for name in after if after[name] != before[name]} == {
        f"paints/wide/{k}-shots/seed-{seed}" for k in (2, 4) for seed in (1, 2)
    }


@pytest.mark.long
def test_a_run_that_fails_is_a_row_and_the_others_continue(
    work: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(work / "paints", tmp_path / "broken")
    (tmp_path / "broken" / "train" / "red" / "bad.png").write_bytes(b"no image")
    (tmp_path / "runs.toml").write_text(
        f"backbone = '{tiny_folder}'\nseeds = [1]\nshots = [4, 7]\n"
        f"[datasets]\nbroken = 'broken'\npaints = '{work / 'paints'}'\n[methods.zero-shot]\n"
    )

    finished = done(tmp_path, "train-many", tmp_path / "runs.toml", "--out", tmp_path / "out")

    assert finished.returncode == 1, finished.stderr
    assert f"Error: 3 of 4 runs failed; see {tmp_path / 'out' / 'runs.csv'}." in finished.stderr
    found = {(r["dataset"], r["shots"]): r for r in rows(tmp_path / "out" / "runs.csv")}
    assert {key: row["status"] for key, row in found.items()} == {
        ("broken", "4"): "failed",
        ("broken", "7"): "failed",
        ("paints", "4"): "complete",
        ("paints", "7"): "failed",
    }
    assert "bad.png" in found["broken", "4"]["error"]
    assert "fewer than 7 shots" in found["paints", "7"]["error"]
    # What was wrong is mended, and only what failed is done.
    (tmp_path / "broken" / "train" / "red" / "bad.png").unlink()
    text = (tmp_path / "runs.toml").read_text().replace("[4, 7]", "[4]")
    (tmp_path / "runs.toml").write_text(text)
    mended = done(tmp_path, "train-many", tmp_path / "runs.toml", "--out", tmp_path / "out")
    assert mended.returncode == 0, mended.stderr
    assert "1 run complete already." in mended.stderr


LONG = """
backbone = "{backbone}"
seeds = [1, 2]
[datasets]
paints = "{paints}"
[methods.coop]
epochs = {epochs}
batch_size = 4
"""


@pytest.fixture(scope="module")
def long_spec(work: Path, tiny_folder: Path) -> Path:
    """Two runs of a few seconds, with a checkpoint after every epoch."""
    path = work / "long.toml"
    path.write_text(LONG.format(backbone=tiny_folder, paints=work / "paints", epochs=60))
    return path


@pytest.fixture(scope="module")
def uninterrupted(long_spec: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, bytes]:
    folder = tmp_path_factory.mktemp("whole")
    finished = done(folder, "train-many", long_spec, "--out", folder / "out")
    assert finished.returncode == 0, finished.stderr
    return prompts(folder / "out")


def wait_for_checkpoint(out: Path, process: subprocess.Popen[str]) -> Path:
    """Return the folder of a run that has saved a checkpoint."""
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        for found in out.glob("runs/**/checkpoint"):
            return found.parent
        time.sleep(0.01)
    raise AssertionError(f"no checkpoint: {process.communicate()}")


def started(tmp_path: Path, *words: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(*words),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(tmp_path),
    )


def epochs_of(folder: Path) -> list[int]:
    lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [line["epoch"] for line in lines if "epoch" in line]


@pytest.mark.long
@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_run_is_resumed_and_ends_with_the_same_bytes(
    long_spec: Path,
    uninterrupted: Mapping[str, bytes],
    tmp_path: Path,
    kind: signal.Signals,
) -> None:
    words = ("train-many", long_spec, "--out", tmp_path / "out", "--jobs", 1)
    with started(tmp_path, *words) as process:
        folder = wait_for_checkpoint(tmp_path / "out", process)
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(kind)
        process.wait(TIMEOUT_S)
        assert process.returncode == (130 if kind == signal.SIGINT else -kind)
        assert not psutil.wait_procs(children, timeout=TIMEOUT_S)[1]
    assert not (folder / "prompt.safetensors").exists()

    second = done(tmp_path, *words)

    assert second.returncode == 0, second.stderr
    assert epochs_of(folder)[0] > 0  # it did not start anew
    assert prompts(tmp_path / "out") == uninterrupted
    assert not list((tmp_path / "out").rglob("checkpoint*"))


def training_processes(process: subprocess.Popen[str], mark: str) -> list[psutil.Process]:
    children = psutil.Process(process.pid).children(recursive=True)
    return [child for child in children if mark in " ".join(child.cmdline())]


@pytest.mark.long
def test_a_run_whose_process_is_killed_is_a_row_and_is_resumed_later(
    long_spec: Path, uninterrupted: Mapping[str, bytes], tmp_path: Path
) -> None:
    words = ("train-many", long_spec, "--out", tmp_path / "out", "--jobs", 1)
    with started(tmp_path, *words) as process:
        folder = wait_for_checkpoint(tmp_path / "out", process)
        [child] = training_processes(process, "spawn_main")
        child.kill()
        output, _ = process.communicate(timeout=TIMEOUT_S)

    assert process.returncode == 1, output
    states = {r["seed"]: r["status"] for r in rows(tmp_path / "out" / "runs.csv")}
    assert states == {"1": "failed", "2": "complete"}
    assert "Its process was ended by SIGKILL" in output
    second = done(tmp_path, *words)
    assert second.returncode == 0, second.stderr
    assert epochs_of(folder)[0] > 0
    assert prompts(tmp_path / "out") == uninterrupted


@pytest.mark.long
def test_a_killed_worker_on_ray_loses_nothing(
    long_spec: Path, uninterrupted: Mapping[str, bytes], tmp_path: Path
) -> None:
    pytest.importorskip("ray")
    words = ("train-many", long_spec, "--out", tmp_path / "out", "--engine", "ray", "--threads", 1)
    with started(tmp_path, *words) as process:
        folder = wait_for_checkpoint(tmp_path / "out", process)
        workers = training_processes(process, "ray::call_with_threads")
        assert workers
        for worker in workers:
            worker.kill()
        output, _ = process.communicate(timeout=TIMEOUT_S)

    assert process.returncode == 0, output
    assert epochs_of(folder)[0] > 0
    assert prompts(tmp_path / "out") == uninterrupted


@pytest.mark.long
def test_there_is_no_cluster_at_a_wrong_address(long_spec: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")

    finished = done(tmp_path, "train-many", long_spec, "--out", tmp_path / "out", "--engine", "ray",
                    "--address", "127.0.0.1:1")  # fmt: skip

    assert finished.returncode == 2, finished.stderr
    assert "There is no Ray cluster at 127.0.0.1:1" in finished.stderr


@pytest.mark.long
def test_a_dataset_in_an_object_store_gives_the_prompts_of_its_folder(
    work: Path, tmp_path: Path, tiny_folder: Path
) -> None:
    (tmp_path / "paints").symlink_to(work / "paints")
    file, out = tmp_path / "stored.toml", tmp_path / "runs"
    file.write_text(
        f'backbone = "{tiny_folder}"\nseeds = [1]\n[datasets]\n'
        f'local- = "paints"\nstored = "s3://photos/paints"\n[methods.class-vectors]\n'
    )
    with running_s3() as store:
        store.mkdir("photos")
        store.put(str(work / "paints"), "photos/paints", recursive=True)
        trained = done(tmp_path, "train-many", file, "--out", out)
        planned = done(tmp_path, "train-many", file, "--out", out, "--dry-run", "--json")
    assert trained.returncode == 0, trained.stderr

    local, stored = prompts(out).values()
    assert stored.replace(b"stored", b"local-") == local  # the name, of the same length
    assert {run["state"] for run in json.loads(planned.stdout)} == {"complete"}
