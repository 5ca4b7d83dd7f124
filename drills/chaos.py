"""Faults under load, one at a time: ``python -m drills.chaos [NAME ...]``.

Each drill starts a service, lets clients classify and change tasks, does one fault, and goes on
until the service answers correctly again. Every answer is compared with what was computed beside,
and at the end every acknowledged change must be there. Prints a table; ``--write`` puts it into
docs/reliability.md. Exit code 1 if an answer was wrong, lost, hung or a 5xx that is no refusal.
"""

import argparse
import asyncio
import re
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from drills.answers import Oracle
from drills.faults import DRILLS, Drill
from drills.load import CELLS, Ledger, Load
from drills.stand import Stand, stand
from tests.service.process import ROOT

PAGE = ROOT / "docs" / "reliability.md"
RECOVERY_TIMEOUT_S = 180.0
EXPECTED = ("tries", "right", "changes", "hung up", "bad image refused", "429", "503", "504")


@dataclass(frozen=True)
class Outcome:
    """Result of a drill."""

    drill: Drill
    ledger: Ledger
    recovery_s: float
    memory_mb: tuple[float, float]  # of the workers before the fault, and the highest after it

    @property
    def failed(self) -> bool:
        """True if anything happened that must not."""
        return bool(self.ledger.faults)

    def row(self) -> str:
        """Return the row of the table."""
        before, highest = self.memory_mb
        memory = f"{before:.0f} to {highest:.0f} MiB"
        return table_row(self.drill.what, *self.ledger.cells, f"{self.recovery_s:.1f} s", memory)


async def run(drill: Drill, oracle: Oracle) -> Outcome:
    """Run one drill on a stand of its own."""
    async with stand(postgres=drill.postgres, disk=drill.disk, **drill.settings) as made:
        async with Load(made.url, oracle, clients=3) as load:
            await asyncio.sleep(drill.seconds)
            before = made.memory_mb()
            peak = Peak(made)
            over = await drill.fault(made, load)
            recovered = await first_good(load.ledger, over)
            await asyncio.sleep(drill.seconds)
            highest = await peak.stop()
        await made.ready()
        await load.check_names()
        return Outcome(drill, load.ledger, recovered - over, (before, highest))


class Peak:
    """Highest memory of the workers of a stand, from now on."""

    def __init__(self, made: Stand) -> None:
        self._stand = made
        self._highest = 0.0
        self._task = asyncio.create_task(self._watch())

    async def stop(self) -> float:
        """Return the highest memory, in MiB."""
        self._task.cancel()
        await asyncio.wait([self._task])
        return self._highest

    async def _watch(self) -> None:
        while True:
            self._highest = max(self._highest, self._stand.memory_mb())
            await asyncio.sleep(0.2)


async def first_good(ledger: Ledger, moment: float) -> float:
    give_up = time.monotonic() + RECOVERY_TIMEOUT_S
    while (found := ledger.first_good_after(moment)) is None:
        if time.monotonic() > give_up:
            ledger.fault("lost", f"no correct answer within {RECOVERY_TIMEOUT_S:g} s of the fault")
            return give_up
        await asyncio.sleep(0.05)
    return found


def table_row(*cells: str) -> str:
    """Return a row of a table in Markdown."""
    return f"| {' | '.join(cells)} |"


def table_header(*titles: str) -> str:
    """Return the first two rows of a table in Markdown."""
    return table_row(*titles) + "\n|" + "---|" * len(titles)


def write_table(name: str, text: str, page: Path = PAGE) -> None:
    """Replace the table between the comments ``name`` and ``/name`` of the page."""
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    found = page.read_text(encoding="utf-8")
    replaced, count = pattern.subn(lambda match: match[1] + text + "\n" + match[2], found)
    if count != 1:
        raise RuntimeError(f"{page} has {count} places for the table {name!r}; expected one.")
    page.write_text(replaced, encoding="utf-8")


def main(names: list[str], *, write: bool, drills: Mapping[str, Drill] = DRILLS) -> int:
    oracle = Oracle()
    header = table_header("fault", *CELLS, "recovery", "memory")
    print(header, flush=True)
    rows, failed = [], False
    for name in names or list(drills):
        outcome = asyncio.run(run(drills[name], oracle))
        rows.append(outcome.row())
        print(rows[-1], flush=True)
        failed |= outcome.failed
        others = {k: n for k, n in outcome.ledger.counts.items() if k not in EXPECTED}
        print(f"{name}: {others}", *outcome.ledger.faults[:10], sep="\n  ", file=sys.stderr)
    if write:
        write_table("chaos", "\n".join([header, *rows]))
    return int(failed)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(DRILLS)}; all by default")
    parser.add_argument("--write", action="store_true", help="put the table into the page")
    asked = parser.parse_args()
    if unknown := set(asked.names) - set(DRILLS):
        parser.error(f"unknown drills: {unknown}; expected some of {', '.join(DRILLS)}")
    sys.exit(main(asked.names, write=asked.write))
