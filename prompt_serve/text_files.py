"""Read text files and paths as people have them: with a BOM, in UTF-16, from Windows.

Bytes that are not UTF-8 are kept as surrogates, as ``os.fsdecode`` keeps them: a file name in a
list or table stays the name of the file, whatever its encoding.
"""

import codecs
import os
from pathlib import Path

LONGEST_FIELD = 2**31 - 1  # of CSV files, in characters; Python's own limit is 131,072
_BOMS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",  # before UTF-16, whose BOM it starts with
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}


def read_text(path: Path) -> str:
    """Return a file's text; see ``decode_text``."""
    return decode_text(path.read_bytes())


def decode_text(data: bytes) -> str:
    """Return the text of UTF-8, or UTF-16 or UTF-32, with or without a BOM.

    Bytes of another encoding become surrogates (see ``not_utf8``).
    """
    for bom, encoding in _BOMS.items():
        if data.startswith(bom):
            return _decoded(data[len(bom) :], encoding)
    # Half of the bytes of English text in UTF-16 are zero; no text in UTF-8 has any.
    if data[:1] == b"\0":
        return _decoded(data, "utf-16-be")
    if data[1:2] == b"\0":
        return _decoded(data, "utf-16-le")
    return _decoded(data, "utf-8")


def _decoded(data: bytes, encoding: str) -> str:
    return data.decode(encoding, "surrogateescape" if encoding == "utf-8" else "replace")


def is_utf8(text: str) -> bool:
    """Return False if the text holds bytes that are not UTF-8."""
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def not_utf8(path: Path, text: str) -> str:
    """Return a sentence that says where the text of a file is not UTF-8, and what to do."""
    line = next(n for n, part in enumerate(text.split("\n"), start=1) if not is_utf8(part))
    return (
        f"{path} is not UTF-8 text (line {line}), perhaps Latin-1 or Windows-1252; save it as "
        f"UTF-8: iconv -f WINDOWS-1252 -t UTF-8 {path.name}"
    )


def utf8_name(name: str) -> str:
    """Return a file name as its bytes read in UTF-8; unchanged if they are not UTF-8.

    In a locale such as C, Python reads the name of a folder ``é`` as two surrogates.
    """
    try:
        return os.fsencode(name).decode("utf-8")
    except (UnicodeEncodeError, UnicodeDecodeError):
        return name


def expand_user(path: str | Path) -> Path:
    """Return a path with ``~`` replaced by the home folder; unchanged where there is none."""
    return Path(os.path.expanduser(path))  # noqa: PTH111  # Path.expanduser fails without a home


def local_path(text: str, folder: Path = Path()) -> Path:
    r"""Return the path that a list or table names, relative to ``folder``.

    ``~`` is expanded, and ``images\1.png`` from Windows is ``images/1.png`` unless there is a
    file whose name has a backslash.
    """
    # In a locale such as C, file names with "é" have other characters than texts with it.
    text = os.fsdecode(text.encode("utf-8", "surrogateescape"))
    path = folder / expand_user(text)
    if "\\" in text and not os.path.lexists(path):
        return folder / expand_user(text.replace("\\", "/"))
    return path
