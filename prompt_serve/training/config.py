"""The settings of a training run: frozen, checked when made, all faults reported at once.

Every setting is described once, where it is defined: its bounds or choices, and the help that the
command line shows. Settings of single methods are refused by the others, never quietly ignored.
"""

import dataclasses
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, cast, get_args

from prompt_serve.errors import ConfigInvalid, PromptFileInvalid
from prompt_serve.prompts.prompt_file import check_templates
from prompt_serve.prompts.quantized_tensor import BITS
from prompt_serve.schemas import DEFAULT_TEMPLATE
from prompt_serve.types import ClassPosition

Init = Literal["template", "random"]
Branch = Literal["text", "image"]
Quantization = Literal["qat", "ptq"]
PruneScore = Literal["snip", "gradient", "l2"]
TowerPrecision = Literal["fp32", "bf16", "fp16"]
AUTO: Final = "auto"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is known of a setting beside its default."""

    help: str
    low: float | None = None  # inclusive bounds of a number
    high: float | None = None
    whole: bool = False
    choices: tuple[object, ...] = ()
    also: tuple[object, ...] = ()  # allowed beside what the bounds or choices allow
    own: bool = False  # of single methods (``Method.settings``), refused by the others

    def fault(self, name: str, value: object) -> str | None:
        """What is wrong with ``value``, or None."""
        if any(value is other or (value == other and value is not True) for other in self.also):
            return None
        if self.choices:
            if value in self.choices and type(value) in {type(c) for c in self.choices}:
                return None
            return f"{name} is {value!r}; wanted one of {', '.join(map(repr, self.choices))}"
        if self.low is None or self.high is None:
            return None
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if is_number and not (self.whole and not isinstance(value, int)):
            number = cast(float, value)
            if math.isfinite(number) and self.low <= number <= self.high:
                return None
        kind = "a whole number" if self.whole else "a number"
        also = "".join(f", or {other!r}" for other in self.also if other is not None)
        bounds = f"{_shown(self.low)} to {_shown(self.high)}"
        return f"{name} is {value!r}; wanted {kind} from {bounds}{also}"


def _shown(bound: float) -> str:
    return f"{bound:,}" if isinstance(bound, int) else f"{bound:,g}"


def _number(default: Any, low: float, high: float, help_: str, **more: Any) -> Any:
    return dataclasses.field(
        default=default, metadata={"setting": Setting(help=help_, low=low, high=high, **more)}
    )


def _count(default: Any, low: int, high: int, help_: str, **more: Any) -> Any:
    return _number(default, low, high, help_, whole=True, **more)


def _choice(default: Any, choices: tuple[object, ...], help_: str, **more: Any) -> Any:
    return dataclasses.field(
        default=default, metadata={"setting": Setting(help=help_, choices=choices, **more)}
    )


def _switch(default: bool, help_: str, **more: Any) -> Any:
    return _choice(default, (True, False), help_, **more)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What a prompt is learned with; saved in the prompt file under ``training``.

    A setting that is None is chosen by the method (``resolved``).

    Raises:
        ConfigInvalid: some settings are out of range, or are not of this method; the error lists
            them all.
    """

    method: str = "dip"  # a name in prompt_serve.training.methods
    shots: int = _count(16, 0, 1_000_000, "Training images a class, 0 for all.")
    seed: int = _count(1, 0, 2**63 - 1, "Of the draw of images, their views and all numbers.")
    fewer_shots_ok: bool = _switch(
        False, "Where a class has fewer images than --shots, take all it has."
    )

    template: str = DEFAULT_TEMPLATE  # its words before {} are where learning starts
    templates: tuple[str, ...] = ()  # zero-shot only: an ensemble, instead of ``template``
    n_ctx: int | None = _count(
        None, 1, 1_000, "Learned vectors M. [default: as many as the template has tokens]",
        also=(None,),
    )  # fmt: skip
    depth: int | None = _count(
        None, 1, 1_000, "Blocks J that get vectors of their own; 1 is the input alone.",
        also=(None,), own=True,
    )  # fmt: skip
    branch: Branch = _choice(
        "text", get_args(Branch), "Tower that is prompted: text or image.", own=True
    )
    init: Init = _choice(
        "template", get_args(Init),
        "What the text vectors start as: template (its words) or random.", own=True,
    )  # fmt: skip
    init_std: float = _number(0.02, 0.0, 10.0, "Spread of random initial numbers.")
    class_position: ClassPosition = _choice(
        "end", get_args(ClassPosition),
        "Of the class name among the learned vectors: end, middle or front.", own=True,
    )  # fmt: skip
    class_specific: bool = _switch(False, "A context for every class.", own=True)

    # Low rank (DIP).
    rank: int = _count(1, 1, 1_000, "Rank R of the learned change.", own=True)
    dropout: float = _number(0.0, 0.0, 0.99, "Share of the change left out a step.", own=True)
    frozen_init: bool = _switch(
        True, "Add the change to the template's words, or to nothing.", own=True
    )
    id_weight: float | None = _number(
        None, 0.0, 1e4, "Weight of the reward for dense information (DIP, Alg. 1).",
        also=(None,), own=True,
    )  # fmt: skip
    id_k: int = _count(1, 1, 1_000, "Singular values counted by that reward.", own=True)
    tail_weight: float | None = _number(
        None, 0.0, 1e4, "Weight of the penalty on small singular values (DIP, Alg. 2).",
        also=(None,), own=True,
    )  # fmt: skip
    tail_k: int | None = _count(
        None, 1, 1_000, "How many of the smallest it counts. [default: all but the largest]",
        also=(None,), own=True,
    )  # fmt: skip
    projection_rank: int | None = _count(
        None, 1, 10_000, "Rank of the text-to-image projections.", also=(None,), own=True
    )
    store_projections: bool = _switch(
        False, "Keep the projections in the file, as the papers count, instead of what they make.",
        own=True,
    )  # fmt: skip

    # Codebooks (Quantized Prompt).
    bits: int | None = _choice(
        None, BITS, "Bits a learned number takes: 1, 2, 4 or 8; without, float16.",
        also=(None,), own=True,
    )  # fmt: skip
    quantization: Quantization = _choice(
        "qat", get_args(Quantization),
        "Quantize while learning (qat), or what was learned (ptq).", own=True,
    )  # fmt: skip
    recluster_above: float = _number(
        0.01, 0.0, 100.0, "KL divergence of the code histogram that asks for a new codebook.",
        own=True,
    )  # fmt: skip
    recluster_interval: int = _count(
        50, 1, 1_000_000, "Steps between two looks at that divergence.", own=True
    )
    recluster_on_error: bool = _switch(
        False, "Ask also that the quantization error has grown.", own=True
    )
    noise_std: float = _number(
        0.0, 0.0, 10.0, "Spread of Gaussian noise added to the vectors each step.", own=True
    )

    # Pruned keys and values (ADAPT).
    tokens: int | Literal["auto"] = _count(
        32, 0, 1_000_000, "Vectors kept in both towers together (T_target).",
        also=(AUTO,), own=True,
    )  # fmt: skip
    tokens_per_block: int = _count(16, 1, 255, "Vectors a block starts with.", own=True)
    prune_score: PruneScore = _choice(
        "snip", get_args(PruneScore), "What a vector is worth: snip, gradient or l2.", own=True
    )
    prune_step: int = _count(4, 1, 10_000, "Vectors pruned at a time.", own=True)
    prune_interval: int = _count(
        80, 1, 1_000_000, "Steps between two prunings, fewer where the target is far.", own=True
    )
    prune_after: float = _number(
        0.05, 0.0, 0.9, "Share of the run before the first pruning.", own=True
    )
    prune_within: float = _number(
        0.5, 0.01, 1.0, "Share of the rest by which the target is reached.", own=True
    )

    # Staying near the frozen model (KgCoOp, ProGrad, PromptSRC).
    guidance: float | None = _number(
        None, 0.0, 1e4, "Weight of the pull towards the frozen model.", also=(None,), own=True
    )
    logit_guidance: float = _number(
        1.0, 0.0, 1e4, "Weight of the pull on the scores (PromptSRC).", own=True
    )
    average_mean: float = _number(
        0.75, 0.0, 1.0, "Share of the run around which prompts are averaged.", own=True
    )
    average_std: float = _number(
        0.05, 0.0, 1.0, "Spread of that average, as a share of the run; 0 keeps the last epoch.",
        own=True,
    )  # fmt: skip

    epochs: int = _count(50, 1, 1_000_000, "Times the images are gone through.")
    batch_size: int = _count(32, 1, 1_000_000, "Images a step.")
    learning_rate: float | Literal["auto"] | None = _number(
        None, 1e-9, 1e4, "Of SGD, or auto to choose by validation. [default: the method's]",
        also=(AUTO, None),
    )  # fmt: skip
    momentum: float = _number(0.9, 0.0, 0.999, "Of SGD.")
    weight_decay: float = _number(5e-4, 0.0, 10.0, "Of SGD.")
    views: int = _count(
        16, 0, 10_000, "Augmented views an image to learn from; 0 for the plain image only."
    )
    precision: TowerPrecision = _choice(
        "fp32", get_args(TowerPrecision),
        "Of the frozen towers while learning: fp32, bf16 or fp16. What is learned stays fp32.",
    )  # fmt: skip
    calibrate: bool = _switch(True, "Fit a temperature to the validation images.")
    unknown_share: float = _number(
        0.0, 0.0, 0.9, "Share of validation images that may be answered with 'unknown'; 0: never."
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "templates", tuple(self.templates))
        faults = [*self._method_faults(), *self._value_faults(), *self._template_faults()]
        if faults:
            raise ConfigInvalid("The training settings are not valid:", faults)

    def _value_faults(self) -> list[str]:
        faults = (setting.fault(name, getattr(self, name)) for name, setting in settings().items())
        return [fault for fault in faults if fault]

    def _method_faults(self) -> list[str]:
        # The methods need torch; the settings do not, until they are used.
        from prompt_serve.training.methods import METHODS

        if self.method not in METHODS:
            known = ", ".join(map(repr, METHODS))
            return [f"method is {self.method!r}; wanted one of {known}"]
        return [
            f"{name} is no setting of method {self.method!r}, but of "
            f"{', '.join(m for m in METHODS if name in METHODS[m].settings)}"
            for name, setting in settings().items()
            if setting.own
            and getattr(self, name) != _DEFAULTS[name]
            and name not in METHODS[self.method].settings
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

    def resolved(self) -> "TrainConfig":
        """With the method's own defaults in place of None."""
        from prompt_serve.training.methods import METHODS

        defaults = METHODS[self.method].defaults
        missing = {name: v for name, v in defaults.items() if getattr(self, name) is None}
        return self.replace(**missing) if missing else self

    def replace(self, **changes: Any) -> "TrainConfig":
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """As saved in a prompt file: JSON types only, settings of other methods left out."""
        from prompt_serve.training.methods import METHODS

        used = METHODS[self.method].settings
        known = settings()
        saved = {
            name: value
            for name, value in dataclasses.asdict(self).items()
            if name not in known or not known[name].own or name in used
        }
        return {**saved, "templates": list(self.templates)}


_DEFAULTS: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(TrainConfig)}


def settings() -> dict[str, Setting]:
    """Every setting that has bounds or choices, by name."""
    return {
        field.name: field.metadata["setting"]
        for field in dataclasses.fields(TrainConfig)
        if "setting" in field.metadata
    }


def make_config(values: Mapping[str, Any]) -> TrainConfig:
    """A configuration from loose settings, such as those of a file.

    Raises:
        ConfigInvalid: some are unknown or out of range.
    """
    unknown = [f"{name} is no setting" for name in values if name not in _DEFAULTS]
    try:
        config = TrainConfig(**{name: v for name, v in values.items() if name in _DEFAULTS})
    except ConfigInvalid as error:
        raise ConfigInvalid(
            "The training settings are not valid:", [*unknown, *error.faults]
        ) from error
    if unknown:
        raise ConfigInvalid(
            f"The training settings are not valid; there are {', '.join(sorted(_DEFAULTS))}:",
            unknown,
        )
    return config


def read_config_file(path: Path) -> dict[str, Any]:
    """The settings in a TOML file, at its top level or in a table ``[train]``; unchecked.

    Raises:
        ConfigInvalid: there is no such file, or it is not TOML.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigInvalid(f"{path} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigInvalid(f"{path} is not TOML: {error}.") from error
    table = values.pop("train", {})
    return {**values, **table} if isinstance(table, dict) else {**values, "train": table}
