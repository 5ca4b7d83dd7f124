"""Facts for people and programs: ``--json`` everywhere, tables, dates and counts."""

import ast
import itertools
import json
import re
from pathlib import Path
from typing import Any

import click
import pytest

import prompt_serve
from prompt_serve.cli.facts import print_table, to_the_second
from prompt_serve.errors import counted
from tests.cli.conftest import Run
from tests.cli.test_main import commands
from tests.drawings import draw_dataset
from tests.golden import GOLDEN, path_of

WITHOUT_JSON = {
    "serve": "the service runs until it is stopped",
    "tasks download": "the result is a file",
    "registry export": "the result is a file",
    "report": "the result is a file",
    "sign": "the result is a file",
    "tasks delete": "there is nothing left to describe",
}


@pytest.mark.parametrize(("name", "command"), list(commands()))
def test_every_command_offers_json_or_has_a_reason(name: str, command: click.Command) -> None:
    flags = [flag for parameter in command.params for flag in parameter.opts]

    assert ("--json" in flags) != (name in WITHOUT_JSON)


def parsed(text: str) -> list[Any]:
    """The documents of a text that is JSON and nothing else: one document, or one per line."""
    try:
        return [json.loads(text)]
    except ValueError:
        return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize(
    "arguments",
    [
        "methods",
        "methods dip",
        "methods zero-shot",
        "inspect PROMPT",
        "data list --datasets-root FOLDER",
        "registry info DATABASE",
        "registry migrate DATABASE",
        "keys create ci --role admin --expires 90d DATABASE",
        "keys list DATABASE",
        "keys audit DATABASE",
        "keys revoke shop DATABASE",
    ],
)
def test_standard_output_is_json_only(run: Run, tmp_path: Path, arguments: str) -> None:
    def output(*form: str) -> str:
        database = ["--database", f"sqlite:///{tmp_path / f'registry{len(form)}.db'}"]
        assert run("keys", "create", "shop", *database).exit_code == 0
        places = {
            "PROMPT": [str(path_of(next(iter(GOLDEN))))],
            "FOLDER": [str(tmp_path)],
            "DATABASE": database,
        }
        words = [part for word in arguments.split() for part in places.get(word, [word])]
        done = run(*words, *form)
        assert done.exit_code == 0, done.output
        return done.stdout

    assert parsed(output("--json"))
    with pytest.raises(ValueError, match=r"Expecting|Extra data"):
        json.loads(output())


@pytest.mark.parametrize(
    "options",
    [
        ["--method", "zero-shot"],
        ["--method", "class-vectors"],
        ["--method", "dip", "--epochs", "2", "--min-steps", "0", "--shots", "2"],
        ["--method", "dip", "--epochs", "2", "--min-steps", "0", "--shots", "2", "--seeds", "1,2"],
        ["--max-bytes", "100000", "--report", "REPORT"],
    ],
)
def test_training_is_described_as_json(
    run: Run, tmp_path: Path, tiny_folder: Path, options: list[str]
) -> None:
    photos = draw_dataset(tmp_path / "photos", train=4, test=2)
    page = tmp_path / "page.html"
    given = [str(page) if word == "REPORT" else word for word in options]

    done = run(
        "train", photos, "--backbone", tiny_folder, "--out", tmp_path / "p.safetensors",
        "--no-cache", *given, "--json",
    )  # fmt: skip

    assert done.exit_code == 0, done.output
    [document] = parsed(done.stdout)
    several = document if isinstance(document, list) else [document]
    assert len(several) == (2 if "--seeds" in options else 1)
    for described in several:
        file = Path(described["file"])
        shown = json.loads(run("inspect", file, "--json").stdout)
        assert described["file_bytes"] == file.stat().st_size
        for key in ("method", "class_names", "payload_bytes", "metrics", "training"):
            assert described[key] == shown[key]
    if "REPORT" in options:
        assert document["report"] == str(page)
        assert [row["chosen"] for row in document["candidates"]].count(True) == 1


def test_a_table_is_aligned_under_its_header(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [("a", "1,200", "x"), ("longer", "3", "")]

    print_table(("name", "classes", "tags"), rows, right={"classes"}, empty="None.")

    assert capsys.readouterr().out == (
        "name    classes  tags\n"
        "a         1,200  x\n"
        "longer        3\n"
    )  # fmt: skip


def test_a_table_without_rows_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("name", "tags"), [], empty="There are none. Make one: prompt-serve make")

    assert capsys.readouterr() == ("", "There are none. Make one: prompt-serve make\n")


@pytest.mark.parametrize(
    ("time", "shown"),
    [
        ("2026-01-01T00:00:00.123456+00:00", "2026-01-01T00:00:00Z"),
        ("2026-01-01T00:00:00.123+00:00", "2026-01-01T00:00:00Z"),
        ("2026-01-01T01:30:59+01:30", "2026-01-01T00:00:59Z"),
        ("2026-01-01T00:00:00Z", "2026-01-01T00:00:00Z"),
        ("2025-12-31T19:00:00.999999-05:00", "2026-01-01T00:00:00Z"),
        ("2026-01-01T12:00:00.5", "2026-01-01T12:00:00Z"),
        ("never", "never"),
        ("", ""),
    ],
)
def test_times_are_shown_in_utc_to_the_second(time: str, shown: str) -> None:
    assert to_the_second(time) == shown


@pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo", "America/New_York"])
def test_keys_have_times_in_utc_to_the_second(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zone: str
) -> None:
    monkeypatch.setenv("TZ", zone)
    database = ("--database", f"sqlite:///{tmp_path / 'registry.db'}")

    assert "There are no keys. Create one: " in run("keys", "list", *database).stderr
    created = run("keys", "create", "ci", "--expires", "2099-01-31T12:00:00+00:00", *database)
    assert "expires 2099-01-31T12:00:00Z." in created.stderr
    for words in (("list",), ("audit",)):
        shown = run("keys", *words, *database).stdout
        times = re.findall(r"\d{4}-\d\d-\d\dT\S*", shown)
        assert times
        assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", time) for time in times), shown
    past = run("keys", "create", "old", "--expires", "2001-01-31T12:00:00+00:00", *database)
    assert "would expire at 2001-01-31T12:00:00Z, which is in the past" in past.stderr


@pytest.mark.parametrize(
    ("n", "noun", "text"),
    [
        (0, "image", "0 images"),
        (1, "image", "1 image"),
        (1200, "image", "1,200 images"),
        (1, "class", "1 class"),
        (2, "class", "2 classes"),
        (3, "box", "3 boxes"),
        (2, "failed row", "2 failed rows"),
    ],
)
def test_counts_agree_with_their_nouns(n: int, noun: str, text: str) -> None:
    assert counted(n, noun) == text


_NOUNS = (
    "images classes tasks rows files prompts labels blocks seeds shots keys tags errors datasets "
    "candidates bytes"
).split()
# Of these, n is two or more, or no whole number.
_PLURAL = {"len(blocks)", "len(rows)", "speed", "spec.title", "path", "out.stat().st_size"}


def _formatted(package: Path) -> list[tuple[Path, str, str]]:
    """The values of all f-strings, each with the text that follows it."""
    found = []
    for path in sorted(package.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            values = node.values if isinstance(node, ast.JoinedStr) else []
            for value, text in itertools.pairwise(values):
                if isinstance(value, ast.FormattedValue) and isinstance(text, ast.Constant):
                    found.append((path, ast.unparse(value.value), str(text.value)))
    return found


def test_no_command_prints_a_count_with_a_fixed_plural() -> None:
    """``{n} images`` says "1 images"; ``counted`` does not."""
    cli = Path(prompt_serve.__file__).parent / "cli"
    plural = re.compile(rf" (?:[a-z]+ )?(?:{'|'.join(_NOUNS)})\b")
    found = _formatted(cli)

    assert len(found) > 100
    assert [
        f"{path.name}: {{{value}}}{text}"
        for path, value, text in found
        if plural.match(text) and value not in _PLURAL
    ] == []


def test_no_message_leaves_the_plural_to_the_reader() -> None:
    sources = sorted(Path(prompt_serve.__file__).parent.rglob("*.py"))

    texts = [
        (path.name, node.value)
        for path in sources
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]

    assert len(texts) > 1000
    assert [found for found in texts if re.search(r"[a-z]\((s|es)\)(\s|$)", found[1])] == []
