"""What every change of the registry stores and records, and what the lookups return."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from prompt_serve.errors import RequestInvalid, VersionChanged, VersionInUse
from prompt_serve.prompts.prompt_file import to_bytes, version_of
from prompt_serve.schemas import AuditEntry
from prompt_serve.service.request_context import Actor, RequestContext, request_scope
from prompt_serve.service.storage.audit import AuditLog
from prompt_serve.service.storage.database import Database
from prompt_serve.service.storage.preconditions import Condition
from prompt_serve.service.storage.prompt_facts import facts_of
from prompt_serve.service.storage.registry import NewTask, Registry
from prompt_serve.service.storage.tables import StoredFacts
from tests.golden import BACKBONE, GOLDEN
from tests.service.storage.test_registry import FEATURES, new

PROMPTS = [replace(GOLDEN["low_rank"], name=f"prompt {n}") for n in range(6)]
VERSIONS = [version_of(to_bytes(prompt)) for prompt in PROMPTS]
A, B, C = VERSIONS[:3]
Entry = tuple[str, str, str | None, str | None]


@pytest.fixture
def registry(database: Database) -> Registry:
    return Registry(database, keep_versions=2)


@pytest.fixture
def audit(database: Database) -> AuditLog:
    return AuditLog(database)


def put(registry: Registry, name: str, n: int, **fields: object) -> None:
    registry.put(replace(new(name, PROMPTS[n]), **fields))  # type: ignore[arg-type]


def entries(audit: AuditLog) -> list[Entry]:
    """Return action, subject, before and after of all changes, oldest first."""
    found: list[AuditEntry] = audit.page(limit=1000, subject=None).entries
    return [(one.action, one.subject, one.before, one.after) for one in reversed(found)]


def test_every_change_is_in_the_audit_log_with_its_versions(
    registry: Registry, audit: AuditLog
) -> None:
    put(registry, "a", 0)
    put(registry, "a", 1)
    put(registry, "a", 1)  # the same again: no change
    registry.point("b", A, "alias")
    registry.point("a", A, "rollback")
    registry.set_pinned("a", True)
    registry.set_pinned("a", False)
    registry.set_pinned("none", True)
    registry.set_tags("a", ["z", "b"])
    registry.edit_tags("a", ["c" * 70], ["z"])
    registry.delete("b")
    registry.delete("b")
    registry.delete_version(B)
    registry.delete_version(B)

    assert entries(audit) == [
        ("task.put", "a", None, A),
        ("task.put", "a", A, B),
        ("task.alias", "b", None, A),
        ("task.rollback", "a", B, A),
        ("task.pin", "a", None, None),
        ("task.unpin", "a", None, None),
        ("task.tags", "a", None, "b,z"),
        ("task.tags", "a", None, f"b,{'c' * 62}"),
        ("task.delete", "b", A, None),
        ("version.delete", B, B, None),
    ]


@pytest.mark.parametrize("length", [1, 199, 200, 201, 5000])
def test_the_history_says_when_in_utc_and_who_in_200_characters(
    registry: Registry, audit: AuditLog, length: int
) -> None:
    before = datetime.now(UTC) - timedelta(milliseconds=1)  # times are cut to milliseconds
    with request_scope(RequestContext(actor=Actor("n" * length, "k1"))):
        put(registry, "a", 0)
    (entry,) = registry.history("a", None, 9)

    (record,) = audit.page(limit=9, subject=None).entries
    assert entry.who == record.actor == "n" * min(length, 200)
    assert before <= datetime.fromisoformat(entry.at) <= datetime.now(UTC)
    assert entry.at.endswith("+00:00")
    stored = registry.task("a")
    assert stored is not None
    assert before <= datetime.fromisoformat(stored.updated) <= datetime.now(UTC)


def test_changes_say_whether_there_was_something_to_change(registry: Registry) -> None:
    put(registry, "a", 0)

    assert registry.set_tags("a", ["x"])
    assert registry.edit_tags("a", ["y"], [])
    assert registry.set_pinned("a", True)
    assert registry.point("a", A, "rollback")
    assert not registry.set_tags("none", ["x"])
    assert not registry.edit_tags("none", ["y"], [])
    assert not registry.set_pinned("none", True)
    assert not registry.point("a", C, "rollback")
    assert not registry.delete("none")
    assert registry.delete("a")
    assert registry.delete_version(A)
    assert not registry.delete_version(A)
    assert not registry.has_version(A)


@pytest.mark.parametrize("pinned", [True, False])
def test_a_pin_of_one_name_leaves_the_others(registry: Registry, pinned: bool) -> None:
    put(registry, "a", 0, pinned=True)
    put(registry, "b", 1, pinned=pinned)
    put(registry, "c", 2)

    states = {name: registry.task(name) for name in "abc"}
    assert {name: task and task.pinned for name, task in states.items()} == {
        "a": True, "b": pinned, "c": False,
    }  # fmt: skip
    assert sorted(registry.pinned()) == sorted([A, B] if pinned else [A])
    put(registry, "a", 2)  # None: unchanged
    assert sorted(registry.pinned()) == sorted([C, B] if pinned else [C])


def test_versions_are_found_by_their_beginning(registry: Registry) -> None:
    for n in range(3):
        put(registry, f"name{n}", n)

    for version in (A, B, C):
        assert registry.versions_like(version[:8]) == [version]
        assert registry.versions_like(version) == [version]
    assert len(registry.versions_like("")) == 2
    assert sorted(registry.versions_like("", limit=10)) == sorted([A, B, C])
    for pattern in ("g", "%", "_"):  # not a hexadecimal digit; taken literally
        assert registry.versions_like(pattern) == []
        assert registry.versions_of("name0", pattern) == []
    put(registry, "name0", 3)
    assert len(registry.versions_of("name0")) == 2
    assert len(registry.versions_of("name0", limit=1)) == 1
    assert registry.versions_of("name0", A[:9]) == [A]
    assert registry.versions_of("name0", B[:9]) == []
    assert registry.count_versions() == 4
    assert registry.count() == 3


def test_names_are_hinted_at_in_order(registry: Registry) -> None:
    for name in ("pets", "Plants", "cars", "pens", "planes"):
        put(registry, name, 0)

    assert registry.names_like("pest") == sorted(["pets", "Plants", "pens", "planes"])
    assert registry.names_like("pest", limit=2) == sorted(["pets", "Plants", "pens", "planes"])[:2]
    assert registry.names_like("x") == []


def test_facts_and_sizes_are_of_the_versions_asked_for(registry: Registry) -> None:
    kinds = ("low_rank", "zero_shot", "ragged", "deep", "codebook_2")
    for kind in kinds:
        registry.put(new(kind, GOLDEN[kind]))
    versions = {kind: version_of(to_bytes(GOLDEN[kind])) for kind in kinds}

    for kind, version in versions.items():
        prompt = GOLDEN[kind]
        assert registry.facts(version) == StoredFacts(
            method=prompt.method,
            backbone=prompt.backbone.id,
            fingerprint=prompt.backbone.fingerprint,
            n_classes=len(prompt.class_names),
            size_bytes=len(to_bytes(prompt)),
            facts=facts_of(prompt),
        )
    assert registry.facts("f" * 64) is None
    for chosen in (kinds, kinds[:1], kinds[1:3], ()):
        of_them = [versions[kind] for kind in chosen]
        assert registry.sizes([*of_them, "f" * 64]) == (
            sum(len(GOLDEN[kind].class_names) for kind in chosen),
            sum(len(to_bytes(GOLDEN[kind])) for kind in chosen),
        )


def test_a_rollback_leads_to_the_version_before(registry: Registry) -> None:
    assert registry.version_before("a") is None
    put(registry, "a", 0)
    assert registry.version_before("a") is None
    put(registry, "a", 1)
    put(registry, "b", 2)
    assert registry.version_before("a") == A
    registry.delete("a")
    put(registry, "b", 3)
    assert registry.version_before("a") == B


def test_features_are_stored_for_the_version_and_backbone_that_have_them(
    registry: Registry,
) -> None:
    fingerprint = BACKBONE.fingerprint
    for n in range(2):
        registry.put(
            NewTask(name=f"t{n}", data=to_bytes(PROMPTS[n]), prompt=PROMPTS[n], features=None)
        )
    for version in (A, B):
        stored = registry.prompt(version, fingerprint)
        assert stored is not None
        assert stored.features is None

    registry.point("t2", A, "alias", features=b"of A")
    registry.save_features(B, "f" * 64, b"of another backbone")
    registry.save_features(C, fingerprint, b"of nothing")
    registry.save_features(A, fingerprint, b"too late")

    found = {
        (version, of): stored.features
        for version in (A, B)
        for of in (fingerprint, "f" * 64)
        if (stored := registry.prompt(version, of)) is not None
    }
    assert found == {
        (A, fingerprint): b"of A",
        (A, "f" * 64): None,
        (B, fingerprint): None,
        (B, "f" * 64): b"of another backbone",
    }
    registry.save_features(B, fingerprint, FEATURES)
    stored = registry.prompt(B, fingerprint)
    assert stored is not None
    assert stored.features == FEATURES
    assert registry.prompt(C, fingerprint) is None


def test_a_change_keeps_as_many_files_of_its_name_as_it_should(registry: Registry) -> None:
    for n in range(4):
        put(registry, "a", n)
    put(registry, "b", 4)

    assert [registry.has_version(version) for version in VERSIONS[:5]] == [
        False, False, True, True, True,
    ]  # fmt: skip
    assert registry.point("a", VERSIONS[4], "alias")
    assert not registry.point("a", VERSIONS[2], "alias")  # was removed with the alias before
    assert registry.point("a", VERSIONS[3], "alias")
    assert registry.count_versions() == 2
    registry.delete("a")
    registry.delete("b")
    assert registry.has_version(VERSIONS[4])


@pytest.mark.parametrize("how", ["put", "point", "delete"])
def test_a_smaller_number_of_versions_holds_from_the_next_change_on(
    database: Database, how: str
) -> None:
    before, registry = Registry(database), Registry(database, keep_versions=2)
    for n in range(5):
        put(before, "a", n)
    assert before.count_versions() == 5
    assert len(before.versions_of("a")) == 2
    assert len(before.versions_of("a", limit=9)) == 5
    if how == "put":
        put(registry, "a", 5)
    elif how == "point":
        registry.point("a", A, "rollback")
    else:
        registry.delete("a")

    last = {"put": [4, 5], "point": [4, 0], "delete": [3, 4]}[how]
    kept = {n for n in range(6) if registry.has_version(VERSIONS[n])}
    assert kept == set(last)


def test_an_upload_replaces_adds_or_leaves_tags(registry: Registry, audit: AuditLog) -> None:
    def tags(name: str) -> tuple[str, ...]:
        stored = registry.task(name)
        assert stored is not None
        return stored.tags

    put(registry, "other", 0, tags=("kept",))
    put(registry, "a", 0, tags=("z", "b", "z"))
    assert tags("a") == ("b", "z")
    put(registry, "a", 1)
    assert tags("a") == ("b", "z")
    put(registry, "a", 1, added_tags=("c", "b"))
    assert tags("a") == ("b", "c", "z")
    put(registry, "a", 1, tags=("y",), added_tags=("x",))
    assert tags("a") == ("x", "y")
    put(registry, "a", 1, tags=())
    assert tags("a") == ()
    with pytest.raises(RequestInvalid, match=r"^Task 'a' would have 51 tags; a task may have 50\."):
        put(registry, "a", 2, added_tags=[f"tag-{n}" for n in range(51)])
    assert registry.versions(["a"]) == {"a": B}
    assert tags("other") == ("kept",)
    assert [one for one in entries(audit) if one[0] == "task.tags"] == [
        ("task.tags", "a", None, "b,c,z"),
        ("task.tags", "a", None, "x,y"),
    ]


@pytest.mark.parametrize("users", [1, 2, 20, 21, 25])
def test_a_version_in_use_names_its_users(registry: Registry, users: int) -> None:
    put(registry, "n00", 0)
    for n in reversed(range(1, users)):
        registry.point(f"n{n:02}", A, "alias")

    with pytest.raises(VersionInUse) as refused:
        registry.delete_version(A)

    shown = tuple(f"n{n:02}" for n in range(min(users, 20)))
    verb = "points" if users == 1 else "point"
    assert refused.value.facts == {"version": A, "names": shown}
    assert str(refused.value) == (
        f"{', '.join(map(repr, shown))} {verb} at version {A[:12]}. Roll back or delete first."
    )
    assert registry.has_version(A)


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        (Condition(exists=True), True),
        (Condition(is_new=True), False),
        (Condition(versions=frozenset({A})), True),
        (Condition(versions=frozenset({B})), False),
        (Condition(versions=frozenset({A, B})), True),
    ],
)
def test_a_condition_is_checked_before_and_with_the_change(
    registry: Registry, condition: Condition, holds: bool
) -> None:
    put(registry, "a", 0)
    change = new("a", PROMPTS[1])
    if holds:
        registry.check_change("a", condition)
        registry.put(change, condition)
    else:
        with pytest.raises(VersionChanged, match=f"^Task 'a' is at version {A[:12]}"):
            registry.check_change("a", condition)
        with pytest.raises(VersionChanged):
            registry.put(change, condition)
        with pytest.raises(VersionChanged, match=f"^Task 'a' is at version {A[:12]}"):
            registry.delete("a", condition)

    assert registry.versions(["a"]) == {"a": B if holds else A}


@pytest.mark.parametrize("kind", ["deep", "projected", "ragged", "low_rank", "class_vectors_16"])
def test_prompts_of_the_image_tower_are_known_by_their_backbone(
    registry: Registry, kind: str
) -> None:
    prompt = GOLDEN[kind]
    registry.put(new("image", prompt))
    put(registry, "text", 1)

    expected = {version_of(to_bytes(prompt))} if prompt.image is not None else set()
    assert registry.image_prompts(prompt.backbone.fingerprint) == expected
    assert registry.image_prompts("f" * 64) == frozenset()
