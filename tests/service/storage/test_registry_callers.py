"""Callers that are limited to some tasks see and change no others, and keep within their quota."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from prompt_serve.errors import NotAllowed, QuotaExceeded
from prompt_serve.prompts.prompt_file import to_bytes, version_of
from prompt_serve.service.permissions import EVERYTHING, NO_LIMITS, Permissions, Quota
from prompt_serve.service.request_context import Actor, RequestContext, request_scope
from prompt_serve.service.storage.database import Database
from prompt_serve.service.storage.preconditions import ALWAYS
from prompt_serve.service.storage.registry import Registry
from prompt_serve.service.storage.visibility import check_may_change
from tests.golden import BACKBONE, GOLDEN
from tests.service.storage.test_registry import new

NAMES = ("other", "other/a", "team/a", "team/b", "teams")
TAGS = {"team/a": ["eu", "x"], "other": ["eu"], "teams": ["us"]}
PROMPTS = {
    (name, n): replace(GOLDEN["low_rank"], name=f"{name} {n}")
    for name in (*NAMES, "team/gone", "gone")
    for n in range(2)
}
VERSIONS = {key: version_of(to_bytes(prompt)) for key, prompt in PROMPTS.items()}

CALLERS = [
    (EVERYTHING, {*NAMES, "team/gone", "gone"}),
    (Permissions(names=("team/*",)), {"team/a", "team/b", "team/gone"}),
    (Permissions(names=("t*",)), {"team/a", "team/b", "team/gone", "teams"}),
    (Permissions(names=("other",)), {"other"}),
    (Permissions(names=("other/*", "gone")), {"other/a", "gone"}),
    (Permissions(names=("TEAM/*", "none")), set[str]()),
    (Permissions(tags=("eu",)), {"team/a", "other"}),
    (Permissions(tags=("us", "x")), {"team/a", "teams"}),
    (Permissions(names=("other/a",), tags=("us",)), {"other/a", "teams"}),
]
BY_NAME = [(allowed, seen) for allowed, seen in CALLERS if not allowed.tags]


@pytest.fixture
def registry(database: Database) -> Registry:
    """Each task with two versions; two of them are deleted."""
    filled = Registry(database)
    for n in range(2):
        filled.put_all([new(name, PROMPTS[name, n]) for name in (*NAMES, "team/gone", "gone")])
    for name, tags in TAGS.items():
        filled.set_tags(name, tags)
    for name in ("team/gone", "gone"):
        filled.delete(name)
    return filled


@contextmanager
def caller(allowed: Permissions, quota: Quota = NO_LIMITS) -> Iterator[None]:
    with request_scope(RequestContext(actor=Actor("key", "k1", allowed, quota))):
        yield


@pytest.mark.parametrize(("allowed", "seen"), CALLERS)
def test_a_caller_sees_its_own_tasks_alone(
    registry: Registry, allowed: Permissions, seen: set[str]
) -> None:
    there = seen & set(NAMES)
    fingerprint = BACKBONE.fingerprint
    with caller(allowed):
        assert registry.versions(NAMES) == {name: VERSIONS[name, 1] for name in there}
        assert [task.name for task in registry.tasks("", 99)[0]] == sorted(there)
        assert registry.count() == len(there)
        assert registry.versions_of_backbone(fingerprint) == registry.versions(NAMES)
        for tag in ("eu", "us", "x"):
            tagged = {name for name in there if tag in TAGS.get(name, ())}
            assert registry.versions_of_backbone(fingerprint, tag).keys() == tagged
        for letter in "tog":
            assert registry.names_like(letter) == [n for n in sorted(there) if n[0] == letter]
        for name in (*NAMES, "team/gone", "gone"):
            task = registry.task(name)
            assert (task is not None) == (name in there)
            kept = {VERSIONS[name, n] for n in range(2)} if name in seen else set()
            assert set(registry.versions_of(name)) == kept
            entries = 2 + (name not in NAMES) if name in seen else 0
            assert len(registry.history(name, None, 9)) == entries
            before = VERSIONS[name, 0 if name in NAMES else 1]
            assert registry.version_before(name) == (before if name in seen else None)


@pytest.mark.parametrize(("allowed", "seen"), CALLERS)
def test_nobody_is_led_back_to_a_version_that_is_gone(
    registry: Registry, allowed: Permissions, seen: set[str]
) -> None:
    for name in NAMES:
        assert registry.delete_version(VERSIONS[name, 0])
    with caller(allowed):
        for name in NAMES:
            assert registry.version_before(name) is None
            left = [VERSIONS[name, 1]] if name in seen else []
            assert registry.versions_of(name) == left


Change = Callable[[Registry, str], object]
REFUSED: list[Change] = [
    lambda registry, name: registry.check_change(name, ALWAYS),
    lambda registry, name: registry.put(new(name, PROMPTS["other", 0])),
    lambda registry, name: registry.point(name, VERSIONS["other", 0], "alias"),
]
UNKNOWN: list[Change] = [
    lambda registry, name: registry.set_tags(name, ["new"]),
    lambda registry, name: registry.edit_tags(name, ["newer"], []),
    lambda registry, name: registry.set_pinned(name, True),
    lambda registry, name: registry.delete(name),
]


@pytest.mark.parametrize(("allowed", "seen"), BY_NAME)
def test_a_caller_changes_its_own_tasks_alone(
    registry: Registry, allowed: Permissions, seen: set[str]
) -> None:
    for name in NAMES:
        before, revision = registry.task(name), registry.revision()
        with caller(allowed):
            if name in seen:
                for change in REFUSED:
                    change(registry, name)
                assert [change(registry, name) for change in UNKNOWN] == [True] * 4
                continue
            for change in REFUSED:
                with pytest.raises(NotAllowed) as refused:
                    change(registry, name)
                assert str(refused.value) == (
                    f"This key may not use the name {name!r}, only {', '.join(allowed.names)}."
                )
                assert refused.value.facts == {"action": "upload"}
            # As for a name that does not exist.
            assert [change(registry, name) for change in UNKNOWN] == [False] * 4
        assert (registry.task(name), registry.revision()) == (before, revision)
    assert registry.count() == len(set(NAMES) - seen)


@pytest.mark.parametrize("length", [1, 200, 201, 5000])
@pytest.mark.parametrize("patterns", [1, 10, 11, 300])
def test_a_refusal_shows_only_so_much(length: int, patterns: int) -> None:
    names = tuple(f"team-{n}/*" for n in range(patterns))
    with caller(Permissions(names=names)), pytest.raises(NotAllowed) as refused:
        check_may_change("n" * length)

    assert str(refused.value) == (
        f"This key may not use the name {'n' * min(length, 200)!r}, only {', '.join(names[:10])}."
    )


def test_a_key_that_is_limited_by_tag_changes_nothing() -> None:
    with caller(Permissions(tags=("eu",))), pytest.raises(NotAllowed) as refused:
        check_may_change("team/a")

    assert str(refused.value) == (
        "This key may not use the name 'team/a', only tasks with its tags."
    )


@pytest.mark.parametrize("how", ["put", "put_all", "point"])
@pytest.mark.parametrize("limit", [2, 3])
def test_a_change_beyond_the_quota_changes_nothing(
    registry: Registry, how: str, limit: int
) -> None:
    before = registry.revision()
    data = new("team/c", GOLDEN["zero_shot"])
    with caller(Permissions(names=("team/*",)), Quota(tasks=limit)):

        def change() -> None:
            if how == "point":
                registry.point("team/c", VERSIONS["other", 0], "alias")
            elif how == "put":
                registry.put(data)
            else:
                registry.put_all([replace(data, name="team/a"), data])

        if limit == 3:
            change()
        else:
            with pytest.raises(QuotaExceeded, match="would have 3 tasks; its limit is 2"):
                change()
    assert (registry.revision() > before) == (limit == 3)
    assert (registry.task("team/c") is not None) == (limit == 3)
