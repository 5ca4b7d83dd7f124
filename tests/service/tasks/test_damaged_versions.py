"""What the database has of a version was changed: it is an error or mended, and never served."""

import contextlib
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa

from prompt_serve.errors import NotReady
from prompt_serve.prompts.prompt_file import to_bytes
from prompt_serve.service.storage.database import Database
from prompt_serve.service.storage.registry import Registry, VersionDamaged
from prompt_serve.service.storage.tables import class_features, prompt_file
from prompt_serve.training.clip.backbone import Backbone
from tests.service.prompts import learned_prompt
from tests.service.tasks.connected import Tasks, never


@pytest.fixture
def data(tasks: Tasks, tiny_backbone: Backbone) -> bytes:
    """A prompt file that was uploaded as ``pets``."""
    data = to_bytes(learned_prompt(tiny_backbone, ["cat", "dog", "horse"]))
    tasks.store.upload("pets", data)
    return data


def replace(
    database: Database, column: sa.Column[bytes], change: Callable[[bytes], object]
) -> None:
    with database.write() as db:
        before = db.execute(sa.select(column)).scalar_one()
        db.execute(sa.update(column.table).values({column: sa.literal(change(before))}))


def flipped(at: float) -> Callable[[bytes], bytes]:
    def flip(data: bytes) -> bytes:
        n = int(at * (len(data) - 1))
        return data[:n] + bytes([data[n] ^ 4]) + data[n + 1 :]

    return flip


DAMAGED_FILES: dict[str, Callable[[bytes], object]] = {
    **{f"a bit at {at:.0%}": flipped(at) for at in (0.0, 0.3, 0.6, 1.0)},
    "cut": lambda data: data[:-1],
    "longer": lambda data: data + b"\0",
    "empty": lambda data: b"",
}


@pytest.mark.parametrize("kind", DAMAGED_FILES)
def test_a_changed_file_is_an_error_until_it_is_uploaded_again(
    open_tasks: Callable[..., Tasks], sqlite: Database, data: bytes, kind: str
) -> None:
    replace(sqlite, prompt_file.c.data, DAMAGED_FILES[kind])
    restarted = open_tasks()
    for use in (
        lambda: restarted.resolver.resolve(["pets"]),
        lambda: restarted.catalog.file("pets"),
    ):
        with pytest.raises(VersionDamaged, match=r"another sha256\. Find all faults with"):
            use()

    restarted.store.upload("pets", data)

    assert restarted.catalog.file("pets")[1] == data
    assert open_tasks(never).resolver.resolve(["pets"])[0].class_names == ("cat", "dog", "horse")


def _scaled(data: bytes) -> bytes:
    return (np.frombuffer(data, "<f4") * 1.5).astype("<f4").tobytes()


DAMAGED_FEATURES: dict[str, Callable[[bytes], object]] = {
    "a bit of an exponent": lambda data: data[:3] + bytes([data[3] ^ 32]) + data[4:],
    "other numbers": _scaled,
    "zeros": lambda data: bytes(len(data)),
    "not numbers": lambda data: b"\xff" * len(data),
    "cut": lambda data: data[:-4],
    "empty": lambda data: b"",
}


@pytest.mark.parametrize("kind", DAMAGED_FEATURES)
def test_changed_class_features_are_computed_again_and_stored(
    tasks: Tasks,
    open_tasks: Callable[..., Tasks],
    sqlite: Database,
    data: bytes,
    kind: str,
) -> None:
    (before,) = tasks.resolver.resolve(["pets"])
    replace(sqlite, class_features.c.features, DAMAGED_FEATURES[kind])

    (mended,) = open_tasks().resolver.resolve(["pets"])
    (after,) = open_tasks(never).resolver.resolve(["pets"])

    for task in (mended, after):
        np.testing.assert_allclose(task.class_features, before.class_features, atol=1e-5)


@pytest.mark.parametrize(
    "facts",
    ["{", "[]", "null", '{"class_names": 7}', json.dumps({"class_names": ["a"], "metrics": "x"})],
)
def test_facts_that_cannot_be_read_are_an_error(
    tasks: Tasks, sqlite: Database, data: bytes, facts: str
) -> None:
    with sqlite.write() as db:
        db.execute(sa.update(prompt_file).values(facts=facts))

    with pytest.raises(VersionDamaged, match="its facts cannot be read"):
        tasks.catalog.info("pets")


@pytest.mark.parametrize("column", ["n_classes", "size_bytes"])
def test_a_row_that_cannot_be_listed_is_an_error(
    tasks: Tasks, sqlite: Database, data: bytes, column: str
) -> None:
    with sqlite.write() as db:
        db.exec_driver_sql(f"UPDATE prompt_file SET {column} = 'many'")

    with pytest.raises(VersionDamaged):
        tasks.catalog.page(None, 10)


def test_a_name_without_a_file_is_an_error(
    open_tasks: Callable[..., Tasks], data: bytes, tmp_path: Path
) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "registry.db")) as other:
        for table in ("class_features", "kept_version", "prompt_file"):
            other.execute(f"DELETE FROM {table}")
        other.commit()

    with pytest.raises(VersionDamaged, match="'pets' points at it, and it has no file"):
        open_tasks().resolver.resolve(["pets"])


def test_a_damaged_pin_does_not_keep_the_others_from_being_loaded(
    tasks: Tasks,
    open_tasks: Callable[..., Tasks],
    registry: Registry,
    sqlite: Database,
    data: bytes,
    tiny_backbone: Backbone,
) -> None:
    tasks.store.upload("cars", to_bytes(learned_prompt(tiny_backbone, ["van"], seed=7)))
    for name in ("cars", "pets"):
        tasks.editor.set_pinned(name, True)
    version = registry.versions(["pets"])["pets"]
    with sqlite.write() as db:
        db.execute(
            sa.update(prompt_file).where(prompt_file.c.version == version).values(data=b"x" * 50)
        )
    restarted = open_tasks()

    restarted.resolver.load_pinned()

    assert restarted.cache.missing(registry.pinned()) == [version]


@pytest.mark.parametrize("statement", ["DELETE FROM revision", "UPDATE revision SET value = 'x'"])
def test_a_registry_without_its_revision_is_neither_read_nor_written(
    registry: Registry, sqlite: Database, data: bytes, statement: str
) -> None:
    with sqlite.write(raise_revision=False) as db:
        db.exec_driver_sql(statement)
    with pytest.raises(NotReady, match="it has no revision"):
        registry.revision()
    if "DELETE" in statement:
        with pytest.raises(NotReady, match="it has no revision"):
            registry.set_tags("pets", ["eu"])
