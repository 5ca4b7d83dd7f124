"""Prepare prompts for upload: bytes and task name of one prompt, or a zip of many."""

import contextlib
import io
import os
import zipfile
from pathlib import Path
from typing import TypeAlias

from prompt_serve.errors import ArchiveInvalid, PromptFileInvalid, RequestInvalid
from prompt_serve.prompts.prompt_file import Prompt, check_kind, from_bytes, to_bytes

_SUFFIX = ".safetensors"

PromptSource: TypeAlias = str | os.PathLike[str] | bytes | Prompt


def prompt_to_upload(file: PromptSource, name: str | None) -> tuple[str, bytes]:
    """Return the name of the task and the bytes of the prompt file.

    Args:
        file: path of a prompt file, its bytes, or a Prompt.
        name: name of the task; None for the file's name without its suffix, as in a folder or
            zip. Of bytes and Prompts it is the name that the prompt holds.

    Raises:
        PromptFileInvalid: the file cannot be read, or is not a prompt file.
        RequestInvalid: no name was given and the prompt has none.
    """
    if isinstance(file, Prompt):
        return _named(name or file.name), to_bytes(file)
    if isinstance(file, bytes):
        check_kind(file)
        return _named(name or from_bytes(file).name), file
    path = Path(file)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise PromptFileInvalid(f"{path} cannot be read: {error.strerror}.") from error
    try:
        check_kind(data)  # before a checkpoint of gigabytes is sent
    except PromptFileInvalid as error:
        raise PromptFileInvalid(f"{path}: {error}") from error
    return name or path.stem, data


def zip_of(source: Path) -> bytes:
    """Return a zip to upload: ``source`` itself, or the prompt files of the folder ``source``.

    Raises:
        ArchiveInvalid: not a file, and not a folder with prompt files.
    """
    if source.is_file():
        return source.read_bytes()
    files = sorted(source.glob(f"*{_SUFFIX}")) if source.is_dir() else []
    if not files:
        raise ArchiveInvalid(
            f"{source} is neither a zip file nor a folder with prompt files (NAME{_SUFFIX})."
        )
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for file in files:
            # Stored, because learned numbers do not compress. ZipInfo's date is the year 1980, so
            # that the same files give the same bytes.
            archive.writestr(zipfile.ZipInfo(file.name), file.read_bytes())
    return buffer.getvalue()


def other_names_inside(source: Path) -> dict[str, str]:
    """Return the names that prompt files hold, by file name, where the two differ.

    Args:
        source: a folder or zip, as for ``zip_of``. Files that are no prompt files are ignored.
    """
    names = {}
    with zipfile.ZipFile(io.BytesIO(zip_of(source))) as archive:
        for entry in archive.namelist():
            with contextlib.suppress(PromptFileInvalid):
                name = from_bytes(archive.read(entry)).name
                if name not in ("", Path(entry).stem):
                    names[entry] = name
    return names


def _named(name: str) -> str:
    if not name:
        raise RequestInvalid("The prompt has no name. Name the task: name='pets' (--name pets).")
    return name
