"""``prompt-serve methods``: what can be learned, and the settings of each method."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from prompt_serve.training.methods.base import Method


@click.command()
@click.argument("name", required=False)
def methods(name: str | None) -> None:
    """List the methods, or show the settings of the method NAME.

    Example: prompt-serve methods dip
    """
    from prompt_serve.training.methods import METHODS

    if name is None:
        width = max(map(len, METHODS))
        click.echo("\n".join(f"{n:<{width}}  {m.summary}" for n, m in METHODS.items()))
    elif name in METHODS:
        click.echo("\n".join(_lines(METHODS[name])))
    else:
        raise click.BadParameter(f"{name!r} is none of {', '.join(METHODS)}.")


def _lines(method: "Method") -> Iterable[str]:
    from prompt_serve.training.config import TrainConfig, settings

    yield f"{method.name}: {method.summary}"
    if method.paper:
        yield f"Source: {method.paper}."
    if method.learner:
        rates = ", ".join(f"{rate:g}" for rate in method.learning_rates)
        yield f"Learning rate: {method.learning_rate:g}; auto tries {rates}."
    own = [name for name in settings() if name in method.settings]
    if own:
        yield ""
        yield "Settings of its own:"
    for name in own:
        value = method.defaults.get(name, getattr(TrainConfig(), name))
        shown = "" if value is None else f" [{value}]"
        help_ = settings()[name].help.partition(" [default")[0]
        yield f"  --{name.replace('_', '-'):<20} {help_}{shown}"
