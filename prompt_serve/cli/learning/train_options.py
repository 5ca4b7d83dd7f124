"""The options of ``prompt-serve train`` that are settings of the same name, made from where the
settings are defined, so that the two cannot differ."""

import dataclasses
from collections.abc import Callable
from typing import Any

import click

from prompt_serve.training.config import Setting, TrainConfig, settings

OWN_SETTINGS = "Settings of single methods (prompt-serve methods NAME lists them)"


class _Number(click.ParamType):  # type: ignore[type-arg]  # generic in the newest click only
    """A whole number or any number, or one of a few words ("auto")."""

    def __init__(self, setting: Setting) -> None:
        self._make: Callable[[str], float] = int if setting.whole else float
        self._words = {word for word in setting.also if isinstance(word, str)}
        self.name = "integer" if setting.whole else "float"

    def convert(
        self, value: Any, option: click.Parameter | None, context: click.Context | None
    ) -> float | str:
        if value in self._words:
            return str(value)
        try:
            return self._make(value)
        except ValueError:
            wanted = " or ".join(["a number", *map(repr, sorted(self._words))])
            self.fail(f"{value!r} is not {wanted}.", option, context)


class SectionedCommand(click.Command):
    """Lists the options of single methods in a section of their own."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        own = {name for name, setting in settings().items() if setting.own}
        general: list[tuple[str, str]] = []
        special: list[tuple[str, str]] = []
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record and isinstance(parameter, click.Option):
                (special if parameter.name in own else general).append(record)
        for title, records in (("Options", general), (OWN_SETTINGS, special)):
            with formatter.section(title):
                formatter.write_dl(records)


def setting_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add an option for every setting; one that is not given is None."""
    defaults = {field.name: field.default for field in dataclasses.fields(TrainConfig)}
    for name, setting in reversed(settings().items()):
        command = _option(name, setting, defaults[name])(command)
    return command


def _option(name: str, setting: Setting, default: Any) -> Callable[..., Any]:
    flag = f"--{name.replace('_', '-')}"
    help_ = setting.help
    if set(setting.choices) == {True, False}:
        shown = "" if "[default" in help_ else f" [default: {'yes' if default else 'no'}]"
        off = f"--no-{name.replace('_', '-')}"
        return click.option(f"{flag}/{off}", name, default=None, help=help_ + shown)
    if default is not None and "[default" not in help_:
        help_ = f"{help_} [default: {default}]"
    kind: Any = str
    if setting.choices:
        kind = type(setting.choices[0])
    elif setting.low is not None:
        kind = _Number(setting)
    return click.option(flag, name, type=kind, default=None, help=help_)
