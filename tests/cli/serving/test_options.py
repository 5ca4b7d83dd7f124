"""Options that commands share: the service, its key, its database."""

from pathlib import Path

import click
import pytest

from tests.cli.conftest import Run
from tests.cli.test_main import commands

COMMANDS = dict(commands())


def options_of(flag: str) -> dict[str, click.Option]:
    return {
        name: option
        for name, command in COMMANDS.items()
        for option in command.params
        if isinstance(option, click.Option) and flag in option.opts
    }


@pytest.mark.parametrize("flag", ["--url", "--api-key", "--timeout", "--database"])
def test_an_option_is_the_same_on_all_commands(flag: str) -> None:
    options = options_of(flag)

    assert len(options) > 5
    texts = {(option.help or "").partition("  [default")[0] for option in options.values()}
    assert len(texts) == 1
    assert len({(option.envvar, str(option.default)) for option in options.values()}) == 1


def test_the_commands_of_a_group_take_the_same_targets() -> None:
    urls, databases = set(options_of("--url")), set(options_of("--database"))

    for group, taken in (("tasks", urls), ("keys", databases), ("registry", databases)):
        members = {name for name in COMMANDS if name.startswith(f"{group} ")}
        assert members <= taken
    assert {"classify", "score"} <= urls
    assert urls == set(options_of("--api-key")) == set(options_of("--timeout"))


@pytest.mark.parametrize("command", [("export", "--out", "OUT"), ("import", "IN")])
@pytest.mark.parametrize("option", [("--url", "http://localhost:1"), ("--api-key", "ps_x")])
@pytest.mark.parametrize("first", [True, False])
def test_a_database_and_a_service_exclude_each_other(
    run: Run,
    tmp_path: Path,
    command: tuple[str, ...],
    option: tuple[str, str],
    first: bool,
) -> None:
    (tmp_path / "in.zip").write_bytes(b"")
    places = {"OUT": f"{tmp_path}/out.zip", "IN": f"{tmp_path}/in.zip"}
    words = [places.get(word, word) for word in command]
    database = ("--database", f"sqlite:///{tmp_path}/x.db")
    both = (*option, *database) if first else (*database, *option)

    done = run("registry", *words, *both)

    assert done.exit_code == 2
    assert f"--database and {option[0]} exclude each other" in done.stderr


def test_a_service_of_the_environment_does_not_exclude_a_database(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROMPT_SERVE_URL", "http://localhost:1")
    monkeypatch.setenv("PROMPT_SERVE_API_KEY", "ps_x")

    done = run(
        "registry", "export", "--out", f"{tmp_path}/x.zip", "--database", f"sqlite:///{tmp_path}/x"
    )

    assert done.exit_code == 0, done.output


def test_a_key_of_the_command_line_is_sent(run: Run) -> None:
    done = run("tasks", "list", "--url", "http://localhost:1", "--api-key", "no\nkey")

    assert done.exit_code == 2
    assert "contains characters that no key has" in done.stderr
