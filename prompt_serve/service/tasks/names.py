"""Task names and ``name@version`` -> full versions, and the errors for unknown ones."""

import difflib
from collections.abc import Sequence

from prompt_serve.errors import TaskNotFound, VersionAmbiguous, VersionNotFound
from prompt_serve.service.storage.preconditions import is_task_name, parse_versioned_name
from prompt_serve.service.storage.registry import Registry


def current_versions(registry: Registry, names: Sequence[str]) -> dict[str, str]:
    """Return the versions that ``names`` point at now; unknown and invalid names are left out."""
    return registry.versions([name for name in names if is_task_name(name)])


def version_of_name(registry: Registry, name: str) -> str:
    """Return the version of ``name``, or of ``name@prefix`` in the history of that name.

    Raises:
        TaskNotFound: there is no such task.
        RequestInvalid, VersionNotFound, VersionAmbiguous: the part after the @ is invalid, unknown
            or the beginning of several versions.
    """
    plain, prefix = parse_versioned_name(name)
    version = current_versions(registry, [plain]).get(plain)
    if version is None:
        raise task_not_found(registry, plain)
    return version if prefix is None else version_in_history(registry, plain, prefix)


def version_in_history(registry: Registry, name: str, prefix: str) -> str:
    """Return the version in the history of ``name`` that begins with ``prefix``.

    Raises:
        VersionNotFound, VersionAmbiguous: there is none, or there are several.
    """
    where = f"in the history of {name!r}"
    return single_version(registry.versions_of(name, prefix), prefix, where)


def single_version(versions: Sequence[str], prefix: str, where: str) -> str:
    """Return the only one of ``versions``, which all begin with ``prefix``.

    Args:
        versions: found in the registry.
        prefix: their common beginning, for the message.
        where: the place that was searched, for the message.

    Raises:
        VersionNotFound, VersionAmbiguous: there is none, or there are several.
    """
    if not versions:
        raise VersionNotFound(
            f"No version {where} begins with {prefix[:64]}, or it is no longer kept."
        )
    if len(versions) > 1:
        raise VersionAmbiguous(
            f"Several versions {where} begin with {prefix[:64]}. Give more digits.",
            versions=tuple(sorted(versions)),
        )
    return versions[0]


def task_not_found(registry: Registry, name: str) -> TaskNotFound:
    """Build the error for an unknown task, with similar names as hints."""
    name = name[:200]  # comparing names of any length would take as long
    candidates = registry.names_like(name) if is_task_name(name[:1]) else ()
    close = tuple(difflib.get_close_matches(name, candidates, n=3))
    hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
    return TaskNotFound(f"No task named {name!r} is loaded.{hint}", name=name, loaded=close)
