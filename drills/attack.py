"""Attacks on a service, with other instances for each seed: ``python -m drills.attack [KIND ...]``.

Each kind of attack gets a service of its own. A bystander classifies and changes tasks meanwhile,
from another address; each of its answers is compared with what was computed beside. After a first
round that warms up, memory and descriptors are measured before and after the second. Prints a
table; ``--write`` puts it into docs/security.md. Exit code 1 if an answer was wrong, leaked, lost,
hung or a 5xx that is no refusal, if a worker ended or logged an error, or if something grew.
"""

import argparse
import asyncio
import base64
import itertools
import json
import random
import re
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import psutil
from PIL import Image

from drills.answers import BUNDLE, Oracle
from drills.attacks import (
    bodies,
    connections,
    framing,
    images,
    origins,
    postgres,
    prompt_files,
    quotas,
    registry_file,
    routes,
    signatures,
    tenants,
    tokens,
    urls,
)
from drills.attacks.kind import REFUSALS_5XX, Kind, Target, open_keys
from drills.chaos import Peak, table_header, table_row, write_table
from drills.load import Ledger, Load
from drills.stand import Stand, stand
from prompt_serve.service.byte_budget import default_bytes_in_flight
from tests.service.process import ROOT
from tests.service.unusual_images import saved

PAGE = ROOT / "docs" / "security.md"
BYSTANDER = "127.0.0.2"  # callers without keys have their turns by address
MAX_GROWTH_MB = 100.0  # docs/operations.md: what the interpreter and its allocator keep
MAX_MORE_DESCRIPTORS = 20
MAX_WAIT_S = 20.0  # of the bystander; a machine that is shared answers in a second
SETTLE_S = 60.0  # in which connections and work of the attack end
WARM_UP_SHARE = 4
_TRACEBACK = "Traceback (most recent call last)"
_ERROR = re.compile(r"[A-Za-z_.]*[A-Z]\w+(: .*)?$")
TITLES = (
    "attack", "instances", "answered", "refused", "5xx", "hung", "leaked, wrong or lost",
    "memory", "longest wait of a bystander",
)  # fmt: skip

KINDS: Mapping[str, Kind] = {
    **images.KINDS,
    **bodies.KINDS,
    **framing.KINDS,
    **routes.KINDS,
    **connections.KINDS,
    **urls.KINDS,
    **prompt_files.KINDS,
    **tenants.KINDS,
    **quotas.KINDS,
    **tokens.KINDS,
    **origins.KINDS,
    **registry_file.KINDS,
    **postgres.KINDS,
    **signatures.KINDS,
}


@dataclass(frozen=True)
class Result:
    """Result of one kind of attack."""

    kind: Kind
    target: Target
    ledger: Ledger  # of the bystander
    memory_mb: tuple[float, float]  # before, and the highest
    wait_s: float

    @property
    def faults(self) -> list[str]:
        """Everything that must not happen."""
        return [*self.target.faults, *(f"bystander: {one}" for one in self.ledger.faults)]

    def row(self) -> str:
        """Return the row of the table."""
        statuses, found = self.target.statuses, self.target.found + self.ledger.counts
        answered = sum(n for status, n in statuses.items() if status < 400)
        refused = sum(n for one, n in statuses.items() if 400 <= one < 500 or one in REFUSALS_5XX)
        errors = found["5xx"] + sum(n for k, n in found.items() if k.startswith("status 5"))
        wrong = sum(found[kind] for kind in ("leaked", "wrong", "lost", "grew"))
        before, highest = self.memory_mb
        return table_row(
            self.kind.what,
            *(f"{n:,}" for n in (self.target.instances, answered, refused, errors)),
            *(f"{n:,}" for n in (found["hung"], wrong)),
            f"{before:.0f} to {highest:.0f} MiB",
            f"{self.wait_s:.2f} s",
        )


async def run(kind: Kind, name: str, oracle: Oracle, *, seed: int, count: int) -> Result:
    """Attack a service of its own with ``count`` instances, after some that warm it up."""
    async with stand(postgres=kind.postgres, **kind.settings) as made:
        admin_key, key = _keys(made) if kind.keyed else ("", None)
        load = Load(made.url, oracle, clients=1, bad_images=0, leaves=0, address=BYSTANDER, key=key)
        async with load, Target(made, admin_key).open() as target:
            await _start_decoders(target)
            descriptors = made.descriptors()
            warm_up = max(1, count // WARM_UP_SHARE)
            await kind.attack(target, random.Random(f"{name} {seed} warm-up"), warm_up)
            await _settled(made, descriptors)
            before = _State.of(made)
            peak = Peak(made)
            started = time.monotonic()
            half = count // 2
            await kind.attack(target, random.Random(f"{name} {seed}"), count - half)
            rested_mb = made.memory_mb()
            await kind.attack(target, random.Random(f"{name} {seed} second half"), half)
            highest = await peak.stop()
            wait_s = _longest_wait(load.ledger, started, time.monotonic())
            await _settled(made, before.descriptors)
        await load.check_names()
        before.compare(made, target, rested_mb, highest, wait_s)
        return Result(kind, target, load.ledger, (before.memory_mb, highest), wait_s)


@dataclass(frozen=True)
class _State:
    """What an attack must leave as it was."""

    memory_mb: float
    descriptors: int
    workers: frozenset[psutil.Process]

    @classmethod
    def of(cls, made: Stand) -> "_State":
        return cls(made.memory_mb(), made.descriptors(), frozenset(made.workers()))

    def compare(
        self, made: Stand, target: Target, rested_mb: float, highest_mb: float, wait_s: float
    ) -> None:
        """Count what has changed as faults.

        Args:
            made: the service.
            target: where they are counted.
            rested_mb: memory after the first half of the attack.
            highest_mb: highest memory during the attack.
            wait_s: longest wait of the bystander.
        """
        after = _State.of(made)
        if after.workers != self.workers:
            target.fault("lost", f"workers ended: {self.workers - after.workers}")
        # What the allocator keeps of large images is reached in the first half; a leak goes on.
        if (grown := after.memory_mb - max(self.memory_mb, rested_mb)) > MAX_GROWTH_MB:
            target.fault("grew", f"memory by {grown:.0f} MiB")
        allowed_mb = _bytes_in_flight(made.settings) / 2**20 + MAX_GROWTH_MB
        if highest_mb - self.memory_mb > allowed_mb:
            target.fault("grew", f"memory from {self.memory_mb:.0f} to {highest_mb:.0f} MiB")
        if after.descriptors > self.descriptors + MAX_MORE_DESCRIPTORS:
            target.fault("grew", f"descriptors from {self.descriptors} to {after.descriptors}")
        if wait_s > MAX_WAIT_S:
            target.fault("hung", f"the bystander waited {wait_s:.1f} s for a right answer")
        for error in _tracebacks(made.log.read_text(errors="replace")):
            target.fault("5xx", f"in the log: {error}")


async def _start_decoders(target: Target) -> None:
    """Have the processes started that decode large images: they stay, and are no growth."""
    data = base64.b64encode(saved(Image.new("RGB", (1600, 1600)), "WEBP", lossless=True)).decode()
    await target.ask(
        "POST",
        "/v1/embed",
        name="large images",
        content=json.dumps({"images": [data] * 16}).encode(),
        headers={"content-type": "application/json"}
        | ({"x-api-key": target.admin_key} if target.admin_key else {}),
    )


def _keys(made: Stand) -> tuple[str, str]:
    with open_keys(made) as keys:
        return keys.create("attacker", "admin")[0], keys.create("bystander", "admin")[0]


def _bytes_in_flight(settings: Mapping[str, str]) -> int:
    workers = int(settings.get("workers", 1))
    given = int(settings.get("max_bytes_in_flight", 0))
    return workers * (given or default_bytes_in_flight(workers))


async def _settled(made: Stand, descriptors: int) -> None:
    """Wait until the connections of an attack, and with them its requests, have ended."""
    give_up = time.monotonic() + SETTLE_S
    while made.descriptors() > descriptors + MAX_MORE_DESCRIPTORS and time.monotonic() < give_up:
        await asyncio.sleep(0.2)
    await asyncio.sleep(1)


def _longest_wait(ledger: Ledger, started: float, ended: float) -> float:
    """Return the longest time without a right answer to the bystander, who always asks again."""
    received = [one for _, one in ledger.good if started < one < ended]
    moments = [started, *received, ended]
    return max(after - before for before, after in itertools.pairwise(moments))


def _tracebacks(log: str) -> list[str]:
    """Return the error of each traceback, with the place where it was raised."""
    errors = []
    for after in log.split(_TRACEBACK)[1:]:
        lines = [line.strip(" |+-") for line in after.splitlines()]
        places = [line for line in lines if line.startswith("File ")]
        named = (line for line in lines[1:] if _ERROR.match(line))
        errors.append(f"{next(named, '')[:300]} in {places[-1] if places else ''}")
    return errors


@cache
def _oracle(bundle: str) -> Oracle:
    return Oracle(tasks=2, versions=3, images=6, bundle=bundle)


def main(
    names: list[str],
    *,
    seed: int,
    count: int,
    write: bool,
    kinds: Mapping[str, Kind] = KINDS,
) -> int:
    header = table_header(*TITLES)
    print(header, flush=True)
    rows, failed = [], False
    for name in names or list(kinds):
        oracle = _oracle(kinds[name].settings.get("bundle", BUNDLE))
        result = asyncio.run(run(kinds[name], name, oracle, seed=seed, count=count))
        rows.append(result.row())
        print(rows[-1], flush=True)
        failed |= bool(result.faults)
        statuses = dict(sorted(result.target.statuses.items()))
        print(f"{name}: {statuses}", *result.faults[:20], sep="\n  ", file=sys.stderr, flush=True)
    if write:
        write_table("attack", "\n".join([header, *rows]), PAGE)
    return int(failed)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(KINDS)}; all by default")
    parser.add_argument("--seed", type=int, default=0, help="another one: other instances")
    parser.add_argument("--count", type=int, default=400, help="instances per kind")
    parser.add_argument("--write", action="store_true", help="put the table into the page")
    asked = parser.parse_args()
    if unknown := set(asked.names) - set(KINDS):
        parser.error(f"unknown kinds: {unknown}; expected some of {', '.join(KINDS)}")
    sys.exit(main(asked.names, seed=asked.seed, count=asked.count, write=asked.write))
