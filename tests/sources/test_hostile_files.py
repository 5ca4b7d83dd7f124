"""Archives, tables and arrays of strangers: bounded memory, named errors, good rows stay."""

import io
import json
import os
import struct
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from prompt_serve.errors import DatasetInvalid, ImageInvalid
from prompt_serve.image_folders import image_suffixes
from prompt_serve.images.image_source import MAX_IMAGE_BYTES, read_image_path
from prompt_serve.sources.arrays import array_shards
from prompt_serve.sources.images import tar_members
from tests.service.process import ROOT

DAMAGE = [b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff", b"\x00\x00\x00\x40"]
BOUND_MB = 900  # far below what each bomb unpacks to, far above Python with numpy and Arrow


def picture(seed: int = 1) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (seed, 2, 3)).save(file, "PNG")
    return file.getvalue()


def member(name: str, data: bytes, kind: bytes = tarfile.REGTYPE, size: int | None = None) -> bytes:
    """A header with its data, which may lie about its size."""
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(data) if size is None else size
    return info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512)


def read(path: Path) -> tuple[list[str], list[str]]:
    """Names of what is read, and the errors."""
    found = list(tar_members(str(path), image_suffixes()))
    good = [name for name, data in found if isinstance(data, bytes)]
    return good, [str(data) for _, data in found if isinstance(data, ImageInvalid)]


END = bytes(1024)
GOOD = member("a.png", picture())
CHAIN = b"".join(member("././@LongLink", b"x" * 100, b"L") for _ in range(3000))
PAX_SPARSE = b"25 GNU.sparse.major=1\n25 GNU.sparse.minor=0\n"


def pax(text: bytes) -> bytes:
    """A pax header of records without their lengths."""
    records = b""
    for line in text.split(b"\n"):
        length = len(line) + 4
        records += b"%d %s\n" % (length, line)
    return member("pax", records, b"x")


DAMAGED: dict[str, bytes] = {
    "checksum of a header": bytes([GOOD[0] ^ 1]) + GOOD[1:],
    "text in place of a header": b"hello" * 200,
    "half a header": GOOD[:300],
    "size beyond the end": member("b.png", b"x" * 100, size=10**6),
    "long name of 64 GB": member("././@LongLink", b"x" * 512, b"L", size=2**36 - 1),
    "pax header of 64 GB": member("pax", b"x" * 512, b"x", size=2**36 - 1),
    "global header of 2 GB": member("pax", b"x" * 512, b"g", size=2**31),
    "thousands of headers of one member": CHAIN,
    "sparse file": member("b.png", b"", b"S"),
    "sparse file of pax": pax(b"GNU.sparse.major=1\nGNU.sparse.minor=0")
    + member("b.png", b"9" * 512),
}


@pytest.mark.parametrize("kind", DAMAGED)
@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_damage_is_an_error_that_names_the_archive(tmp_path: Path, kind: str, suffix: str) -> None:
    """The images before it are read; ``tarfile`` takes some of these for the end."""
    data = GOOD + DAMAGED[kind] + GOOD + END
    path = tmp_path / f"a{suffix}"
    path.write_bytes(zlib.compress(data, wbits=31) if suffix.endswith("gz") else data)

    good, errors = read(path)

    assert good[:1] == ["a.png"]
    assert len(errors) == 1
    assert str(path) in errors[0]
    assert "damaged or cut short" in errors[0]


@pytest.mark.parametrize("kind", [b"1", b"2", b"3", b"4", b"5", b"6"])
def test_links_devices_and_pipes_are_left_out(tmp_path: Path, kind: bytes) -> None:
    info = tarfile.TarInfo("link.png")
    info.type, info.linkname = kind, "/etc/passwd"
    path = tmp_path / "a.tar"
    path.write_bytes(info.tobuf() + GOOD + END)

    assert read(path) == (["a.png"], [])


@pytest.mark.parametrize(
    "name", ["../../a.png", "/etc/a.png", "a/../../b.png", "a\x1b[2J.png", "é\n.png"]
)
def test_names_of_members_are_names_only(tmp_path: Path, name: str) -> None:
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "a.tar"
    path.write_bytes(member(name, picture()) + END)

    assert read(path) == ([] if ".." in name else [name], [])
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a.tar", "in"]


@pytest.mark.parametrize("blocks", [0, 1, 2, 20])
def test_an_archive_may_end_without_zeros(tmp_path: Path, blocks: int) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(GOOD + bytes(512 * blocks))

    assert read(path) == (["a.png"], [])


def huge_member() -> Iterator[bytes]:
    yield member("b.png", b"", size=2**31)
    for _ in range(2**11):
        yield bytes(2**20)


def many_members() -> Iterator[bytes]:
    for n in range(200_000):
        yield member(f"{n}.txt", b"")


def long_name() -> Iterator[bytes]:
    yield member("././@LongLink", b"", b"L", size=2**31)
    for _ in range(2**11):
        yield b"x" * 2**20


def several_large() -> Iterator[bytes]:
    """Ten images of 200 MB of zeros."""
    for n in range(10):
        yield member(f"b{n}.png", b"", size=200 * 2**20)
        for _ in range(200):
            yield bytes(2**20)


def gz(path: Path, parts: Callable[[], Iterator[bytes]]) -> None:
    packer = zlib.compressobj(1, wbits=31)
    with path.open("wb") as file:
        file.write(packer.compress(GOOD))
        for part in parts():
            file.write(packer.compress(part))
        file.write(packer.compress(END) + packer.flush())


_COUNT = """
import json, sys
from prompt_serve.errors import DatasetInvalid
from prompt_serve.image_folders import Ignored
from prompt_serve.sources.plan import shards_of
for path in sys.argv[1:]:
    good, bad = 0, []
    try:
        for shard in shards_of([path], Ignored()):
            if hasattr(shard, "items"):
                for item in shard.items():
                    if isinstance(item.data, Exception):
                        bad.append(f"{item.source} {item.data}")
                    else:
                        good += 1
            else:
                for batch in shard.batches(65536):
                    good += len(batch.sources) - len(batch.errors)
                    bad += [text for _, text in batch.errors.values()]
    except DatasetInvalid as error:
        bad.append(f"refused: {error}")
    # Not ru_maxrss, which starts with what the parent has.
    [peak] = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
    megabytes = int(peak.split()[1]) // 1024
    print(json.dumps([path, good, bad, megabytes]), flush=True)
"""


class Count(NamedTuple):
    """What a process of its own found in a file, and the memory it had taken by then."""

    path: str
    good: int
    errors: list[str]
    megabytes: int


def counted(*paths: Path) -> list[Count]:
    """Read files in a process of its own, which a fault may end."""
    done = subprocess.run(
        [sys.executable, "-c", _COUNT, *map(str, paths)],
        capture_output=True, text=True, check=False, timeout=300, cwd=ROOT,
    )  # fmt: skip
    found = [Count(*json.loads(line)) for line in done.stdout.splitlines()]
    assert done.returncode == 0, (paths[len(found)], done.returncode, done.stderr[-2000:])
    return found


@pytest.mark.long
@pytest.mark.parametrize("parts", [huge_member, many_members, long_name, several_large])
def test_an_archive_that_unpacks_without_end_takes_little_memory(
    tmp_path: Path, parts: Callable[[], Iterator[bytes]]
) -> None:
    path = tmp_path / "bomb.tar.gz"
    gz(path, parts)

    [found] = counted(path)

    assert found.megabytes < BOUND_MB
    assert found.good == (11 if parts is several_large else 1)
    assert bool(found.errors) == (parts in (huge_member, long_name))


# Tables


def table(path: Path, *, rows: int = 40, groups: int = 10) -> None:
    images = [{"bytes": picture(n), "path": f"{n}.png"} for n in range(rows)]
    made = pa.table({"image": images, "label": [f"c{n % 2}" for n in range(rows)]})
    if path.suffix == ".parquet":
        pq.write_table(made, path, row_group_size=groups)
    elif path.suffix == ".arrow":
        with pa.ipc.new_file(str(path), made.schema) as writer:
            writer.write_table(made, max_chunksize=groups)
    else:
        with pa.ipc.new_stream(str(path), made.schema) as writer:
            writer.write_table(made, max_chunksize=groups)


SUFFIXES = [".parquet", ".arrow", ".feather"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_damaged_tables_are_errors_or_rows(tmp_path: Path, suffix: str) -> None:
    """Wherever bytes were changed: the process lives, and errors name the file."""
    whole = tmp_path / f"whole{suffix}"
    table(whole)
    rng = np.random.default_rng(1)
    paths = []
    for n in range(60):
        data = bytearray(whole.read_bytes())
        for _ in range(int(rng.integers(1, 5))):
            at = int(rng.integers(8, len(data)))
            data[at : at + 4] = bytes(rng.choice(DAMAGE))
        paths.append(tmp_path / f"{n}{suffix}")
        paths[-1].write_bytes(data)

    found = counted(*paths)

    assert len(found) == len(paths)
    for one in found:
        assert one.good <= 40
        assert all(one.path in error for error in one.errors if "refused" in error)
    assert sum(bool(one.errors) for one in found) > 10
    assert max(one.megabytes for one in found) < BOUND_MB


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("cut", [0.1, 0.5, 0.9, 0.99])
def test_a_table_that_is_cut_off_is_refused_by_name(
    tmp_path: Path, suffix: str, cut: float
) -> None:
    path = tmp_path / f"t{suffix}"
    table(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(cut * len(data))])

    [found] = counted(path)

    assert found.errors
    assert str(path) in found.errors[0]


@pytest.mark.parametrize("suffix", [".arrow", ".feather"])
@pytest.mark.parametrize("value", [2**31 - 1, -1, 10**6, -(2**31), 10**9])
def test_offsets_beyond_the_data_are_errors_of_their_rows(
    tmp_path: Path, suffix: str, value: int
) -> None:
    """Arrow does not check them, and would read other memory of the process."""
    path = tmp_path / f"t{suffix}"
    table(path)
    data = bytearray(path.read_bytes())
    lengths = [len(picture(n)) for n in range(30, 40)]
    offsets = np.cumsum([0, *lengths]).astype(np.int32)
    at = data.rindex(offsets.tobytes())
    data[at + 20 : at + 24] = struct.pack("<i", value)
    path.write_bytes(data)

    [found] = counted(path)

    assert found.good == 30
    assert len(found.errors) == 1
    assert found.errors[0].startswith(f"{path}#30-39 ")


@pytest.mark.parametrize("column", ["image", "embedding"])
def test_the_groups_before_a_damaged_one_are_read(tmp_path: Path, column: str) -> None:
    path = tmp_path / "t.parquet"
    rng = np.random.default_rng(0)
    values: Any = (
        [b"ab%d" % n * 200 for n in range(40)]
        if column == "image"
        else list(rng.standard_normal((40, 64)).astype(np.float32))
    )
    made = pa.table({column: pa.array(values), "path": [f"{n}.png" for n in range(40)]})
    pq.write_table(made, path, row_group_size=10, compression="zstd", use_dictionary=False)
    group = pq.ParquetFile(path).metadata.row_group(3).column(0)
    data = bytearray(path.read_bytes())
    end = group.data_page_offset + group.total_compressed_size
    data[group.data_page_offset + 60 : end] = b"\xff" * (end - group.data_page_offset - 60)
    path.write_bytes(data)

    [found] = counted(path)

    assert found.good == 30
    assert len(found.errors) == 1
    assert str(path) in found.errors[0]


def dictionary_of_a_large_image(path: Path) -> None:
    large = pa.array([bytes(60 * 2**20)], pa.binary())
    image = pa.DictionaryArray.from_arrays(pa.array([0] * 40, pa.int32()), large)
    pq.write_table(pa.table({"image": image}), path, compression="zstd", store_schema=False)


def images_of_zeros(path: Path) -> None:
    schema = pa.schema([("image", pa.binary())])
    with pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=False) as writer:
        for _ in range(16):
            writer.write_table(pa.table({"image": pa.array([bytes(100 * 2**20)])}))


def wide_embeddings(path: Path) -> None:
    values = pa.array(np.zeros(200 * 2**20, np.float32))
    rows = pa.ListArray.from_arrays(pa.array([0, len(values)], pa.int32()), values)
    pq.write_table(pa.table({"embedding": rows}), path, compression="zstd")


def stream_of_zeros(path: Path) -> None:
    schema = pa.schema([("image", pa.binary())])
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_stream(str(path), schema, options=options) as writer:
        for _ in range(16):
            writer.write_batch(pa.record_batch([pa.array([bytes(100 * 2**20)])], schema=schema))


@pytest.mark.long
@pytest.mark.parametrize(
    ("make", "good", "suffix"),
    [
        (dictionary_of_a_large_image, 40, ".parquet"),
        (images_of_zeros, 16, ".parquet"),
        (wide_embeddings, 0, ".parquet"),
        (stream_of_zeros, 16, ".arrow"),
    ],
)
def test_a_small_table_of_much_takes_little_memory(
    tmp_path: Path, make: Callable[[Path], None], good: int, suffix: str
) -> None:
    path = tmp_path / f"bomb{suffix}"
    make(path)

    [found] = counted(path)

    assert found.good == good
    assert bool(found.errors) == (good == 0)
    assert found.megabytes < BOUND_MB


# Arrays, lists and files


def npy(shape: object, descr: object = "<f4", data: bytes = b"", order: object = False) -> bytes:
    text = repr({"descr": descr, "fortran_order": order, "shape": shape}).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


@pytest.mark.parametrize(
    "shape",
    [(10**30, 4), (10**12, 4), (2**63, 2**63), (3, 0), (-1, 4), (4, -4), 7, (), "ab", (1.5, 4),
     None, (3, 4, 5), ("a", 4), (10, 4)],
)  # fmt: skip
def test_an_array_that_lies_about_its_shape_is_refused(tmp_path: Path, shape: object) -> None:
    path = tmp_path / "a.npy"
    path.write_bytes(npy(shape, data=bytes(9 * 16)))

    with pytest.raises(DatasetInvalid, match=r"a\.npy (has|is cut short|is not a NumPy file)"):
        array_shards(str(path), rows_per_shard=100)


@pytest.mark.parametrize(
    "descr", ["|O", "<f3", "|V8", "", None, 5, [("a", "<f4")], "(2,)f4", "<M8[ns]", "f4,f4", "<c8"]
)
def test_an_array_of_other_types_is_refused(tmp_path: Path, descr: object) -> None:
    path = tmp_path / "a.npy"
    path.write_bytes(npy((3, 4), descr, bytes(200)))

    with pytest.raises(DatasetInvalid, match=r"a\.npy (has|is not a NumPy file)"):
        array_shards(str(path), rows_per_shard=100)


@pytest.mark.parametrize("text", ["(" * 5000, "[" * 5000, "{" * 3000, "-" * 9000 + "1", "9" * 9000])
def test_a_header_of_brackets_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.npy"
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode())

    with pytest.raises(DatasetInvalid, match="is not a NumPy file"):
        array_shards(str(path), rows_per_shard=100)


@pytest.mark.parametrize("name", ["/dev/zero", "/dev/full", "/dev/random", "/dev/null", "pipe"])
def test_devices_and_pipes_are_not_read(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / "pipe")

    with pytest.raises(ImageInvalid, match="device or a pipe"):
        read_image_path(tmp_path / name)  # an absolute path stays itself


def test_a_file_too_large_for_an_image_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    with path.open("wb") as file:
        file.truncate(MAX_IMAGE_BYTES + 1)

    with pytest.raises(ImageInvalid, match="an image file may have at most 536,870,912"):
        read_image_path(path)
    assert read_image_path(Path("/proc/self/status")).startswith(b"Name:")  # it has no size
