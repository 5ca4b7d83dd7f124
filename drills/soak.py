"""Hours of everything at once: ``python -m drills.soak [--seconds 3600]``.

Clients classify, send bad images and hang up; every task is uploaded and rolled back again and
again while class features are evicted. In the first half, workers and the whole service are killed
and the database is stopped in turn. The second half measures memory and descriptors. Every answer
is compared with what was computed beside. Half of the time is on SQLite, half on PostgreSQL.

Exit code 1 if an answer was wrong, lost, hung or a 5xx that is no refusal, or if, in a run of half
an hour or more, memory or descriptors grow.
"""

import argparse
import asyncio
import itertools
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from drills.answers import Oracle
from drills.chaos import first_good, table_header, table_row, write_table
from drills.faults import Fault, kill_service, kill_worker, stop_database
from drills.load import CELLS, Ledger, Load
from drills.stand import Stand, stand

LONG_S = 1800.0  # memory of shorter runs is still that of the start
MAX_SLOPE = 1.0  # MiB per minute
MAX_MORE_DESCRIPTORS = 20
SETTINGS = {"feature_cache_bytes": "40000"}  # three tasks of 12 classes: the others are evicted
DATABASES = ("sqlite", "postgresql")


@dataclass
class Soak:
    """Result for one database."""

    database: str
    seconds: float
    ledger: Ledger
    recoveries_s: list[float] = field(default_factory=list)
    memory: list[tuple[float, float]] = field(default_factory=list)  # minutes, MiB
    descriptors: list[int] = field(default_factory=list)

    @property
    def slope(self) -> float:
        """Growth of the memory in MiB per minute, by least squares; the first third is left out."""
        settled = self.memory[len(self.memory) // 3 :]
        if len(settled) < 2:
            return 0.0
        minutes, mib = np.array(settled).T
        return float(np.polyfit(minutes, mib, 1)[0])

    @property
    def faults(self) -> list[str]:
        """Everything that must not happen."""
        found = list(self.ledger.faults)
        if self.seconds >= LONG_S and self.slope > MAX_SLOPE:
            found.append(f"memory grows by {self.slope:.2f} MiB per minute")
        third = max(1, len(self.descriptors) // 3)
        if min(self.descriptors[-third:]) > max(self.descriptors[:third]) + MAX_MORE_DESCRIPTORS:
            found.append(f"descriptors grow from {self.descriptors[0]} to {self.descriptors[-1]}")
        return found

    def row(self) -> str:
        """Return the row of the table."""
        return table_row(
            self.database,
            f"{self.seconds / 60:.0f} min",
            *self.ledger.cells,
            str(len(self.recoveries_s)),
            f"{max(self.recoveries_s, default=0):.1f} s",
            f"{self.slope:+.2f} MiB/min",
            f"{self.descriptors[0]} to {self.descriptors[-1]}",
        )


async def run(database: str, seconds: float, oracle: Oracle) -> Soak:
    """Run the soak on one database."""
    postgres = database == "postgresql"
    faults = [kill_worker, kill_service, *([stop_database] if postgres else [])]
    async with stand(postgres=postgres, **SETTINGS) as made:
        async with Load(made.url, oracle, clients=4, leaves=0.03) as load:
            soak = Soak(database, seconds, load.ledger)
            half = time.monotonic() + seconds / 2
            await _damage(made, load, soak, faults, half, pause_s=max(5.0, seconds / 60))
            await made.ready()
            await _measure(made, soak, half + seconds / 2)
        await load.check_names()
    return soak


async def _damage(
    made: Stand, load: Load, soak: Soak, faults: Sequence[Fault], end: float, *, pause_s: float
) -> None:
    """Do one fault after the other until ``end``, with pauses."""
    for fault in itertools.cycle(faults):
        await asyncio.sleep(pause_s)
        if time.monotonic() > end:
            return
        over = await fault(made, load)
        soak.recoveries_s.append(await first_good(load.ledger, over) - over)


async def _measure(made: Stand, soak: Soak, end: float) -> None:
    """Record memory and descriptors until ``end``, at least once."""
    started = time.monotonic()
    while True:
        soak.memory.append(((time.monotonic() - started) / 60, made.memory_mb()))
        soak.descriptors.append(made.descriptors())
        if time.monotonic() > end:
            return
        await asyncio.sleep(1)


def main(seconds: float, databases: list[str], *, write: bool) -> int:
    oracle = Oracle()
    titles = ("faults", "longest recovery", "memory", "descriptors")
    header = table_header("database", "time", *CELLS, *titles)
    print(header, flush=True)
    rows, failed = [], False
    for database in databases:
        soak = asyncio.run(run(database, seconds / len(databases), oracle))
        rows.append(soak.row())
        print(rows[-1], flush=True)
        print(dict(soak.ledger.counts), *soak.faults, sep="\n  ", file=sys.stderr)
        failed |= bool(soak.faults)
    if write:
        write_table("soak", "\n".join([header, *rows]))
    return int(failed)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3600, help="of all databases together")
    parser.add_argument("--database", action="append", choices=DATABASES, help="default: both")
    parser.add_argument("--write", action="store_true", help="put the table into the page")
    asked = parser.parse_args()
    sys.exit(main(asked.seconds, asked.database or list(DATABASES), write=asked.write))
