"""Read the file of ``prompt-serve train-many``: datasets, methods, numbers of shots and seeds.

backbone = "embedded"        # of all runs
seeds = [1, 2, 3]
shots = [4, 16]              # each is a row of the table; without it, all images are used

[settings]                   # of all methods
epochs = 50

[datasets]
pets = "pets/"               # relative to this file
birds = { path = "birds.csv", on_bad_image = "skip" }

[methods.class-vectors]

[methods.dip-8]
method = "dip"               # by default the name of the table
rank = 8
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prompt_serve.bundle import SHIPPED
from prompt_serve.errors import ConfigInvalid, DatasetInvalid, did_you_mean
from prompt_serve.sources.files import is_url
from prompt_serve.text_files import local_path
from prompt_serve.training.config import (
    SHARED,
    make_config,
    read_toml,
    setting_owners,
    with_user_settings,
)
from prompt_serve.training.data.loading import read_dataset
from prompt_serve.training.many.fingerprints import digest_of_images

KEYS = ("backbone", "seeds", "shots", "settings", "datasets", "methods")
DATASET_KEYS = ("path", "images", "class_names", "on_bad_image")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # names folders


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """A dataset as the file names it."""

    name: str
    path: str  # or the URL of an object store
    images: Path | None = None
    class_names: Mapping[str, str] = field(default_factory=dict)  # new names by those in the source
    on_bad_image: str = "error"
    digest: str  # of its images


@dataclass(frozen=True, kw_only=True)
class MethodSpec:
    """A row of the table: a method and its settings."""

    name: str
    settings: Mapping[str, Any]  # as in a file of ``prompt-serve train --config``


@dataclass(frozen=True, kw_only=True)
class Spec:
    """Content of the file, checked."""

    backbone: str
    seeds: tuple[int, ...]
    shots: tuple[int | None, ...]  # None: not given
    datasets: tuple[DatasetSpec, ...]
    methods: tuple[MethodSpec, ...]


def read_spec(path: Path) -> Spec:
    """Read the file, and list the images of its datasets.

    Raises:
        ConfigInvalid: it cannot be read, or lists every fault of its content.
    """
    values = read_toml(path)
    reader = _Reader(path.parent)
    spec = reader.spec(values)
    if reader.faults:
        raise ConfigInvalid(f"{path} cannot be run:", reader.faults)
    return spec


class _Reader:
    """Reads values and collects their faults.

    Args:
        folder: paths are relative to it.
    """

    def __init__(self, folder: Path) -> None:
        self.faults: list[str] = []
        self._folder = folder

    def spec(self, values: Mapping[str, Any]) -> Spec:
        self._check_keys("", values, KEYS)
        backbone = values.get("backbone", "embedded")
        if not (isinstance(backbone, str) and backbone):
            self.faults.append(f"backbone is {backbone!r}; expected a name, as in train --backbone")
        shots: tuple[int | None, ...] = (None,)
        if "shots" in values:
            shots = self._numbers("shots", values["shots"], low=1, example="16 or [4, 16]")
        return Spec(
            backbone=self._backbone(str(backbone)),
            seeds=self._numbers("seeds", values.get("seeds", [1, 2, 3]), low=0, example="[1, 2]"),
            shots=shots,
            datasets=tuple(self._datasets(self._table("datasets", values, 'pets = "pets/"'))),
            methods=tuple(self._methods(values)),
        )

    def _check_keys(self, where: str, values: Mapping[str, Any], known: Sequence[str]) -> None:
        for key in values:
            if key not in known:
                expected = f"expected {', '.join(known)}.{did_you_mean(key, known)}"
                self.faults.append(f"{where}{key} is not a key; {expected}".removesuffix("."))

    def _numbers(self, key: str, value: Any, *, low: int, example: str) -> tuple[int, ...]:
        numbers = value if isinstance(value, list) else [value]
        whole = [n for n in numbers if isinstance(n, int) and not isinstance(n, bool) and n >= low]
        if not numbers or len(whole) < len(numbers) or len(set(whole)) < len(whole):
            self.faults.append(
                f"{key} is {value!r}; expected different whole numbers from {low}, as in {example}"
            )
        return tuple(whole)

    def _table(self, key: str, values: Mapping[str, Any], example: str) -> Mapping[str, Any]:
        """Return a table of named entries; there must be one at least."""
        table = values.get(key, {})
        if not (isinstance(table, dict) and table):
            self.faults.append(f"there is nothing in [{key}]; add a line, such as {example}")
            return {}
        for name in table:
            if not _NAME.fullmatch(name):
                self.faults.append(
                    f"{key}: {name!r} cannot name a folder; expected letters, digits, '.', '_' "
                    f"and '-'"
                )
        return table

    def _datasets(self, table: Mapping[str, Any]) -> Iterator[DatasetSpec]:
        for name, entry in table.items():
            values = {"path": entry} if isinstance(entry, str) else entry
            where = f"datasets.{name}"
            if not isinstance(values, dict) or not isinstance(values.get("path"), str):
                self.faults.append(f"{where} has no path; write {name} = {f'{name}/'!r}")
                continue
            self._check_keys(f"{where}.", values, DATASET_KEYS)
            with self._collected(where):
                yield self._dataset(name, values)

    def _dataset(self, name: str, values: Mapping[str, Any]) -> DatasetSpec:
        bad = values.get("on_bad_image", "error")
        renames = values.get("class_names", {})
        images = values.get("images")
        if bad not in ("error", "skip"):
            raise ConfigInvalid(f"on_bad_image is {bad!r}; expected 'error' or 'skip'")
        if not (isinstance(renames, dict) and all(isinstance(n, str) for n in renames.values())):
            raise ConfigInvalid(f"class_names is {renames!r}; expected {{ roses = 'rose' }}")
        if not (images is None or isinstance(images, str)):
            raise ConfigInvalid(f"images is {images!r}; expected the path of a folder")
        path = values["path"] if is_url(values["path"]) else str(self._path(values["path"]))
        images = None if images is None else self._path(images)
        return DatasetSpec(
            name=name,
            path=path,
            images=images,
            class_names=renames,
            on_bad_image=bad,
            digest=digest_of_images(read_dataset(path, images=images, rename=renames)),
        )

    def _backbone(self, name: str) -> str:
        """Return the name with the absolute path of a folder or file in it."""
        model, at, file = name.partition("@")
        path = self._path(file or name)
        if name in SHIPPED or not path.exists():
            return name
        return f"{model}{at}{path}" if at else str(path)

    def _path(self, text: str) -> Path:
        return local_path(text, self._folder.absolute())

    def _methods(self, values: Mapping[str, Any]) -> Iterator[MethodSpec]:
        common = self._common(values)
        for name, own in self._table("methods", values, "dip = {}").items():
            where = f"methods.{name}"
            if not isinstance(own, dict):
                self.faults.append(f"{where} is {own!r}; expected a table of settings, or {{}}")
                continue
            settings = {"method": name, **common, **own}
            for axis in ("seed", "shots") if "shots" in values else ("seed",):
                if settings.pop(axis, None) is not None:
                    self.faults.append(f"{where}: {axis} is set at the top of the file")
            with self._collected(where):
                make_config(with_user_settings(settings))
                yield MethodSpec(name=name, settings=settings)

    def _common(self, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the settings of all methods."""
        common = values.get("settings", {})
        if not isinstance(common, dict):
            self.faults.append(f"settings is {common!r}; expected a table of settings")
            return {}
        known = [name for name in SHARED if name not in ("method", "seed")]
        for name in common:
            if name == "seed":
                self.faults.append("settings: seed is set at the top of the file, as seeds")
            elif owners := setting_owners(name):
                self.faults.append(
                    f"settings: {name} belongs to {', '.join(owners)}; move it to "
                    f"[methods.{owners[0]}]"
                )
            elif name not in known:
                hint = did_you_mean(name, known)
                self.faults.append(f"settings: {name} is not a setting.{hint}".removesuffix("."))
        return {name: value for name, value in common.items() if name in known}

    @contextmanager
    def _collected(self, where: str) -> Iterator[None]:
        """Add the faults of an entry to those of the file, a line each."""
        try:
            yield
        except (ConfigInvalid, DatasetInvalid) as error:
            lines = error.faults if isinstance(error, ConfigInvalid) and error.faults else ()
            for line in lines or [" ".join(error.message.split())]:
                self.faults.append(f"{where}: {line}".removesuffix("."))
