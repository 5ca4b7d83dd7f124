"""``prompt-serve methods``: list the methods, and the settings of each."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from prompt_serve.training.methods.base import Method


@click.command()
@click.argument("name", required=False)
def methods(name: str | None) -> None:
    """List the methods, or show the settings of the method NAME.

    Example: prompt-serve methods dip
    """
    from prompt_serve.errors import did_you_mean
    from prompt_serve.training.methods import METHODS

    if name is None:
        width = max(map(len, METHODS))
        click.echo("\n".join(f"{n:<{width}}  {m.summary}" for n, m in METHODS.items()))
    elif name in METHODS:
        click.echo("\n".join(_lines(METHODS[name])))
    else:
        raise click.BadParameter(
            f"{name!r} is none of {', '.join(METHODS)}.{did_you_mean(name, METHODS)}"
        )


def _lines(method: "Method[Any]") -> Iterable[str]:
    from prompt_serve.training.config import user_settings
    from prompt_serve.training.settings import defaults_of, settings_of

    yield f"{method.name}: {method.summary}"
    if method.paper:
        yield f"Source: {method.paper}."
    if method.learner:
        rates = ", ".join(f"{rate:g}" for rate in method.learning_rates)
        yield f"Absolute learning rate: {method.learning_rate:g}; auto tries {rates}."
    if method.n_ctx:
        yield f"Vectors: {method.n_ctx}, unless --n-ctx is given."
    own = settings_of(method.settings)
    defaults = {**defaults_of(method.settings), **user_settings(method)}
    if own:
        yield ""
        yield f"Settings (prompt-serve train --method {method.name} --help lists all):"
    for name, setting in own.items():
        yield f"  --{name.replace('_', '-'):<20} {setting.help} [{setting.shown(defaults[name])}]"
