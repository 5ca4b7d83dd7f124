"""``prompt-serve protocol`` and ``reproduce`` on small drawn datasets and the shipped sample."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from prompt_serve.research.protocols.results import read_results
from tests.cli.conftest import Run
from tests.drawings import draw_dataset

TIMEOUT_S = 400
QUICK = ("--set", "epochs=2", "--set", "views=1", "--no-cache")


@pytest.fixture(scope="module")
def paints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_dataset(tmp_path_factory.mktemp("data") / "paints", train=6, test=3)


def test_base_to_new_on_a_folder_prints_a_table_and_keeps_the_run(
    run: Run, paints: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    arguments = (
        "protocol", "base-to-new", paints, "--methods", "zero-shot,coop", "--seeds", "1,2",
        "--shots", "2", "--backbone", tiny_folder, "--out", tmp_path / "run", *QUICK,
    )  # fmt: skip

    first = run(*arguments)

    assert first.exit_code == 0, first.output
    results = read_results(tmp_path / "run")
    assert [(one.label, one.seed) for one in results] == [
        ("zero-shot", 1), ("zero-shot", 2), ("coop", 1), ("coop", 2),
    ]  # fmt: skip
    mean = 50 * sum(one.accuracy["base"] for one in results if one.label == "coop")
    assert f"{mean:.2f} ±" in first.stdout
    assert "paints coop, 2 shots, seed 2: base" in first.stderr
    assert run(*arguments).stdout == first.stdout  # from what is kept


def test_domains_are_named_on_the_command_line(
    run: Run, paints: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    chalk = draw_dataset(tmp_path / "chalk", test=2, train=1)

    answer = run(
        "protocol", "domain-generalization", paints, "--domain", f"chalk={chalk}", "--methods",
        "zero-shot", "--seeds", "1", "--backbone", tiny_folder, "--out", tmp_path / "run", *QUICK,
    )  # fmt: skip

    assert answer.exit_code == 0, answer.output
    (result,) = read_results(tmp_path / "run")
    assert list(result.accuracy) == ["source", "chalk"]
    assert result.images["chalk"] == 8


def test_reproduce_writes_the_tables_of_the_shipped_sample(
    run: Run, tiny_folder: Path, tmp_path: Path
) -> None:
    answer = run(
        "reproduce", "base-to-new", "--bench", "icon-sample", "--methods", "zero-shot", "--seeds",
        "1", "--backbone", tiny_folder, "--out", tmp_path / "run", "--markdown",
        tmp_path / "table.md", "--json", "--no-cache",
    )  # fmt: skip

    assert answer.exit_code == 0, answer.output
    (table,) = json.loads(answer.stdout)
    shown = {line["place"]: line["cells"]["base"]["mean"] for line in table["lines"]}
    for result in read_results(tmp_path / "run"):
        assert shown[result.dataset] == result.accuracy["base"]
    assert "| zero-shot |" in (tmp_path / "table.md").read_text()


def test_what_is_missing_is_said_before_anything_is_loaded(run: Run, tmp_path: Path) -> None:
    answer = run(
        "reproduce", "base-to-new", "--datasets-root", tmp_path, "--backbone", "no/such",
        "--out", tmp_path / "run",
    )  # fmt: skip

    assert answer.exit_code == 2
    assert "eurosat: there is no folder eurosat/" in answer.stderr
    assert "split_zhou_EuroSAT.json" in answer.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--methods", "cop"), "unknown method 'cop'"),
        (("--shots", "1,2"), "takes one number of --shots"),
        (("--shots", "0"), "not a list of positive numbers"),
        (("--set", "epochs"), "not NAME=VALUE"),
        (("--set", "epochs=0"), "epochs is 0"),
        (("--datasets", "pets"), "has no dataset 'pets'"),
        (("--domain", "chalk"), "not NAME=DATASET"),
    ],
)
def test_wrong_options_say_what_was_wanted(
    arguments: tuple[str, ...], said: str, run: Run, paints: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    answer = run(
        "protocol", "base-to-new", paints, "--backbone", tiny_folder, "--out", tmp_path / "run",
        *arguments,
    )  # fmt: skip

    assert answer.exit_code != 0
    assert said in " ".join(answer.stderr.split())


def bad_datasets(folder: Path) -> dict[str, Path]:
    """Datasets with one fault each."""
    draw_dataset(folder / "no-tests", train=2)
    draw_dataset(folder / "bad-class", train=2, test=1)
    (folder / "bad-class" / "test" / "red").rename(folder / "bad-class" / "test" / "pink")
    (folder / "table.csv").write_text("file,class\na.png,red\n")
    (folder / "split.json").write_text("{}")
    (folder / "empty").mkdir()
    names = ("no-tests", "bad-class", "table.csv", "split.json", "empty")
    return {name: folder / name for name in names}


@pytest.mark.parametrize("protocol", ["base-to-new", "few-shot", "cross-dataset"])
def test_all_datasets_are_checked_before_anything_is_trained(
    run: Run, paints: Path, tiny_folder: Path, tmp_path: Path, protocol: str
) -> None:
    bad = bad_datasets(tmp_path)

    answer = run(
        "protocol", protocol, paints, *bad.values(), "--methods", "coop",
        "--backbone", tiny_folder, "--out", tmp_path / "run", *QUICK,
    )  # fmt: skip

    assert answer.exit_code == 2
    first, *faults = answer.stderr.splitlines()
    assert first == "Error: The run cannot start:"
    assert len(faults) == len(bad)
    for name, fault in zip(bad, faults, strict=True):
        assert fault.startswith("  - ")
        assert name.partition(".")[0] in fault
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("protocol", ["base-to-new", "few-shot", "cross-dataset"])
def test_all_missing_datasets_are_listed_at_once(
    run: Run, paints: Path, tmp_path: Path, protocol: str
) -> None:
    gone = [tmp_path / name for name in ("first", "second", "third.csv")]

    answer = run(
        "protocol", protocol, paints, *gone, "--backbone", "no/such", "--out", tmp_path / "run"
    )

    assert answer.exit_code == 2
    first, *lines = answer.stderr.splitlines()
    assert first == "Error: Datasets are missing:"
    assert all(str(path) in line for path, line in zip(gone, lines, strict=True))


def test_missing_domains_are_listed_at_once(run: Run, paints: Path, tmp_path: Path) -> None:
    gone = [tmp_path / name for name in ("chalk", "ink")]
    domains = [word for path in gone for word in ("--domain", f"{path.name}={path}")]

    answer = run(
        "protocol", "domain-generalization", paints, *domains, "--backbone", "no/such",
        "--out", tmp_path / "run",
    )  # fmt: skip

    assert answer.exit_code == 2
    lines = answer.stderr.splitlines()[1:]
    assert [line.split(":")[0] for line in lines] == ["  - chalk", "  - ink"]


def test_requested_benchmarks_that_are_missing_are_listed_at_once(run: Run, tmp_path: Path) -> None:
    answer = run(
        "reproduce", "few-shot", "--datasets-root", tmp_path, "--datasets", "eurosat,dtd",
        "--backbone", "no/such", "--out", tmp_path / "run",
    )  # fmt: skip

    assert answer.exit_code == 2
    assert [line.split(":")[0] for line in answer.stderr.splitlines()[1:]] == [
        "  - dtd", "  - eurosat",
    ]  # fmt: skip


@pytest.mark.parametrize("damage", ["settings", "lines"])
def test_a_run_folder_of_other_results_is_refused_for_all_datasets_at_once(
    run: Run, paints: Path, tiny_folder: Path, tmp_path: Path, damage: str
) -> None:
    second = draw_dataset(tmp_path / "second", train=4, test=2)
    arguments = (
        "protocol", "few-shot", paints, second, "--methods", "zero-shot", "--seeds", "1",
        "--shots", "1,2", "--backbone", tiny_folder, "--out", tmp_path / "run", *QUICK,
    )  # fmt: skip
    assert run(*arguments).exit_code == 0
    file = tmp_path / "run" / "results.jsonl"
    before = file.read_bytes()
    if damage == "lines":
        file.write_bytes(b"nonsense\n" + before)

    answer = run(*arguments, *(("--set", "n_ctx=5") if damage == "settings" else ()))

    assert answer.exit_code == 2
    if damage == "settings":
        faults = answer.stderr.splitlines()[1:]
        assert len(faults) == 4  # two datasets with two numbers of shots each
        assert all("with other settings" in fault and "n_ctx was" in fault for fault in faults)
        assert file.read_bytes() == before
    else:
        assert answer.stderr.startswith(f"Error: {file}, line 1 is not a protocol result")
        assert answer.stderr.count("\n") == 1


def stored(folder: Path) -> dict[str, bytes]:
    """Content of a run folder, without times."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            found[str(path.relative_to(folder))] = path.read_bytes()
    for name, content in found.items():
        if name.endswith(".jsonl"):
            lines = [json.loads(line) for line in content.splitlines()]
            found[name] = json.dumps([line | {"seconds": None} for line in lines]).encode()
    return found


SIDE_BY_SIDE = {
    "few-shot": ("--shots", "1,2", "--datasets", "paints", "--methods", "coop,vpt"),
    "base-to-new": ("--shots", "2", "--methods", "zero-shot,dip,maple"),
    "cross-dataset": ("--shots", "2", "--methods", "zero-shot,coop,vpt"),
}


@pytest.mark.long
@pytest.mark.parametrize("name", SIDE_BY_SIDE)
def test_the_results_side_by_side_are_those_of_one_after_the_other(
    name: str, paints: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    second = draw_dataset(tmp_path / "second", train=4, test=2)

    def done(out: str, *options: str) -> subprocess.CompletedProcess[str]:
        words = ("protocol", name, paints, second, "--seeds", "1,2", "--backbone", tiny_folder,
                 "--out", tmp_path / out, *SIDE_BY_SIDE[name], *QUICK, *options)  # fmt: skip
        finished = subprocess.run(
            [sys.executable, "-m", "prompt_serve", *map(str, words)],
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            timeout=TIMEOUT_S,
        )
        assert finished.returncode == 0, finished.stderr
        return finished

    def learned(finished: subprocess.CompletedProcess[str]) -> list[str]:
        """Lines about results; Ray adds others."""
        return sorted(line for line in finished.stderr.splitlines() if line.startswith(name))

    alone = done("alone")
    assert len(learned(alone)) == len(read_results(tmp_path / "alone"))

    for engine in ("processes", "ray") if find_spec("ray") else ("processes",):
        beside = done(engine, "--engine", engine)

        assert stored(tmp_path / engine) == stored(tmp_path / "alone")
        assert beside.stdout == alone.stdout
        assert learned(beside) == learned(alone)
    again = done("processes", "--engine", "processes")
    assert again.stdout == alone.stdout
    assert learned(again) == []  # nothing was trained again


@pytest.mark.long
def test_a_part_that_fails_is_named_and_the_others_are_stored(
    run: Run, paints: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    few = draw_dataset(tmp_path / "few", train=1, test=2)

    answer = run(
        "protocol", "few-shot", few, paints, "--methods", "coop", "--seeds", "1", "--shots", "2",
        "--backbone", tiny_folder, "--out", tmp_path / "run", "--set", "n_ctx=200",
        "--engine", "processes", *QUICK,
    )  # fmt: skip

    assert answer.exit_code == 1, answer.output
    assert "Error: 2 parts of the run failed" in answer.stderr
    assert "few, coop: " in answer.stderr
    assert "Traceback" not in answer.stderr
