"""Lightweight load generator: prepared requests over raw asyncio sockets.

Run by ``http_throughput``, ``front`` and ``peers`` in a process of its own. It shares the machine's
cores with the service, so it parses only the status and length of a response. Prints one JSON line.
"""

import argparse
import asyncio
import json
import time
from collections import Counter
from pathlib import Path


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--images", type=Path, help="folder of files to classify")
    parser.add_argument("--tasks", type=int, default=1)
    parser.add_argument(
        "--request", type=Path, nargs="+", help="files of complete requests, in their place"
    )
    parser.add_argument("--concurrency", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    options = parser.parse_args()
    if options.request is not None:
        requests = [path.read_bytes() for path in options.request]
    else:
        requests = prepare(sorted(options.images.iterdir()), options.tasks)
    statuses: Counter[int] = Counter()
    latencies_s: list[float] = []
    started, used = time.perf_counter(), time.process_time()
    stop_at = started + options.seconds
    await asyncio.gather(
        *(
            worker(options.port, requests[n:] + requests[:n], stop_at, statuses, latencies_s)
            for n in range(options.concurrency)
        )
    )
    seconds = time.perf_counter() - started
    found = {
        "seconds": seconds,
        "cpu_s": time.process_time() - used,
        "statuses": dict(statuses),
        "latencies_s": latencies_s,
    }
    print(json.dumps(found))


def prepare(images: list[Path], tasks: int) -> list[bytes]:
    """Return complete requests, cycling through images and tasks."""
    bodies = [path.read_bytes() for path in images]
    return [
        b"POST /v1/classify?task=bench-%d HTTP/1.1\r\nHost: localhost\r\n"
        b"Content-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n%s" % (n % tasks, len(body), body)
        for n in range(max(len(bodies), tasks))
        for body in (bodies[n % len(bodies)],)
    ]


async def worker(
    port: int,
    requests: list[bytes],
    stop_at: float,
    statuses: Counter[int],
    latencies_s: list[float],
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    n = 0
    while time.perf_counter() < stop_at:
        started = time.perf_counter()
        writer.write(requests[n % len(requests)])
        statuses[await read_answer(reader)] += 1
        latencies_s.append(time.perf_counter() - started)
        n += 1
    writer.close()


async def read_answer(reader: asyncio.StreamReader) -> int:
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
    await reader.readexactly(length)
    return int(head[9:12])


if __name__ == "__main__":
    asyncio.run(main())
