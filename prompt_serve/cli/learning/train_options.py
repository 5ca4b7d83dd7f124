"""Options of ``prompt-serve train``: those of all methods, in groups, and those of one method.

They are made from the settings, so that options and settings cannot differ.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from prompt_serve.cli.learning.select_method import AUTO_METHOD, auto_options
from prompt_serve.cli.learning.train_without_torch import (
    CLASS_VECTORS,
    learns_without_torch,
    torch_is_missing,
)
from prompt_serve.cli.user_path import UserPath
from prompt_serve.errors import ConfigInvalid
from prompt_serve.training.config import (
    RELATIVE_RATE,
    USER_SETTINGS,
    TrainConfig,
    read_config_file,
    setting_owners,
    user_settings,
)
from prompt_serve.training.methods import find_method
from prompt_serve.training.methods.class_vector_settings import ClassVectorSettings
from prompt_serve.training.settings import Setting, defaults_of, settings_of

if TYPE_CHECKING:
    from prompt_serve.training.methods.base import Method

GROUPS: Mapping[str, tuple[str, ...]] = {
    "Data": (
        "images", "renames", "multi_label", "templates", "shots", "fewer_shots_ok", "seed",
        "seeds", "augmentation", "views",
    ),
    "Learning": (
        "method", "config_file", "epochs", "min_steps", "batch_size", "learning_rate",
        "step_unit", "momentum", "weight_decay", "n_ctx", "init_std", "calibrate", "unknown_share",
        "sketch",
    ),
    "Output": (
        "out", "report", "name", "sign", "stamp", "log_file", "checkpoint", "quiet", "as_json",
    ),
    "Tracking": ("track", "track_uri", "track_experiment", "track_dir", "track_run"),
    "Backbone": ("backbone", "precision", "device", "workers", "cache_folder", "no_cache"),
}  # fmt: skip
_META_KEY = "prompt_serve.train.method"


@dataclass(frozen=True, kw_only=True)
class NamedMethod:
    """The method that the command line or its settings file names."""

    name: str
    method: "Method[Any] | None"  # None: auto, or torch is not installed

    @property
    def heading(self) -> str:
        """Heading of the method's own options."""
        source = self.method.paper if self.method else ""
        return f"Settings of {self.name} ({source})" if source else f"Settings of {self.name}"

    def options(self) -> list[click.Parameter]:
        """Options that only this method has."""
        if self.name == AUTO_METHOD:
            return auto_options()
        if self.name == CLASS_VECTORS:
            return setting_options(ClassVectorSettings)
        if self.method is None:
            return []
        return setting_options(self.method.settings, self.user_settings())

    def shared_options(self) -> list[click.Parameter]:
        """Options of the settings that all methods have, with this method's defaults."""
        defaults: dict[str, Any] = {}
        if self.method is not None and self.method.learner is not None:
            defaults["learning_rate"] = RELATIVE_RATE
        if self.method is not None and self.method.n_ctx is not None:
            defaults["n_ctx"] = self.method.n_ctx
        return setting_options(TrainConfig, {**defaults, **self.user_settings()})

    def user_settings(self) -> Mapping[str, Any]:
        """Defaults of the command; protocols have the papers'."""
        return USER_SETTINGS if self.method is None else user_settings(self.method)


class TrainCommand(click.Command):
    """A command whose options depend on its ``--method``, or on that of its ``--config`` file."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[_META_KEY] = named = _named_method(ctx, args)
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            owners = _owners(error.option_name)
            if not owners:
                raise
            raise click.UsageError(
                f"{error.option_name} is not an option of method {named.name!r}; it belongs to: "
                f"{', '.join(owners)}.",
                ctx,
            ) from error

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        named: NamedMethod | None = ctx.meta.get(_META_KEY)
        own = [*named.shared_options(), *named.options()] if named else []
        return [*super().get_params(ctx), *own]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        named: NamedMethod = ctx.meta[_META_KEY]
        options = [option for option in self.get_params(ctx) if isinstance(option, click.Option)]
        by_name = {option.name: option for option in options}
        groups = {title: [by_name.pop(name) for name in names] for title, names in GROUPS.items()}
        groups[named.heading] = [by_name.pop(option.name) for option in named.options()]
        groups["Other options"] = list(by_name.values())
        for title, parameters in groups.items():
            _write_group(ctx, formatter, title, parameters)
        if named.method is None and named.name not in (AUTO_METHOD, CLASS_VECTORS):
            formatter.write_paragraph()
            formatter.write_text(
                f"The settings of method {named.name} are listed once torch is installed: "
                f"pip install 'prompt-serve[train]'"
            )


def _write_group(
    ctx: click.Context,
    formatter: click.HelpFormatter,
    title: str,
    parameters: Iterable[click.Parameter],
) -> None:
    records = [parameter.get_help_record(ctx) for parameter in parameters]
    listed = [record for record in records if record]
    if listed:
        with formatter.section(title):
            formatter.write_dl(listed)


def _named_method(ctx: click.Context, args: Sequence[str]) -> NamedMethod:
    """Find the method before anything else is parsed."""
    scan = click.Command(
        "scan",
        params=[
            click.Option(["--method"]),
            click.Option(["--config", "config_file"], type=UserPath()),
        ],
        add_help_option=False,
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    )
    with scan.make_context("scan", list(args), resilient_parsing=True) as found:
        name, path = found.params["method"], found.params["config_file"]
    if name is None and path is not None:
        name = read_config_file(path).get("method")
    if name is None:
        name = AUTO_METHOD
    if name == AUTO_METHOD or (name == CLASS_VECTORS and torch_is_missing()):
        return NamedMethod(name=name, method=None)
    try:
        return NamedMethod(name=name, method=find_method(name))
    except ConfigInvalid:
        if not ctx.resilient_parsing:  # of a command line that is not complete yet
            raise
        return NamedMethod(name=AUTO_METHOD, method=None)
    except ImportError:
        # Help must work without torch; anything else says what is missing.
        if not set(args) & set(ctx.help_option_names):
            learns_without_torch(name)  # raises, where torch is what is missing
            raise
        return NamedMethod(name=name, method=None)


def _owners(flag: str) -> tuple[str, ...]:
    """Return the methods that have an option."""
    for name in (flag.removeprefix("--"), flag.removeprefix("--no-")):
        owners = setting_owners(name.replace("-", "_"))
        if owners:
            return owners
    return (AUTO_METHOD,) if any(flag in option.opts for option in auto_options()) else ()


def setting_options(
    described: type, defaults: Mapping[str, Any] | None = None
) -> list[click.Parameter]:
    """Return an option for each setting of a class; the value of one that is not given is None.

    Args:
        described: a dataclass of settings.
        defaults: shown in place of the defaults of the class.
    """
    shown = {**defaults_of(described), **(defaults or {})}
    return [_option(name, setting, shown[name]) for name, setting in settings_of(described).items()]


def _option(name: str, setting: Setting, default: Any) -> click.Option:
    flag = f"--{name.replace('_', '-')}"
    help_ = f"{setting.help} [default: {setting.shown(default)}]"
    if set(setting.choices) == {True, False}:
        off = f"--no-{name.replace('_', '-')}"
        return click.Option([f"{flag}/{off}", name], default=None, help=help_)
    if setting.choices:
        kind: Any = type(setting.choices[0])
        metavar = "|".join(map(str, setting.choices))
    else:
        kind = _Number(setting)
        words = [word for word in setting.also if isinstance(word, str)]
        metavar = "|".join([kind.name.upper(), *words])
    return click.Option([flag, name], type=kind, metavar=metavar, default=None, help=help_)


class _Number(click.ParamType):  # type: ignore[type-arg]  # generic in the newest click only
    """A whole number or any number, or one of a few words ("auto")."""

    def __init__(self, setting: Setting) -> None:
        self._whole = setting.whole
        self._words = {word for word in setting.also if isinstance(word, str)}
        self.name = "integer" if setting.whole else "float"

    def convert(
        self, value: Any, option: click.Parameter | None, context: click.Context | None
    ) -> float | str:
        if value in self._words:
            return str(value)
        try:
            return int(value) if self._whole else float(value)
        except ValueError:
            kind = "a whole number" if self._whole else "a number"
            expected = " or ".join([kind, *map(repr, sorted(self._words))])
            self.fail(f"{value!r} is not {expected}.", option, context)
