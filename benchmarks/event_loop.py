"""Measure how long single requests hold the event loop of the service, for many costly inputs.

The goal is 50 ms, on a machine that does nothing else.

    python -m benchmarks.event_loop [PART_OF_A_NAME]
"""

import sys
import tempfile
import time
from pathlib import Path

import pytest

from prompt_serve.bundle import shipped_bundle
from tests.service.costly_inputs import costly_requests
from tests.service.watched_service import add_task, watched_service

GOAL_MS = 50
SIZE = 31_000_000
SIDE = 6_900
_PAUSE_S = 0.3


def main() -> None:
    """Print a line per request."""
    part = sys.argv[1] if len(sys.argv) > 1 else ""
    with (
        tempfile.TemporaryDirectory() as home,
        pytest.MonkeyPatch.context() as environment,
        watched_service(Path(home), shipped_bundle("embedded"), environment) as service,
    ):
        add_task(service)
        time.sleep(1)
        print(f"nothing: {service.longest_s * 1000:.1f} ms")
        for name, make in costly_requests(SIZE, SIDE).items():
            if part not in name:
                continue
            request = make()
            time.sleep(_PAUSE_S)
            service.reset()
            started = time.perf_counter()
            status = service.ask(request)[9:12].decode()
            took_s = time.perf_counter() - started
            time.sleep(_PAUSE_S)
            held_ms = service.longest_s * 1000
            late = "  OVER THE GOAL" if held_ms > GOAL_MS else ""
            size = f"{len(request) / 2**20:6.2f} MiB"
            print(f"{name:38} {size} {status} {took_s:6.2f} s, held {held_ms:6.1f} ms{late}")


if __name__ == "__main__":
    main()
