"""Stands of an attack's own, for services that are stopped, restarted or start with other rules."""

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator, Mapping
from functools import cache

from drills.answers import Oracle
from drills.attacks.kind import Target
from drills.load import REFUSALS, Ledger, Load
from drills.stand import stand

# During an outage, tasks are as they were when the database was last read; the answer says so.
_SAID_TO_BE_STALE = re.compile(r"were current \(stale: \d")
RECOVERY_S = 120.0  # of changes, after a fault is over


@contextlib.asynccontextmanager
async def apart(
    target: Target,
    settings: Mapping[str, str],
    *,
    postgres: bool = False,
    disk: str | None = None,
) -> AsyncIterator[Target]:
    """Start another service; what is found there counts for the target."""
    async with (
        stand(postgres=postgres, disk=disk, **settings) as made,
        Target(made).open() as own,
    ):
        try:
            yield own
        finally:
            target.statuses += own.statuses
            target.found += own.found
            target.faults += own.faults


@cache
def small_oracle() -> Oracle:
    """Return a few tasks, which all attacks share: to compute the answers takes seconds."""
    return Oracle(tasks=3, versions=3, images=4)


def add_ledger(target: Target, ledger: Ledger, *, ignored: tuple[str, ...] = ()) -> None:
    """Count the answers and faults of a load.

    Args:
        target: gets them.
        ledger: of the load.
        ignored: beginnings of faults that are none here.
    """
    for kind, n in ledger.counts.items():
        status = kind.split()[-1]
        if status.isdigit() and int(status) in REFUSALS:
            target.statuses[int(status)] += n
    target.statuses[200] += ledger.counts["right"]
    for fault in ledger.faults:
        kind, _, what = fault.partition(": ")
        if not fault.startswith(ignored) and not _SAID_TO_BE_STALE.search(fault):
            target.fault("5xx" if kind.startswith("status 5") else kind, f"{kind}: {what}")


async def first_change(target: Target, load: Load, moment: float) -> None:
    """Wait until a change is acknowledged that was sent after a moment."""
    give_up = time.monotonic() + RECOVERY_S
    while time.monotonic() < give_up:
        writes = [write for history in load.histories.values() for write in history.writes]
        if any(write.sent > moment and write.acknowledged < float("inf") for write in writes):
            return
        await asyncio.sleep(0.05)
    target.fault("lost", f"no change was stored within {RECOVERY_S:g} s of the end of a fault")
