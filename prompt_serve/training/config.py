"""The configuration of a training run: frozen, checked when made, all faults reported at once.

``TrainConfig`` holds what all methods share, and the settings of the one method that is trained.
Files, prompt files and callers name both kinds in one flat table; ``make_config`` sorts them.
"""

import dataclasses
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from prompt_serve.errors import ConfigInvalid, PromptFileInvalid, did_you_mean
from prompt_serve.prompts.prompt_file import check_templates
from prompt_serve.schemas import DEFAULT_TEMPLATE
from prompt_serve.text_files import is_utf8, not_utf8, read_text
from prompt_serve.training.methods import METHODS, find_method
from prompt_serve.training.settings import (
    AUTO,
    MethodSettings,
    choice,
    number,
    settings_of,
    switch,
    value_faults,
    whole,
)

if TYPE_CHECKING:
    from prompt_serve.training.methods.base import Method

TowerPrecision = Literal["fp32", "bf16", "fp16"]
StepUnit = Literal["absolute", "relative"]
DEFAULT_METHOD: Final = "dip"
RELATIVE_RATE: Final = 0.01  # of all methods, where learning rates are relative
RELATIVE_RATES: Final = (0.002, 0.01, 0.05)  # tried by ``--learning-rate auto``
# Defaults of ``prompt-serve train`` for methods that learn step by step, where they differ from
# those below, which are the papers'. ``Method.user_settings`` has those of single methods.
USER_SETTINGS: Final[Mapping[str, Any]] = {
    "shots": 0,
    "augmentation": "none",
    "epochs": 20,
    "min_steps": 3_000,
    "step_unit": "relative",
}
# The image tower runs at every step: fewer and smaller ones.
USER_IMAGE_SETTINGS: Final[Mapping[str, Any]] = {"batch_size": 8, "epochs": 10, "min_steps": 400}


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything a prompt is learned with; saved in the prompt file under ``training``.

    Raises:
        ConfigInvalid: some settings are out of range, or ``settings`` are those of another method;
            the error lists all faults.
    """

    method: str  # a name in METHODS
    settings: MethodSettings  # those of that method

    # Data.
    shots: int = whole(16, 0, 1_000_000, "Training images per class; 0 for all.")
    seed: int = whole(1, 0, 2**63 - 1, "Random seed for sampling, augmentation and initialization.")
    fewer_shots_ok: bool = switch(
        False, "Use all images of a class that has fewer than --shots, instead of an error."
    )
    augmentation: Literal["none", "light", "crops", "auto"] = choice(
        "crops", ("none", "light", "crops", AUTO),
        "Augmented views: none, light crops without flips, or CoOp's crops of 8 to 100 % with "
        "flips; auto picks by validation.",
    )  # fmt: skip
    views: int = whole(
        16, 0, 10_000, "Augmented views per training image; 0 for the plain image only."
    )

    # Learning.
    template: str = DEFAULT_TEMPLATE  # learning starts from its words before {}
    templates: tuple[str, ...] = ()  # zero-shot only: an ensemble, instead of ``template``
    n_ctx: int | None = whole(
        None, 1, 1_000, "Number of learned vectors M.",
        unset="as many as the template has tokens",
    )  # fmt: skip
    init_std: float = number(0.02, 0.0, 10.0, "Standard deviation of random initial values.")
    epochs: int = whole(50, 1, 1_000_000, "Number of training epochs.")
    min_steps: int = whole(
        0, 0, 100_000_000, "Fewest training steps; epochs are added until they are reached."
    )
    batch_size: int = whole(32, 1, 1_000_000, "Images per training step.")
    learning_rate: float | Literal["auto"] | None = number(
        None, 1e-9, 1e4, "SGD learning rate at the start of the cosine; auto picks by validation.",
        also=(AUTO,), unset="the method's",
    )  # fmt: skip
    step_unit: StepUnit = choice(
        "absolute", get_args(StepUnit),
        "Unit of the learning rate: relative to the length of the context, which is one scale for "
        "all methods and backbones, or absolute, as in the papers.",
    )  # fmt: skip
    momentum: float = number(0.9, 0.0, 0.999, "SGD momentum.")
    weight_decay: float = number(5e-4, 0.0, 10.0, "SGD weight decay.")
    calibrate: bool = switch(True, "Fit a temperature to the validation images.")
    unknown_share: float = number(
        0.0, 0.0, 0.9,
        "Share of the validation images that may be answered with 'unknown'; 0 turns it off.",
    )  # fmt: skip

    # Backbone.
    precision: TowerPrecision = choice(
        "fp32", get_args(TowerPrecision),
        "Precision of the frozen towers in training; learned values are always fp32.",
    )  # fmt: skip

    def __post_init__(self) -> None:
        object.__setattr__(self, "templates", tuple(self.templates))
        faults = [*self._method_faults(), *value_faults(self), *self._template_faults()]
        if faults:
            raise ConfigInvalid("The training settings are invalid:", faults)

    def _method_faults(self) -> list[str]:
        try:
            expected = find_method(self.method).settings
        except ConfigInvalid as error:
            return [error.message]
        redefined = [name for name in SHARED if name in settings_of(expected)]
        if redefined:
            return [f"method {self.method!r} redefines shared settings: {', '.join(redefined)}"]
        if type(self.settings) is expected:
            return []
        given = type(self.settings).__name__
        return [f"settings are {given}; method {self.method!r} takes {expected.__name__}"]

    def _template_faults(self) -> list[str]:
        faults = []
        try:
            check_templates((self.template,), learned=True)
            check_templates(self.templates or (self.template,), learned=False)
        except (PromptFileInvalid, AttributeError, TypeError) as error:
            faults.append(f"template: {error}")
        if self.templates and self.method != "zero-shot":
            faults.append("templates (an ensemble) is for method 'zero-shot'; give one template")
        return faults

    @property
    def n_vectors(self) -> int | None:
        """M: ``n_ctx``, or else the method's; None: as many as the template has tokens."""
        return self.n_ctx or find_method(self.method).n_ctx

    def with_min_steps(self, n_images: int) -> "TrainConfig":
        """Return a copy with as many epochs as ``min_steps`` takes with ``n_images`` images."""
        steps_per_epoch = max(1, n_images // self.batch_size)
        epochs = max(self.epochs, -(-self.min_steps // steps_per_epoch))
        return self if epochs == self.epochs else dataclasses.replace(self, epochs=epochs)

    def shared(self) -> dict[str, Any]:
        """Return the settings that all methods share, by name; the method is not among them."""
        return {name: getattr(self, name) for name in SHARED if name != "method"}

    def own(self) -> dict[str, Any]:
        """Return the settings of the method alone, by name."""
        return {name: getattr(self.settings, name) for name in settings_of(type(self.settings))}

    def replace(self, **changes: Any) -> "TrainConfig":
        """Return a copy with other values; names as in ``make_config``, None for the default."""
        return make_config({"method": self.method, **self.shared(), **self.own(), **changes})

    def to_dict(self) -> dict[str, Any]:
        """Return one flat table of JSON types, as the prompt file stores it.

        ``LATER`` settings with the papers' value are left out, so that prompt files and results
        of the protocols stay as they were before there were such settings.
        """
        shared = self.shared()
        unchanged = [name for name in LATER if shared[name] == getattr(TrainConfig, name)]
        return {
            "method": self.method,
            **{name: value for name, value in shared.items() if name not in unchanged},
            **self.own(),
            "n_ctx": self.n_vectors,
            "templates": list(self.templates),
        }


LATER: Final = ("augmentation", "min_steps", "step_unit")
# Names of the settings that every method has.
SHARED: Final = tuple(f.name for f in dataclasses.fields(TrainConfig) if f.name != "settings")


def make_config(values: Mapping[str, Any] | None = None, /, **more: Any) -> TrainConfig:
    """Make a configuration from a flat table, such as that of a TOML or prompt file.

    Args:
        values: settings by name, those of the method beside the shared ones. A value of None
            stands for the default. Without ``method``, DIP is trained.
        more: further settings; they win over ``values``.

    Raises:
        ConfigInvalid: some settings are unknown, out of range or of another method; the error
            lists all faults.
    """
    given = {name: v for name, v in {**(values or {}), **more}.items() if v is not None}
    name = given.pop("method", DEFAULT_METHOD)
    shared = {key: given.pop(key) for key in SHARED if key in given}
    try:
        expected = find_method(name).settings
    except ConfigInvalid as error:
        raise _invalid([error.message, *_shared_faults(shared)]) from error
    known = settings_of(expected)
    foreign = {key: setting_owners(key) for key in given if key not in known}
    faults = [_foreign(key, name, owners) for key, owners in foreign.items()]
    settings, config = expected(), None
    try:
        settings = expected(**{key: value for key, value in given.items() if key in known})
    except ConfigInvalid as error:
        faults += error.faults
    try:
        config = TrainConfig(method=name, settings=settings, **shared)
    except ConfigInvalid as error:
        faults += error.faults
    if config is None or faults:
        raise _invalid(faults, () if all(foreign.values()) else (*SHARED, *known))
    return config


def with_user_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings for ``make_config``: those given, and else the defaults for users.

    A number of epochs that is given is not raised, and a number of views is not ignored. Where
    learning is to start from words, there are as many vectors as words.

    Args:
        values: settings by name; the method "auto" has the defaults that all methods share.
    """
    given = {name: value for name, value in values.items() if value is not None}
    name = given.get("method", DEFAULT_METHOD)
    defaults = dict(USER_SETTINGS) if name == AUTO else user_settings(find_method(name))
    if "epochs" in given:
        defaults.pop("min_steps", None)
    if given.get("views"):
        defaults.pop("augmentation", None)
    if given.get("init") == "template" or ("template" in given and "init" not in given):
        defaults.pop("n_ctx", None)
        defaults.pop("init", None)
    return {**defaults, **given}


def user_settings(method: "Method[Any]") -> dict[str, Any]:
    """Return the defaults of a method for users, as far as they differ from the papers'."""
    if method.learner is None:
        return {"shots": 0}
    prompts_images = method.prompts_images(method.settings())
    return {
        **USER_SETTINGS,
        **(USER_IMAGE_SETTINGS if prompts_images else {}),
        **method.user_settings,
    }


def setting_owners(name: str) -> tuple[str, ...]:
    """Return the methods that have ``name`` among their own settings."""
    return tuple(key for key, method in METHODS.items() if name in settings_of(method.settings))


def _shared_faults(shared: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the faults of shared settings that do not depend on the method."""
    try:
        make_config({**shared, "templates": (), "method": DEFAULT_METHOD})
    except ConfigInvalid as error:
        return error.faults
    return ()


def _foreign(key: str, method: str, owners: tuple[str, ...]) -> str:
    if not owners:
        known = [*SHARED, *settings_of(find_method(method).settings)]
        return f"{key} is not a setting.{did_you_mean(key, known)}".removesuffix(".")
    return f"{key} is not a setting of method {method!r}; it belongs to: {', '.join(owners)}"


def _invalid(faults: list[str], known: tuple[str, ...] = ()) -> ConfigInvalid:
    listed = f"; known settings are {', '.join(sorted(known))}" if known else ""
    return ConfigInvalid(f"The training settings are invalid{listed}:", faults)


def read_toml(path: Path) -> dict[str, Any]:
    """Return the values in a TOML file.

    Raises:
        ConfigInvalid: there is no such file, or it is not TOML.
    """
    try:
        text = read_text(path)
        values = tomllib.loads(text)
    except OSError as error:
        raise ConfigInvalid(f"{path} cannot be read: {error.strerror}.") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigInvalid(f"{path} is not TOML: {error}.") from error
    if not is_utf8(text):
        raise ConfigInvalid(not_utf8(path, text))
    return values


def read_config_file(path: Path) -> dict[str, Any]:
    """Return the settings in a TOML file, at its top level or in a table ``[train]``; unchecked.

    Raises:
        ConfigInvalid: there is no such file, or it is not TOML.
    """
    values = read_toml(path)
    table = values.pop("train", {})
    return {**values, **table} if isinstance(table, dict) else {**values, "train": table}
