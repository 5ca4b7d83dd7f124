"""Registry of tasks: prompt files by content, names that point at them, and their history.

A version is the sha256 of a prompt file. A name points at one version; several names may share it.
A change of a name, its history entry, its audit entry and the new revision are one transaction.
A file is kept while a name points at it, or it is one of the last versions of a name
(``keep_versions``). Class features, which are far larger and can be computed again, are kept for
the current and the previous version of each name.
"""

from collections.abc import Iterable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from prompt_serve.errors import NotReady, RequestInvalid, VersionInUse
from prompt_serve.prompts.prompt_file import Prompt, version_of
from prompt_serve.schemas import MAX_TAGS
from prompt_serve.service.request_context import current_request
from prompt_serve.service.storage.audit import record
from prompt_serve.service.storage.database import Database, read_revision
from prompt_serve.service.storage.preconditions import ALWAYS, Condition, check_task_name
from prompt_serve.service.storage.prompt_facts import facts_of
from prompt_serve.service.storage.retention import (
    drop_file,
    drop_old_entries,
    drop_unused,
    keep_version,
)
from prompt_serve.service.storage.stored_quota import check_stored
from prompt_serve.service.storage.tables import (
    StoredChange,
    StoredFacts,
    StoredPrompt,
    StoredTask,
    change,
    class_features,
    kept_version,
    prompt_file,
    search_text,
    task,
    task_tag,
    without_nul,
)
from prompt_serve.service.storage.visibility import check_may_change, may_change, visible

_LISTED = (
    task.c.name,
    task.c.version,
    task.c.updated,
    prompt_file.c.method,
    prompt_file.c.backbone,
    prompt_file.c.n_classes,
    prompt_file.c.size_bytes,
    prompt_file.c.fingerprint,
    task.c.pinned,
)


@dataclass(frozen=True, kw_only=True)
class NewTask:
    """Name and the prompt file that it shall point at."""

    name: str
    data: bytes  # the prompt file
    prompt: Prompt  # parsed from ``data``
    features: bytes | None  # little-endian float32 (C, E) for the prompt's own backbone
    tags: tuple[str, ...] | None = None  # None: unchanged
    added_tags: tuple[str, ...] = ()
    pinned: bool | None = None  # None: unchanged


@dataclass(frozen=True, kw_only=True)
class TaskFilter:
    """Conditions of a list of tasks."""

    search: str = ""  # part of the name, the method or a class name; case is ignored
    tags: tuple[str, ...] = ()  # a task must have all of them


NO_FILTER = TaskFilter()


class VersionDamaged(NotReady):
    """What the registry has of a version is not what was stored."""

    def __init__(self, version: str, fault: str) -> None:
        super().__init__(
            f"Version {version[:12]} is damaged in the registry: {fault}. Find all faults with "
            f"`prompt-serve registry check`, and upload the file again or restore a backup.",
            retry_after_s=10.0,
            reason=f"version {version[:12]} is damaged",
        )


class Registry:
    """Tasks in a database. Thread-safe; several processes may share the database.

    Args:
        database: of the service.
        keep_versions: number of files kept for each name, including its current one; 0: all.
        keep_history_days: age at which entries of history and audit log are removed; 0: never.

    Raises:
        NotReady: (from every method) the database cannot be reached, is full or stays locked.
    """

    def __init__(
        self, database: Database, *, keep_versions: int = 0, keep_history_days: float = 0
    ) -> None:
        self._db = database
        self._keep = keep_versions
        self._keep_history_days = keep_history_days

    # Reading

    def revision(self) -> int:
        """Return the number of changes so far."""
        return self._db.revision()

    def versions(self, names: Sequence[str]) -> dict[str, str]:
        """Return the versions that names point at now; unknown names are left out."""
        query = sa.select(task.c.name, task.c.version)
        query = query.where(task.c.name.in_(names), visible(task.c.name))
        return self._db.read(lambda db: {row.name: row.version for row in db.execute(query)})

    def versions_of(self, name: str, prefix: str = "", limit: int = 2) -> list[str]:
        """Return kept versions in the history of a name that begin with ``prefix``."""
        begins = kept_version.c.version.startswith(prefix, autoescape=True)
        query = sa.select(kept_version.c.version)
        query = query.where(kept_version.c.name == name, begins, visible(kept_version.c.name))
        query = query.limit(limit)
        return self._db.read(lambda db: [str(v) for v in db.execute(query).scalars()])

    def versions_like(self, prefix: str, limit: int = 2) -> list[str]:
        """Return versions of any task that begin with ``prefix``."""
        begins = prompt_file.c.version.startswith(prefix, autoescape=True)
        query = sa.select(prompt_file.c.version).where(begins).limit(limit)
        return self._db.read(lambda db: list(db.execute(query).scalars()))

    def version_before(self, name: str) -> str | None:
        """Return the target of a rollback: the previous version of a name, or the version that a
        deleted name was at; None if there is none."""
        last = (
            sa.select(change.c.previous)
            .where(change.c.name == name, visible(change.c.name))
            .order_by(change.c.id.desc())
            .limit(1)
        )
        query = sa.select(task.c.previous).where(task.c.name == name, visible(task.c.name))

        def read(db: Connection) -> str | None:
            found = db.execute(query).one_or_none()
            if found is not None:
                return None if found.previous is None else str(found.previous)
            deleted: str | None = db.execute(last).scalar_one_or_none()
            return deleted

        return self._db.read(read)

    def prompt(self, version: str, fingerprint: str) -> StoredPrompt | None:
        """Return the file of a version and its class features for a backbone; None if unknown."""
        return self.prompts([version], fingerprint).get(version)

    def prompts(self, versions: Sequence[str], fingerprint: str) -> dict[str, StoredPrompt]:
        """Return the files of versions as ``prompt`` does; unknown versions are left out.

        Raises:
            VersionDamaged: a file is not the one that was stored.
        """
        cached = sa.and_(
            class_features.c.version == prompt_file.c.version,
            class_features.c.fingerprint == fingerprint,
        )
        query = (
            sa.select(prompt_file.c.version, prompt_file.c.data, class_features.c.features)
            .select_from(prompt_file.outerjoin(class_features, cached))
            .where(prompt_file.c.version.in_(versions))
        )
        rows = self._db.read(lambda db: db.execute(query).all())
        for row in rows:
            if not isinstance(row.data, bytes) or version_of(row.data) != row.version:
                raise VersionDamaged(row.version, "the prompt file has another sha256")
        return {row.version: StoredPrompt(data=row.data, features=row.features) for row in rows}

    def facts(self, version: str) -> StoredFacts | None:
        """Return the facts about a version; None if it is unknown."""
        columns = [prompt_file.c[column.name] for column in fields(StoredFacts)]
        query = sa.select(*columns).where(prompt_file.c.version == version)
        row = self._db.read(lambda db: db.execute(query).one_or_none())
        return None if row is None else StoredFacts(**row._mapping)

    def sizes(self, versions: Sequence[str]) -> tuple[int, int]:
        """Return the number of classes, and the bytes of the files, of versions together."""
        totals = sa.func.sum(prompt_file.c.n_classes), sa.func.sum(prompt_file.c.size_bytes)
        query = sa.select(*totals).where(prompt_file.c.version.in_(versions))
        n_classes, size_bytes = self._db.read(lambda db: db.execute(query).one())
        return int(n_classes or 0), int(size_bytes or 0)

    def has_version(self, version: str) -> bool:
        """Return True if the prompt file of a version exists."""
        return self._db.read(lambda db: _has_file(db, version))

    def task(self, name: str) -> StoredTask | None:
        """Return a task; None if there is no such name."""
        query = _listing().where(task.c.name == name, visible(task.c.name))

        def read(db: Connection) -> StoredTask | None:
            row = db.execute(query).one_or_none()
            return None if row is None else _with_tags(db, [StoredTask(**row._mapping)])[0]

        return self._db.read(read)

    def tasks(
        self, after: str, limit: int, task_filter: TaskFilter = NO_FILTER
    ) -> tuple[list[StoredTask], int]:
        """Return up to ``limit`` tasks with names greater than ``after``, and the revision."""
        query = _listing().where(task.c.name > after, visible(task.c.name), *_matching(task_filter))
        query = query.order_by(task.c.name).limit(limit)

        def read(db: Connection) -> tuple[list[StoredTask], int]:
            revision = read_revision(db)  # first: the list is of this revision or newer
            found = [StoredTask(**row._mapping) for row in db.execute(query)]
            return _with_tags(db, found), revision

        return self._db.read(read)

    def versions_of_backbone(self, fingerprint: str, tag: str | None = None) -> dict[str, str]:
        """Return the tasks that were learned on a backbone, by name, with their versions.

        Args:
            fingerprint: of the backbone.
            tag: only tasks with this tag.
        """
        query = (
            sa.select(task.c.name, task.c.version)
            .join(prompt_file)
            .where(prompt_file.c.fingerprint == fingerprint, visible(task.c.name))
        )
        if tag is not None:
            if "\0" in tag:  # PostgreSQL cannot store NUL in text
                return {}
            query = query.join(task_tag, task_tag.c.name == task.c.name)
            query = query.where(task_tag.c.tag == tag)
        return self._db.read(lambda db: {row.name: row.version for row in db.execute(query)})

    def image_prompts(self, fingerprint: str) -> frozenset[str]:
        """Return the versions with vectors of the image tower, learned on a backbone."""
        query = sa.select(prompt_file.c.version).where(
            prompt_file.c.prompts_images, prompt_file.c.fingerprint == fingerprint
        )
        return self._db.read(lambda db: frozenset(db.execute(query).scalars()))

    def pinned(self) -> list[str]:
        """Return the versions that pinned tasks point at."""
        query = sa.select(task.c.version).where(task.c.pinned)
        return self._db.read(lambda db: list(db.execute(query).scalars()))

    def history(self, name: str, before: int | None, limit: int) -> list[StoredChange]:
        """Return up to ``limit`` changes of a name, newest first.

        Args:
            name: of the task.
            before: only entries with smaller ids; None: from the newest on.
            limit: number of entries.
        """
        columns = [c for c in change.c if c is not change.c.name]
        query = (
            sa.select(*columns, prompt_file.c.version.is_not(None).label("kept"))
            .select_from(change.outerjoin(prompt_file, prompt_file.c.version == change.c.version))
            .where(change.c.name == name, visible(change.c.name))
            .order_by(change.c.id.desc())
            .limit(limit)
        )
        if before is not None:
            query = query.where(change.c.id < before)
        return self._db.read(lambda db: [StoredChange(**row._mapping) for row in db.execute(query)])

    def count(self) -> int:
        """Return the number of tasks."""
        query = sa.select(sa.func.count()).select_from(task).where(visible(task.c.name))
        return self._db.read(lambda db: int(db.execute(query).scalar_one()))

    def count_versions(self) -> int:
        """Return the number of prompt files."""
        query = sa.select(sa.func.count()).select_from(prompt_file)
        return self._db.read(lambda db: int(db.execute(query).scalar_one()))

    def names_like(self, name: str, limit: int = 200) -> list[str]:
        """Return names with the same first letter as ``name``, for hints."""
        query = (
            sa.select(task.c.name)
            .where(task.c.name.istartswith(name[:1], autoescape=True), visible(task.c.name))
            .order_by(task.c.name)
            .limit(limit)
        )
        return self._db.read(lambda db: list(db.execute(query).scalars()))

    # Changing

    @contextmanager
    def change(self) -> Iterator[None]:
        """Make all that this thread reads and changes in the block one transaction.

        An error undoes it, so an answer that is made inside describes what is then stored, and a
        change whose answer cannot be made is not stored.
        """
        with self._db.write():
            yield

    def check_change(self, name: str, condition: Condition) -> None:
        """Raise what a change of ``name`` would raise, before class features are computed for it.

        Raises:
            TaskNameInvalid: not a valid task name.
            NotAllowed: the caller may not use this name.
            VersionChanged: the condition does not hold.
        """
        check_task_name(name)
        check_may_change(name)
        if condition != ALWAYS:
            condition.check(name, self.versions([name]).get(name))

    def put(self, new: NewTask, condition: Condition = ALWAYS) -> tuple[StoredTask, bool]:
        """Point a name at a prompt file, storing the file if it is new.

        Returns:
            The task, and True if the name is new.

        Raises:
            VersionChanged: the condition does not hold; nothing was changed.
            QuotaExceeded: the tasks of the caller would take more than its quota; nor then.
        """
        [stored] = self.put_all([new], condition)
        return stored

    def put_all(
        self, new: Iterable[NewTask], condition: Condition = ALWAYS, *, what: str = "put"
    ) -> list[tuple[StoredTask, bool]]:
        """Do ``put`` for several names in one transaction: all of them or, on an error, none."""
        with self._changing() as db:
            stored = [self._put(db, one, condition, what) for one in new]
            check_stored(db)
        return stored

    def point(
        self,
        name: str,
        version: str,
        what: str,
        condition: Condition = ALWAYS,
        features: bytes | None = None,
    ) -> bool:
        """Point a name at an existing version; return False if its file was removed.

        Args:
            name: of the task.
            version: of a prompt file.
            what: kind of change for the history, rollback or alias.
            condition: must hold, otherwise nothing is changed.
            features: class features for the version's own backbone, to be stored.

        Raises:
            VersionChanged: the condition does not hold.
        """
        with self._changing() as db:
            fingerprint = _fingerprint_of(db, version)
            if fingerprint is None:
                return False
            if features is not None:
                _insert_features(db, version, fingerprint, features)
            _point(db, name, version, what, condition)
            drop_unused(db, name, self._keep)
            check_stored(db)
        return True

    def delete(self, name: str, condition: Condition = ALWAYS) -> bool:
        """Remove a name, but not its history and files; return False if there was none."""
        if not may_change(name):
            return False
        with self._changing() as db:
            old = _version_of_task(db, name)
            condition.check(name, old)
            if old is not None:
                db.execute(task.delete().where(task.c.name == name))
                _record_change(db, name, "delete", before=old, after=None)
                drop_unused(db, name, self._keep)
        return old is not None

    def delete_version(self, version: str) -> bool:
        """Remove a prompt file permanently; return False if there was none.

        Raises:
            VersionInUse: a name points at it.
        """
        with self._changing() as db:
            names = db.execute(
                sa.select(task.c.name).where(task.c.version == version).order_by(task.c.name)
            )
            if users := list(names.scalars().fetchmany(20)):
                verb = "points" if len(users) == 1 else "point"
                raise VersionInUse(
                    f"{', '.join(map(repr, users))} {verb} at version {version[:12]}. Roll back "
                    f"or delete first.",
                    version=version,
                    names=tuple(users),
                )
            db.execute(task.update().where(task.c.previous == version).values(previous=None))
            existed = drop_file(db, version)
            if existed:
                record(db, "version.delete", version, before=version)
        return existed

    def set_tags(self, name: str, tags: Iterable[str]) -> bool:
        """Replace the tags of a name; return False if there is no such name."""
        if not may_change(name):
            return False
        with self._changing() as db:
            if _version_of_task(db, name) is None:
                return False
            _change_tags(db, name, set(tags))
        return True

    def edit_tags(self, name: str, add: Iterable[str], remove: Iterable[str]) -> bool:
        """Add and remove tags of a name; return False if there is no such name.

        Raises:
            RequestInvalid: the task would have more than MAX_TAGS.
        """
        if not may_change(name):
            return False
        with self._changing() as db:
            if _version_of_task(db, name) is None:
                return False
            _change_tags(db, name, _tags_of(db, name).difference(remove).union(add))
        return True

    def set_pinned(self, name: str, pinned: bool) -> bool:
        """Pin or unpin a task; return False if there is no such name."""
        if not may_change(name):
            return False
        with self._changing() as db:
            row = db.execute(task.update().where(task.c.name == name).values(pinned=pinned))
            if row.rowcount:
                record(db, "task.pin" if pinned else "task.unpin", name)
        return bool(row.rowcount)

    def save_features(
        self, version: str, fingerprint: str, features: bytes, *, replace: bool = False
    ) -> None:
        """Store class features that had to be computed again, if the version still exists.

        Args:
            version: of a prompt file.
            fingerprint: of their backbone.
            features: little-endian float32 (C, E).
            replace: those that are stored, which are damaged.
        """
        with self._db.write() as db:
            if _has_file(db, version):
                if replace:
                    db.execute(class_features.delete().where(_features_of(version, fingerprint)))
                _insert_features(db, version, fingerprint, features)

    @contextmanager
    def _changing(self) -> Iterator[Connection]:
        """Open the transaction of a change, which ends with what is too old."""
        with self._db.write() as db:
            yield db
            drop_old_entries(db, self._keep_history_days)

    def _put(
        self, db: Connection, new: NewTask, condition: Condition, what: str
    ) -> tuple[StoredTask, bool]:
        version = version_of(new.data)
        fingerprint = new.prompt.backbone.fingerprint
        _insert_prompt_file(db, version, new)
        if new.features is not None:
            _insert_features(db, version, fingerprint, new.features)
        old = _point(db, new.name, version, what, condition)
        if new.tags is not None:
            _replace_tags(db, new.name, new.tags)
        if new.added_tags:
            _change_tags(db, new.name, _tags_of(db, new.name).union(new.added_tags))
        if new.pinned is not None:
            this = task.c.name == new.name
            db.execute(task.update().where(this).values(pinned=new.pinned))
        drop_unused(db, new.name, self._keep)
        row = db.execute(_listing().where(task.c.name == new.name)).one()
        return _with_tags(db, [StoredTask(**row._mapping)])[0], old is None


def _tags_of(db: Connection, name: str) -> set[str]:
    query = sa.select(task_tag.c.tag).where(task_tag.c.name == name)
    return set(db.execute(query).scalars())


def _change_tags(db: Connection, name: str, tags: Set[str]) -> None:
    """Replace the tags of a name, and record it."""
    if len(tags) > MAX_TAGS:
        raise RequestInvalid(
            f"Task {name!r} would have {len(tags):,} tags; a task may have {MAX_TAGS}. Remove some "
            f"first."
        )
    _replace_tags(db, name, tags)
    record(db, "task.tags", name, after=",".join(sorted(tags))[:64])


def _replace_tags(db: Connection, name: str, tags: Iterable[str]) -> None:
    db.execute(task_tag.delete().where(task_tag.c.name == name))
    rows = [{"name": name, "tag": tag} for tag in sorted(set(tags))]
    if rows:
        db.execute(task_tag.insert(), rows)


def _listing() -> sa.Select[Any]:
    return sa.select(*_LISTED).join_from(task, prompt_file)


def _matching(task_filter: TaskFilter) -> list[sa.ColumnElement[bool]]:
    conditions: list[sa.ColumnElement[bool]] = [
        sa.exists().where(task_tag.c.name == task.c.name, task_tag.c.tag == tag)
        for tag in task_filter.tags
    ]
    if task_filter.search:
        text = task_filter.search.casefold()
        in_name = sa.func.lower(task.c.name).contains(text, autoescape=True)
        conditions.append(in_name | prompt_file.c.words.contains(text, autoescape=True))
    return conditions


def _with_tags(db: Connection, tasks: Sequence[StoredTask]) -> list[StoredTask]:
    if not tasks:
        return []
    tags: dict[str, list[str]] = {found.name: [] for found in tasks}
    query = sa.select(task_tag).where(task_tag.c.name.in_(tags)).order_by(task_tag.c.tag)
    for row in db.execute(query):
        tags[row.name].append(row.tag)
    return [replace(found, tags=tuple(tags[found.name])) for found in tasks]


def _version_of_task(db: Connection, name: str) -> str | None:
    query = sa.select(task.c.version).where(task.c.name == name)
    found: str | None = db.execute(query).scalar_one_or_none()
    return found


def _has_file(db: Connection, version: str) -> bool:
    known = sa.select(prompt_file.c.version).where(prompt_file.c.version == version)
    return db.execute(known).first() is not None


def _fingerprint_of(db: Connection, version: str) -> str | None:
    query = sa.select(prompt_file.c.fingerprint).where(prompt_file.c.version == version)
    found: str | None = db.execute(query).scalar_one_or_none()
    return found


def _point(db: Connection, name: str, version: str, what: str, condition: Condition) -> str | None:
    """Point a name at a version and return the version it pointed at before."""
    check_may_change(name)
    old = _version_of_task(db, name)
    condition.check(name, old)
    if old == version:
        return old  # the same request again: nothing to record
    pointer = {"version": version, "updated": _now(), "previous": old}
    if old is not None:
        db.execute(task.update().where(task.c.name == name), pointer)
    else:
        if what != "rollback":  # a rollback restores a deleted task with its tags
            db.execute(task_tag.delete().where(task_tag.c.name == name))
        db.execute(task.insert(), {"name": name, **pointer})
    _record_change(db, name, what, before=old, after=version)
    return old


def _record_change(
    db: Connection, name: str, what: str, *, before: str | None, after: str | None
) -> None:
    """Add a change to the history of the name and to the audit log."""
    row = {
        "name": name,
        "at": _now(),
        "who": current_request().actor.name[:200],
        "what": what,
        "version": after,
        "previous": before,
    }
    change_id = db.execute(change.insert().returning(change.c.id), row).scalar_one()
    if after is not None:
        keep_version(db, name, after, change_id)
    record(db, f"task.{what}", name, before=before, after=after)


def _insert_prompt_file(db: Connection, version: str, new: NewTask) -> None:
    this = prompt_file.c.version == version
    stored = db.execute(sa.select(prompt_file.c.data).where(this)).scalar_one_or_none()
    if stored == new.data:
        return
    row = {
        "version": version,
        "data": new.data,
        "method": without_nul(new.prompt.method),
        "backbone": without_nul(new.prompt.backbone.id),
        "n_classes": len(new.prompt.class_names),
        "size_bytes": len(new.data),
        "fingerprint": new.prompt.backbone.fingerprint,
        "words": search_text(new.prompt),
        "prompts_images": new.prompt.image is not None,
        "facts": facts_of(new.prompt),
    }
    if stored is None:
        db.execute(prompt_file.insert(), row)
    else:  # it was damaged
        db.execute(prompt_file.update().where(this), row)


def _insert_features(db: Connection, version: str, fingerprint: str, features: bytes) -> None:
    table = class_features
    this = _features_of(version, fingerprint)
    if db.execute(sa.select(table.c.version).where(this)).first() is None:
        row = {"version": version, "fingerprint": fingerprint, "features": features}
        db.execute(table.insert(), row)


def _features_of(version: str, fingerprint: str) -> sa.ColumnElement[bool]:
    table = class_features
    return (table.c.version == version) & (table.c.fingerprint == fingerprint)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
