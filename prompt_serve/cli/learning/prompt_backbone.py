"""The backbone of a prompt file: remembered at training, found again at evaluation.

A prompt file has the name of its backbone's file or folder, not its path, which belongs to one
machine. Paths are kept in ``backbones`` of the cache folder, one small file per backbone.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from prompt_serve.bundle import SHIPPED
from prompt_serve.errors import BackboneUnavailable, ConfigInvalid
from prompt_serve.files import atomic_file
from prompt_serve.text_files import expand_user
from prompt_serve.training.data.cache_folder import cache_folder

if TYPE_CHECKING:
    from prompt_serve.training.clip.backbone import Backbone
    from prompt_serve.types import BackboneRef


def remember_backbone(backbone: "Backbone", spec: str) -> None:
    """Note where a backbone's file or folder is, if it has one."""
    before, path = _split(spec)
    if spec in SHIPPED or not path.exists():
        return
    try:
        with atomic_file(_note(backbone.ref)) as temporary:
            temporary.write_text(f"{before}{path.absolute()}", encoding="utf-8")
    except (OSError, ValueError, ConfigInvalid):
        return  # a cache that cannot be written costs a convenience; ValueError: not UTF-8


def find_backbone(learned_on: "BackboneRef", prompt_file: Path) -> str:
    """Return the name under which ``load_backbone`` finds the backbone of a prompt file.

    Looks where it was at training, then in the current folder, then beside the prompt file.

    Raises:
        BackboneUnavailable: it has a file or folder, which is in none of these places.
    """
    label, at, file = learned_on.id.partition("@")
    if not at:
        label, file = "", label
    if not at and (file in SHIPPED or "/" in file):
        return file  # shipped, or MODEL/TAG
    places = [f"{label}{at}{folder / file}" for folder in (Path.cwd(), prompt_file.parent)]
    for spec in (_noted(learned_on), *places):
        if spec is not None and _split(spec)[1].exists():
            return spec
    raise BackboneUnavailable(
        f"{prompt_file} was learned on {learned_on.id!r}, whose {'file' if at else 'folder'} "
        f"{file!r} is neither here nor beside the prompt file. Name it: "
        f"--backbone {label}{at}/path/to/{file}"
    )


def _split(spec: str) -> tuple[str, Path]:
    """Return ``MODEL@`` or nothing, and the path that follows."""
    whole = expand_user(spec)
    label, at, file = spec.partition("@")
    if whole.exists() or not at:
        return "", whole
    return label + at, expand_user(file)


def _note(ref: "BackboneRef") -> Path:
    return cache_folder("backbones") / ref.fingerprint


def _noted(ref: "BackboneRef") -> str | None:
    try:
        return _note(ref).read_text(encoding="utf-8")
    except (OSError, ValueError, ConfigInvalid):
        return None
