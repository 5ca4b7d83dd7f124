"""History of the database's tables: one file per step under ``versions``, run by Alembic.

    0001  prompt files, names, revision, class features
    0002  history, tags, pinning, search
    0003  keys and roles
    0004  audit log
    0005  versions that each name can be rolled back to
    0006  which prompt files have vectors of the image tower
    0007  facts about prompt files, for the details of tasks

A new step is a file ``vNNNN_subject.py`` with ``revision``, ``down_revision`` (the previous one)
and ``upgrade()``. Steps are written by hand and never change once released; they run in one
transaction, on SQLite and on PostgreSQL. There is no downgrade: restore a copy of the database.
The tables that the code uses are declared with ``storage.database.metadata`` in the modules that
own them; tests/service/storage/test_database.py compares them with the result of the steps.
"""

from pathlib import Path

HEAD = "0007"  # the last step, which this version of the code needs
FOLDER = Path(__file__).parent
