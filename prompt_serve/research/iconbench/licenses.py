"""Authors and licenses of the drawings: the note beside the built benchmark."""

from collections.abc import Mapping
from typing import Any

from prompt_serve.research.iconbench.packages import Package

_TEXTS = {
    "Apache-2.0": "https://www.apache.org/licenses/LICENSE-2.0",
    "CC-BY-4.0": "https://creativecommons.org/licenses/by/4.0/",
    "CC-BY-SA-4.0": "https://creativecommons.org/licenses/by-sa/4.0/",
    "MIT": "https://opensource.org/license/mit",
}


def license_note(
    infos: Mapping[str, tuple[Package, Mapping[str, Any]]], counts: Mapping[str, int], size: int
) -> str:
    """Return the text of LICENSES.md.

    Args:
        infos: style -> its package and iconify's ``info.json``.
        counts: style -> number of drawings used.
        size: side length of the drawings in pixels.
    """
    lines = [
        "# Licenses of IconBench",
        "",
        "The drawings belong to the projects below and stay under their licenses. Modification:",
        f"rendered to PNG at {size}x{size} on white. The sorting of emoji into groups is from npm",
        "`emojibase-data` (MIT), after Unicode.",
        "",
        "| style | set | author | license | source | npm package | images |",
        "|---|---|---|---|---|---|---|",
    ]
    used = set()
    for style, (package, info) in infos.items():
        license = info["license"].get("spdx") or info["license"]["title"]
        used.add(license)
        source = info["author"].get("url") or info["license"].get("url", "")
        lines.append(
            f"| `{style}` | {info['name']} | {info['author']['name']} | {license} | {source} | "
            f"`{package}` | {counts[style]} |"
        )
    texts = [f"{license} {_TEXTS[license]}" for license in sorted(used) if license in _TEXTS]
    return "\n".join([*lines, "", "License texts: " + ", ".join(texts) + ".", ""])
