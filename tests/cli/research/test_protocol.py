"""``prompt-serve protocol`` and ``reproduce`` on small drawn datasets and the shipped sample."""

import json
from pathlib import Path

import pytest

from prompt_serve.research.protocols.results import read_results
from tests.cli.conftest import Run
from tests.drawings import draw_dataset

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
