"""A prompt in any form -> the bytes to upload, and the name of its task."""

import io
import os
import zipfile
from pathlib import Path
from typing import TypeAlias

from prompt_serve.errors import ArchiveInvalid, PromptFileInvalid, RequestInvalid
from prompt_serve.prompts.prompt_file import Prompt, from_bytes, to_bytes

_SUFFIX = ".safetensors"

PromptSource: TypeAlias = str | os.PathLike[str] | bytes | Prompt


def prompt_to_upload(file: PromptSource, name: str | None) -> tuple[str, bytes]:
    """The name of the task and the bytes of the prompt file.

    Args:
        file: a path of a prompt file, its bytes, or a Prompt.
        name: of the task; None for the prompt's own, or else the file's without suffix.

    Raises:
        PromptFileInvalid: there is no such file, or its name is looked for and it is no prompt.
        RequestInvalid: there is no name to be found.
    """
    if isinstance(file, Prompt):
        return _named(name or file.name), to_bytes(file)
    if isinstance(file, bytes):
        return _named(name or from_bytes(file).name), file
    path = Path(file)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise PromptFileInvalid(f"{path} cannot be read: {error.strerror}.") from error
    return _named(name or from_bytes(data).name or path.stem), data


def zip_of(source: Path) -> bytes:
    """The zip to upload: ``source`` itself, or the prompt files in it where it is a folder.

    Raises:
        ArchiveInvalid: it is neither, or has no prompt file.
    """
    if source.is_file():
        return source.read_bytes()
    files = sorted(source.glob(f"*{_SUFFIX}")) if source.is_dir() else []
    if not files:
        raise ArchiveInvalid(
            f"{source} is neither a zip nor a folder with prompt files (NAME{_SUFFIX})."
        )
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for file in files:
            # The numbers of prompts do not get smaller; the year 1980: same files, same bytes.
            archive.writestr(zipfile.ZipInfo(file.name), file.read_bytes())
    return buffer.getvalue()


def _named(name: str) -> str:
    if not name:
        raise RequestInvalid("The prompt has no name of its own. Give the task one: name='pets'.")
    return name
