"""``prompt-serve methods``: list the methods, and the settings of each."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click

from prompt_serve.cli.facts import json_option, print_document, print_table

if TYPE_CHECKING:
    from prompt_serve.training.methods.base import Method
    from prompt_serve.training.settings import Setting


@click.command()
@click.argument("name", required=False)
@json_option
def methods(name: str | None, as_json: bool) -> None:
    """List the methods, or show the settings of the method NAME.

    Example: prompt-serve methods dip
    """
    from prompt_serve.errors import did_you_mean
    from prompt_serve.training.methods import METHODS

    if name is None and as_json:
        print_document([{"name": n, "summary": m.summary} for n, m in METHODS.items()])
    elif name is None:
        print_table(
            ("method", "summary"), ((n, m.summary) for n, m in METHODS.items()), empty="No methods."
        )
    elif name in METHODS:
        if as_json:
            print_document(_described(METHODS[name]))
        else:
            click.echo("\n".join(_lines(METHODS[name])))
    else:
        raise click.BadParameter(
            f"{name!r} is none of {', '.join(METHODS)}.{did_you_mean(name, METHODS)}"
        )


def _own_settings(method: "Method[Any]") -> tuple[dict[str, "Setting"], dict[str, Any]]:
    """Return the settings of a method, and the values that ``train`` uses for them."""
    from prompt_serve.training.config import user_settings
    from prompt_serve.training.settings import defaults_of, settings_of

    defaults = {**defaults_of(method.settings), **user_settings(method)}
    return dict(settings_of(method.settings)), defaults


def _described(method: "Method[Any]") -> dict[str, Any]:
    own, defaults = _own_settings(method)
    return {
        "name": method.name,
        "summary": method.summary,
        "source": method.paper or None,
        "learning_rate": method.learning_rate if method.learner else None,
        "learning_rates": list(method.learning_rates) if method.learner else [],
        "n_ctx": method.n_ctx or None,
        "settings": {
            name: {"help": setting.help, "default": defaults[name]} for name, setting in own.items()
        },
    }


def _lines(method: "Method[Any]") -> Iterable[str]:
    yield f"{method.name}: {method.summary}"
    if method.paper:
        yield f"Source: {method.paper}."
    if method.learner:
        rates = ", ".join(f"{rate:g}" for rate in method.learning_rates)
        yield f"Absolute learning rate: {method.learning_rate:g}; auto tries {rates}."
    if method.n_ctx:
        yield f"Vectors: {method.n_ctx}, unless --n-ctx is given."
    own, defaults = _own_settings(method)
    if own:
        yield ""
        yield f"Settings (prompt-serve train --method {method.name} --help lists all):"
    for name, setting in own.items():
        yield f"  --{name.replace('_', '-'):<20} {setting.help} [{setting.shown(defaults[name])}]"
