"""The settings of a training run: frozen, checked when made, all faults reported at once."""

import dataclasses
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args

from prompt_serve.errors import ConfigInvalid, PromptFileInvalid
from prompt_serve.prompt_file import check_templates
from prompt_serve.schemas import DEFAULT_TEMPLATE
from prompt_serve.types import ClassPosition

Init = Literal["template", "random"]
AUTO: Final = "auto"


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What a prompt is learned with; saved in the prompt file under ``training``.

    Raises:
        ConfigInvalid: some settings are out of range; the error lists them all.
    """

    method: str = "dip"  # a name in prompt_serve.training.methods
    shots: int = 16  # training images a class; 0 takes all
    seed: int = 1  # of the draw of images, the views, the initial numbers and the batches
    fewer_shots_ok: bool = False  # classes with fewer images than shots give all they have

    template: str = DEFAULT_TEMPLATE  # its words before {} are where learning starts
    templates: tuple[str, ...] = ()  # zero-shot only: an ensemble, instead of ``template``
    n_ctx: int | None = None  # M, learned vectors; None: as many as the template has tokens there
    init: Init = "template"  # what CoOp's context starts as: the template's words, or N(0, std^2)
    init_std: float = 0.02  # of random initial numbers
    class_position: ClassPosition = "end"  # of the class name among the learned vectors
    class_specific: bool = False  # CoOp only: every class learns a context of its own
    rank: int = 1  # R of DIP's factors
    dropout: float = 0.0  # p of DIP's dropout on the product of its factors
    frozen_init: bool = True  # DIP: add the product to the template's words, or to nothing

    epochs: int = 50  # the first is a warm-up at a learning rate of 1e-5
    batch_size: int = 32  # images a step
    learning_rate: float | Literal["auto"] | None = None  # None: the method's; auto: by validation
    momentum: float = 0.9  # of SGD
    weight_decay: float = 5e-4  # of SGD
    views: int = 16  # K augmented views an image to draw from; 0: the plain view only

    def __post_init__(self) -> None:
        object.__setattr__(self, "templates", tuple(self.templates))
        faults = [*self._number_faults(), *self._choice_faults(), *self._template_faults()]
        if faults:
            raise ConfigInvalid("The training settings are not valid:", faults)

    def _number_faults(self) -> list[str]:
        faults = [
            f"{name} is {value!r}; wanted a whole number from {low:,} to {high:,}"
            for name, (low, high) in _WHOLE.items()
            if not _is_whole(value := getattr(self, name), low, high)
            and not (name == "n_ctx" and value is None)
        ]
        faults += [
            f"{name} is {value!r}; wanted a number {text}"
            for name, (low, high, text) in _REAL.items()
            if not _is_real(value := getattr(self, name), low, high)
            and not (name == "learning_rate" and value in (None, AUTO))
        ]
        return faults

    def _choice_faults(self) -> list[str]:
        # The methods need torch; the settings do not, until they are used.
        from prompt_serve.training.methods import METHODS

        choices: dict[str, tuple[object, ...]] = {
            "method": tuple(METHODS),
            "init": get_args(Init),
            "class_position": get_args(ClassPosition),
            **dict.fromkeys(("fewer_shots_ok", "class_specific", "frozen_init"), (True, False)),
        }
        return [
            f"{name} is {getattr(self, name)!r}; wanted one of {', '.join(map(repr, wanted))}"
            for name, wanted in choices.items()
            if getattr(self, name) not in wanted
        ]

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

    def replace(self, **changes: Any) -> "TrainConfig":
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """As saved in a prompt file: JSON types only."""
        return {**dataclasses.asdict(self), "templates": list(self.templates)}


# Inclusive bounds.
_WHOLE: dict[str, tuple[int, int]] = {
    "shots": (0, 1_000_000),
    "seed": (0, 2**63 - 1),
    "n_ctx": (1, 1_000),
    "rank": (1, 1_000),
    "epochs": (1, 1_000_000),
    "batch_size": (1, 1_000_000),
    "views": (0, 10_000),
}
_REAL: dict[str, tuple[float, float, str]] = {
    "init_std": (0.0, 10.0, "from 0 to 10"),
    "dropout": (0.0, 0.99, "from 0 to 0.99"),
    "learning_rate": (1e-9, 1e4, "from 1e-9 to 10,000, or 'auto'"),
    "momentum": (0.0, 0.999, "from 0 to 0.999"),
    "weight_decay": (0.0, 10.0, "from 0 to 10"),
}


def make_config(settings: Mapping[str, Any]) -> TrainConfig:
    """A configuration from loose settings, such as those of a file.

    Raises:
        ConfigInvalid: some are unknown or out of range.
    """
    known = {field.name for field in dataclasses.fields(TrainConfig)}
    unknown = [f"{name} is no setting" for name in settings if name not in known]
    try:
        config = TrainConfig(**{name: v for name, v in settings.items() if name in known})
    except ConfigInvalid as error:
        raise ConfigInvalid(
            "The training settings are not valid:", [*unknown, *error.faults]
        ) from error
    if unknown:
        raise ConfigInvalid(
            f"The training settings are not valid; there are {', '.join(sorted(known))}:", unknown
        )
    return config


def read_config_file(path: Path) -> dict[str, Any]:
    """The settings in a TOML file, at its top level or in a table ``[train]``; unchecked.

    Raises:
        ConfigInvalid: there is no such file, or it is not TOML.
    """
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigInvalid(f"{path} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigInvalid(f"{path} is not TOML: {error}.") from error
    table = settings.pop("train", {})
    return {**settings, **table} if isinstance(table, dict) else {**settings, "train": table}


def _is_whole(value: object, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _is_real(value: object, low: float, high: float) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and low <= value <= high  # type: ignore[arg-type, operator]  # it is a number by now
