"""Methods by name: our own, and those that other packages offer as entry points."""

import logging
from collections.abc import Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

from prompt_serve.errors import ConfigInvalid
from prompt_serve.training.settings import MethodSettings, settings_of

if TYPE_CHECKING:
    from prompt_serve.training.methods.base import Method

_log = logging.getLogger(__name__)


class MethodRegistry(Mapping[str, "Method[Any]"]):
    """Each method is imported when it is looked up, so a faulty one harms no other.

    Iteration leaves out a faulty method of another package and logs a warning; looking it up by
    name raises ConfigInvalid with the reason and the package.

    Args:
        built_in: where each of our own methods is, as ``module:object``.
        group: of the entry points of other packages.
    """

    def __init__(self, built_in: Mapping[str, str], *, group: str) -> None:
        self._built_in = built_in
        self._group = group
        self._loaded: dict[str, Method[Any]] = {}
        self._faults: dict[str, str] = {}
        self._found: dict[str, EntryPoint] | None = None

    def __getitem__(self, name: str) -> "Method[Any]":
        if name not in self._loaded:
            self._loaded[name] = self._load(name)
        return self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        yield from self._built_in
        yield from (name for name in self._external() if self._is_usable(name))

    def names(self) -> tuple[str, ...]:
        """Return all names, those of faulty methods included; nothing is imported."""
        return (*self._built_in, *self._external())

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _load(self, name: str) -> "Method[Any]":
        if name in self._built_in:
            place = EntryPoint(name=name, value=self._built_in[name], group=self._group)
            method: Method[Any] = place.load()
            return method
        return self._load_external(self._external()[name])

    def _external(self) -> dict[str, EntryPoint]:
        """Entry points by name, less those whose name is taken."""
        if self._found is None:
            self._found = {}
            for place in entry_points(group=self._group):
                owner = "prompt-serve" if place.name in self._built_in else None
                if place.name in self._found:
                    owner = _distribution(self._found[place.name])
                if owner is None:
                    self._found[place.name] = place
                else:
                    _log.warning(
                        "Method %r of %s is ignored: %s has a method of that name.",
                        place.name, _distribution(place), owner,
                    )  # fmt: skip
        return self._found

    def _load_external(self, place: EntryPoint) -> "Method[Any]":
        try:
            method: Method[Any] = place.load()
        except Exception as error:
            if isinstance(error, ImportError) and error.name == "torch":
                raise  # not the package's fault: prompt-serve is installed without training
            raise _unusable(place, f"{type(error).__name__}: {error}") from error
        fault = _fault(method, place.name)
        if fault:
            raise _unusable(place, fault)
        return method

    def _is_usable(self, name: str) -> bool:
        if name in self._faults:
            return False
        try:
            self[name]
        except ConfigInvalid as error:
            self._faults[name] = error.message
            _log.warning("%s It is ignored.", error.message)
            return False
        return True


def _fault(method: object, name: str) -> str | None:
    """Return why an object is not the method of that name, or None if it is."""
    from prompt_serve.training.methods.base import Method

    if not isinstance(method, Method):
        return f"it is a {type(method).__name__}, not a Method"
    if method.name != name:
        return f"the method is named {method.name!r}"
    if method.learner and method.closed_form:
        return "it has both a learner and a closed form; a method learns in one way"
    settings = method.settings
    if not (isinstance(settings, type) and issubclass(settings, MethodSettings)):
        return f"its settings are {settings!r}, not a subclass of MethodSettings"
    described = settings_of(settings)
    plain = [field for field in vars(settings)["__dataclass_fields__"] if field not in described]
    if plain:
        return f"its settings have no bounds and no help: {', '.join(plain)}"
    return None


def _unusable(place: EntryPoint, reason: str) -> ConfigInvalid:
    return ConfigInvalid(
        f"Method {place.name!r} of {_distribution(place)} cannot be loaded from {place.value}: "
        f"{reason}."
    )


def _distribution(place: EntryPoint) -> str:
    found = place.dist
    return f"{found.name} {found.version}" if found else "an unknown package"
