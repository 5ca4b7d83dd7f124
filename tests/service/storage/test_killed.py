"""A process that is killed while it uploads leaves the old version or the new one, never half."""

import random
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from prompt_serve.prompts.prompt_file import to_bytes, version_of
from prompt_serve.service.storage.database import Database
from prompt_serve.service.storage.registry import Registry
from tests.golden import GOLDEN
from tests.service.databases import ROOT

FILES = ("low_rank", "zero_shot", "ragged", "deep")
FEATURES = b"\1\2\3\4" * 50_000

# It uploads until it is killed, and says what was answered.
_UPLOAD = """
import sys
from prompt_serve.prompts.prompt_file import to_bytes, version_of
from prompt_serve.service.storage.database import Database
from prompt_serve.service.storage.registry import NewTask, Registry
from tests.golden import GOLDEN
from tests.service.storage.test_killed import FEATURES, FILES
registry = Registry(Database(sys.argv[1]), keep_versions=2)
prompts = [GOLDEN[name] for name in FILES]
for i in range(10**9):
    prompt = prompts[i % len(prompts)]
    new = NewTask(name="pets", data=to_bytes(prompt), prompt=prompt, features=FEATURES)
    print("begins", version_of(new.data), flush=True)
    registry.put(new)
    print("done", version_of(new.data), flush=True)
"""


def kill_at_random(url: str, rng: random.Random, kills: int) -> None:
    """Kill it that many times, and look at what it leaves each time."""
    files = {version_of(to_bytes(GOLDEN[name])): to_bytes(GOLDEN[name]) for name in FILES}
    for _ in range(kills):
        said = kill_one(url, rng)
        begun = [line.split()[1] for line in said if line.startswith("begins")]
        done = [line.split()[1] for line in said if line.startswith("done")]

        database = Database(url)
        registry = Registry(database)
        task = registry.task("pets")
        assert task is not None
        assert task.version in {done[-1], begun[-1]}
        stored = registry.prompt(task.version, task.fingerprint)
        assert stored is not None
        assert (stored.data, stored.features) == (files[task.version], FEATURES)
        [last, *_] = registry.history("pets", None, 1)
        assert last.version == task.version
        database.close()


def kill_one(url: str, rng: random.Random) -> list[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", _UPLOAD, url], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout is not None
    said = [process.stdout.readline() for _ in range(2 * rng.randint(1, 6))]
    time.sleep(rng.random() * 0.02)  # anywhere within an upload
    process.kill()
    with process.stdout as stdout:
        said += stdout.readlines()
    process.wait(timeout=60)
    return [line for line in said if re.fullmatch(r"(begins|done) [0-9a-f]{64}\n", line)]


def test_an_upload_that_is_killed_leaves_a_whole_version(tmp_path: Path) -> None:
    kill_at_random(f"sqlite:///{tmp_path / 'registry.db'}", random.Random(1), 2)


@pytest.mark.long
def test_fifty_killed_uploads_leave_whole_versions(database_url: str) -> None:
    kill_at_random(database_url, random.Random(2), 50)
