"""Settings as typed dataclass fields, each with its default, its bounds and its help text.

``TrainConfig`` holds the settings that all methods share; every method has a class of its own::

    @dataclass(frozen=True, kw_only=True)
    class DipSettings(MethodSettings):
        rank: int = whole(1, 1, 1_000, "Rank R of the learned change.")
        dropout: float = number(0.0, 0.0, 0.99, "Dropout probability p of the learned change.")

A subclass changes a default by naming it again, ``rank: int = 4``: bounds and help are inherited.
The command line and the checks are made from these fields. Nothing here needs torch.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Final, cast

from prompt_serve.errors import ConfigInvalid
from prompt_serve.types import ClassPosition

AUTO: Final = "auto"
_METADATA_KEY = "prompt_serve.setting"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Help, bounds and choices of a setting; its type and its default are those of the field."""

    help: str
    low: float | None = None  # inclusive bounds of a number
    high: float | None = None
    whole: bool = False
    choices: tuple[object, ...] = ()
    also: tuple[object, ...] = ()  # values accepted beside the bounds or choices
    unset: str = ""  # meaning of None, for the help text

    def shown(self, value: object) -> str:
        """Return a value as help texts show it."""
        if value is None:
            return self.unset
        if isinstance(value, bool):
            return "yes" if value else "no"
        return str(value)

    def fault(self, name: str, value: object) -> str | None:
        """Return a sentence that says why ``value`` is invalid, or None if it is valid."""
        if any(value is other or (value == other and value is not True) for other in self.also):
            return None
        if self.choices:
            if value in self.choices and type(value) in {type(c) for c in self.choices}:
                return None
            return f"{name} is {value!r}; expected one of {', '.join(map(repr, self.choices))}"
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
        return f"{name} is {value!r}; expected {kind} from {bounds}{also}"


def _shown(bound: float) -> str:
    return f"{bound:,}" if isinstance(bound, int) else f"{bound:,g}"


def number(
    default: float | str | None,
    low: float,
    high: float,
    help: str,
    *,
    also: tuple[str, ...] = (),
    unset: str = "",
) -> Any:
    """Declare a field that holds a number from ``low`` to ``high``.

    Args:
        default: None needs ``unset``.
        low: inclusive.
        high: inclusive.
        help: one sentence that names the thing first.
        also: words accepted beside numbers, such as "auto".
        unset: meaning of None; without it, None is refused.
    """
    return _field(default, unset, also, help=help, low=low, high=high)


def whole(
    default: int | str | None,
    low: int,
    high: int,
    help: str,
    *,
    also: tuple[str, ...] = (),
    unset: str = "",
) -> Any:
    """Declare a field that holds a whole number; see ``number``."""
    return _field(default, unset, also, help=help, low=low, high=high, whole=True)


def choice(default: object, choices: tuple[object, ...], help: str, *, unset: str = "") -> Any:
    """Declare a field that holds one of ``choices``, all of one type."""
    return _field(default, unset, (), help=help, choices=choices)


def switch(default: bool, help: str) -> Any:
    """Declare a field that is on or off."""
    return _field(default, "", (), help=help, choices=(True, False))


def _field(default: object, unset: str, also: tuple[str, ...], **described: Any) -> Any:
    allowed = (*also, None) if unset else also
    setting = Setting(also=allowed, unset=unset, **described)
    return dataclasses.field(default=default, metadata={_METADATA_KEY: setting})


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Places of learned text vectors and class name in a sentence."""

    class_position: ClassPosition = "end"  # of the class name among the vectors
    class_specific: bool = False  # every class has vectors of its own
    starts_from_words: bool = True  # the template's words stay where no vector replaces them


@dataclass(frozen=True, kw_only=True)
class MethodSettings:
    """Base of the settings of a method; as it is, for methods without settings of their own.

    Raises:
        ConfigInvalid: some values are out of range; the error lists all of them.
    """

    def __post_init__(self) -> None:
        faults = value_faults(self)
        if faults:
            raise ConfigInvalid(f"{type(self).__name__} are invalid:", faults)

    def placement(self) -> Placement:
        """Return the places of the text vectors; overridden by methods that let the user choose."""
        return Placement()


def settings_of(described: type) -> dict[str, Setting]:
    """Return the described fields of a dataclass by name; its own before those it inherits."""
    tables = [
        vars(base)["__dataclass_fields__"]
        for base in described.__mro__
        if "__dataclass_fields__" in vars(base)
    ]
    found: dict[str, Setting] = {}
    for index, table in enumerate(tables):
        for name, field in table.items():
            # An inherited field is the very object that the base class holds.
            inherited = any(other.get(name) is field for other in tables[index + 1 :])
            setting = _described_by(tables, name)
            if not inherited and name not in found and setting is not None:
                found[name] = setting
    return found


def _described_by(tables: list[dict[str, Any]], name: str) -> Setting | None:
    for table in tables:
        if name in table and _METADATA_KEY in table[name].metadata:
            setting: Setting = table[name].metadata[_METADATA_KEY]
            return setting
    return None


def defaults_of(described: type) -> dict[str, Any]:
    """Return the defaults of a dataclass's described fields by name, in their order."""
    defaults = {field.name: field.default for field in dataclasses.fields(described)}
    return {name: defaults[name] for name in settings_of(described)}


def value_faults(instance: object) -> list[str]:
    """Return a sentence for each described field whose value is invalid."""
    described = settings_of(type(instance)).items()
    faults = (setting.fault(name, getattr(instance, name)) for name, setting in described)
    return [fault for fault in faults if fault]
