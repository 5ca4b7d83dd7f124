"""Zips from untrusted callers: nothing is written to disk and little is held in memory."""

import io
import stat
import struct
import tracemalloc
import zipfile
from collections.abc import Callable

import pytest

from prompt_serve.errors import ArchiveInvalid, RequestTooLarge
from prompt_serve.prompts.prompt_file import to_bytes, version_of
from prompt_serve.service.storage.database import Database
from prompt_serve.service.storage.registry import NewTask, Registry
from prompt_serve.service.tasks import zip_files
from prompt_serve.service.tasks.bulk import import_zip, without_features
from prompt_serve.service.tasks.registry_export import export_registry
from prompt_serve.service.tasks.zip_files import Archive, prompt_files, write_zip
from tests.golden import GOLDEN
from tests.service.databases import new_database

PROMPT = to_bytes(GOLDEN["low_rank"])


def zip_of(*entries: tuple[str | zipfile.ZipInfo, bytes]) -> io.BytesIO:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries:
            archive.writestr(name, data)
    return file


def link() -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo("a.safetensors")
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    return entry


@pytest.mark.parametrize(
    "path",
    [
        "../a.safetensors",
        "x/../../a.safetensors",
        "/etc/a.safetensors",
        "..\\a.safetensors",
        "C:/a.safetensors",
        "C:\\a.safetensors",
        "x\\a.safetensors",
    ],
)
def test_paths_that_lead_out_are_refused(path: str) -> None:
    with pytest.raises(ArchiveInvalid, match=r"has a path that"):
        Archive(zip_of(("good.safetensors", PROMPT), (path, PROMPT)))


def test_links_are_refused() -> None:
    with pytest.raises(ArchiveInvalid, match="is a link or a device"):
        Archive(zip_of((link(), b"/etc/passwd")))


@pytest.mark.filterwarnings("ignore:Duplicate name")  # zipfile's own, about what is made here
def test_duplicates_are_refused() -> None:
    with pytest.raises(ArchiveInvalid, match=r"'a\.safetensors' more than once"):
        Archive(zip_of(("a.safetensors", PROMPT), ("a.safetensors", PROMPT)))
    two = Archive(zip_of(("x/a.safetensors", PROMPT), ("y/a.safetensors", PROMPT)))
    with pytest.raises(ArchiveInvalid, match="Two files in the zip are named 'a'"):
        prompt_files(two)


def test_a_bomb_is_refused_before_it_is_unpacked() -> None:
    bomb = zip_of(*((f"{i}.safetensors", bytes(2**20)) for i in range(20)))
    assert len(bomb.getvalue()) < 2**15
    with pytest.raises(RequestTooLarge, match="20 files of 20,971,520 bytes"):
        Archive(bomb, max_bytes=2**20)


def test_too_many_files_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zip_files, "MAX_ENTRIES", 2)
    with pytest.raises(RequestTooLarge, match="3 files"):
        Archive(zip_of(*((f"{i}.safetensors", b"") for i in range(3))))


@pytest.mark.parametrize(
    "spoil",
    [lambda data: b"", lambda data: b"no zip", lambda data: data[:-30], lambda data: data[40:]],
    ids=["empty", "no zip", "cut short", "without its beginning"],
)
def test_what_is_no_zip_is_refused(spoil: Callable[[bytes], bytes]) -> None:
    data = zip_of(("a.safetensors", PROMPT)).getvalue()
    with pytest.raises(ArchiveInvalid):  # noqa: PT012 (where it shows depends on the damage)
        archive = Archive(io.BytesIO(spoil(data)))
        archive.read("a.safetensors")


def lying_about_the_size(size: int, said: int) -> io.BytesIO:
    """A zip of one file of zeros whose directory declares another size."""
    data = bytearray(zip_of(("a.safetensors", bytes(size))).getvalue())
    place = data.rindex(size.to_bytes(4, "little"))
    data[place : place + 4] = said.to_bytes(4, "little")
    return io.BytesIO(bytes(data))


@pytest.mark.parametrize(
    ("size", "said"),
    [(10_000, 10), (10_000, 0), (10_000, 9_999), (10_000, 10_001), (300_000_000, 1_000)],
)
def test_a_directory_that_lies_about_a_size_does_not_help(size: int, said: int) -> None:
    archive = Archive(lying_about_the_size(size, said), max_bytes=20_000)
    tracemalloc.start()
    try:
        with pytest.raises(ArchiveInvalid, match="is damaged"):
            archive.read("a.safetensors")
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("times", [1, 2, 5])
def test_a_file_that_is_named_many_times_is_counted_each_time(times: int) -> None:
    archive = Archive(zip_of(("a.safetensors", bytes(1000))), max_bytes=1000 * times)

    assert [archive.read("a.safetensors") for _ in range(times)] == [bytes(1000)] * times
    with pytest.raises(RequestTooLarge, match="each time it is named"):
        archive.read("a.safetensors")


def test_an_import_that_names_one_file_for_many_tasks_is_bounded(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry(database)
    registry.put_all([new(f"task-{index}", "low_rank") for index in range(20)])
    exported = b"".join(export_registry(registry))
    before = registry.revision()
    monkeypatch.setattr(zip_files, "MAX_UNPACKED_BYTES", 10 * len(PROMPT))

    with pytest.raises(RequestTooLarge, match="each time it is named"):
        import_zip(registry, io.BytesIO(exported), without_features)
    assert registry.revision() == before


@pytest.mark.parametrize("entries", [1, 2, 300])
def test_entries_without_a_name_are_refused(entries: int) -> None:
    directory = (b"PK\x01\x02" + bytes(42)) * entries
    end = b"PK\x05\x06" + struct.pack("<4H2IH", 0, 0, 1, 1, len(directory), 0, 0)

    with pytest.raises(ArchiveInvalid, match="Not a zip file"):
        Archive(io.BytesIO(directory + end))


@pytest.mark.parametrize("entries", [5, 50, 70_000])
def test_a_directory_of_too_many_entries_is_refused_before_it_is_read(
    monkeypatch: pytest.MonkeyPatch, entries: int
) -> None:
    monkeypatch.setattr(zip_files, "MAX_ENTRIES", 2)
    directory = (b"PK\x01\x02" + bytes(42)) * entries
    end = b"PK\x05\x06" + struct.pack("<4H2IH", 0, 0, 1, 1, len(directory), 0, 0)

    with pytest.raises(RequestTooLarge, match="more than 4 entries"):
        Archive(io.BytesIO(directory + end))


def test_system_files_in_zips_are_ignored_and_other_files_refused() -> None:
    good = zip_of(("p/a.safetensors", PROMPT), ("__MACOSX/p/._a", b""), ("p/.DS_Store", b""))
    assert prompt_files(Archive(good)) == {"a": "p/a.safetensors"}
    with pytest.raises(ArchiveInvalid, match=r"contains 'readme\.txt'; expected only prompt files"):
        prompt_files(Archive(zip_of(("a.safetensors", PROMPT), ("readme.txt", b""))))
    with pytest.raises(ArchiveInvalid, match="is empty"):
        prompt_files(Archive(zip_of()))


def test_a_zip_is_written_in_chunks_and_read_back() -> None:
    files = [(f"{i}.bin", bytes([i]) * 1000) for i in range(50)]
    chunks = list(write_zip(files))
    assert len(chunks) > 50
    archive = Archive(io.BytesIO(b"".join(chunks)))
    assert [(path, archive.read(path)) for path in archive.paths] == files


def new(name: str, golden: str, tags: tuple[str, ...] = ()) -> NewTask:
    prompt = GOLDEN[golden]
    data = to_bytes(prompt)
    return NewTask(name=name, data=data, prompt=prompt, features=b"\0\0\0\0", tags=tags)


def test_an_exported_registry_comes_out_the_same_elsewhere(
    database: Database, postgres: str
) -> None:
    registry = Registry(database)
    registry.put(new("pets", "zero_shot"))
    registry.put_all([new("pets", "low_rank", ("eu", "prod")), new("alias", "low_rank")])
    registry.put(new("other", "ragged"))
    registry.set_pinned("other", True)
    data = b"".join(export_registry(registry))

    elsewhere = Database(new_database(postgres))
    try:
        copy = Registry(elsewhere)
        copy.put(new("mine", "deep"))
        report = import_zip(copy, io.BytesIO(data), without_features)
        assert (report.served, report.failed) == (3, 0)

        def contents(of: Registry) -> dict[str, object]:
            tasks, _ = of.tasks("", 99)
            return {t.name: (t.version, t.tags, t.pinned, t.fingerprint) for t in tasks}

        assert contents(copy) == contents(registry) | {"mine": contents(copy)["mine"]}
        assert [c.what for c in copy.history("pets", None, 9)] == ["import"]
        assert b"".join(export_registry(registry)) == data  # the same registry, the same bytes
    finally:
        elsewhere.close()


def test_an_export_that_was_cut_short_or_changed_is_not_imported(database: Database) -> None:
    registry = Registry(database)
    registry.put(new("pets", "low_rank"))
    before = registry.revision()
    with pytest.raises(ArchiveInvalid, match=r"no registry\.json"):
        import_zip(registry, zip_of(("a.safetensors", PROMPT)), without_features)

    version = version_of(PROMPT)
    with zipfile.ZipFile(io.BytesIO(b"".join(export_registry(registry)))) as archive:
        index = archive.read("registry.json")
    changed = zip_of((f"versions/{version}.safetensors", PROMPT + b" "), ("registry.json", index))
    with pytest.raises(ArchiveInvalid, match=r"nothing was changed.*its sha256 differs"):
        import_zip(registry, changed, without_features)
    assert registry.revision() == before
