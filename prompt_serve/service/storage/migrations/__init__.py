"""The history of the database's tables, one file a step under ``versions``; Alembic runs them.

    0001  prompt files, names, revision, class features
    0002  history, tags, pinning, search
    0003  keys and roles
    0004  audit log
    0005  what each name can go back to

A further step is a file ``vNNNN_subject.py`` with ``revision``, ``down_revision`` (the one before)
and ``upgrade()``. The steps are written by hand and stay as they are once released; they run in
one transaction, on SQLite and on PostgreSQL. There is no way back: restore a copy of the database.
The tables that the code uses are declared with ``storage.database.metadata`` by the module that
owns them; tests/service/storage/test_database.py holds them equal to what the steps make.
"""

from pathlib import Path

HEAD = "0005"  # the last step: what this version of the code works with
FOLDER = Path(__file__).parent
