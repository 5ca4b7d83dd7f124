"""Faults under a started service: it reports them, recovers, and leaves no request hanging."""

import contextlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import psutil
import pytest

from tests.service.process import ROOT, Served, environment, free_port, service
from tests.service.prompts import bomb, picture
from tests.service.test_health import fill, small_disk

if TYPE_CHECKING:
    pass

pytestmark = [pytest.mark.serve, pytest.mark.slow]

PNG = {"content-type": "image/png"}
GENEROUS_S = 120.0
_HAS_GPU = Path("/proc/driver/nvidia/version").exists()


def wait_for(what: str, condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + GENEROUS_S
    while time.monotonic() < give_up:
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError(f"waited {GENEROUS_S:g} s for {what}")


def status(served: Served, probe: str) -> int:
    """Status of a probe; 0 without an answer."""
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"{served.url}/{probe}", timeout=20).status_code
    return 0


def ask(served: Served, task: str) -> httpx.Response:
    url = f"{served.url}/v1/classify?task={task}"
    return httpx.post(url, content=picture(), headers=PNG, timeout=60)


def workers(served: Served) -> list[psutil.Process]:
    """Return the worker processes; circus, BentoML's supervisor, is their parent."""
    found = []
    for process in psutil.Process(served.process.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it ended meanwhile
            if "_bentoml_impl.worker.service" in " ".join(process.cmdline()):
                found.append(process)
    return found


def add_task(served: Served, name: str) -> None:
    body = {"name": name, "class_names": ["a", "b"]}
    httpx.post(f"{served.url}/v1/tasks", json=body, timeout=60).raise_for_status()


def test_a_full_disk_and_a_lost_database_are_reported(tiny_bundle: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "12m") as disk:
        database = f"sqlite:///{disk / 'registry.db'}"
        settings = {"database_url": database, "stale_tasks_s": "0"}
        with service(tmp_path / "home", tiny_bundle, **settings) as served:
            add_task(served, "kept")
            filler = fill(disk)
            for_changes = "readyz?writable=true"
            wait_for("readyz to see the full disk", lambda: status(served, for_changes) == 503)
            assert status(served, "readyz") == 200
            many = {"name": "new", "class_names": [f"class {n}" for n in range(3000)]}
            refused = httpx.post(f"{served.url}/v1/tasks", json=many, timeout=GENEROUS_S)
            still = ask(served, "kept")
            alive = status(served, "livez")
            filler.unlink()
            wait_for("readyz to see the room", lambda: status(served, for_changes) == 200)
            add_task(served, "later")

            (disk / "registry.db").rename(disk / "elsewhere.db")
            wait_for("readyz to miss the database", lambda: status(served, "readyz") == 503)
            assert status(served, "livez") == 200

    assert (refused.status_code, refused.json()["code"]) == (503, "not-ready")
    assert still.status_code == 200
    assert alive == 200
    assert "No space left" in served.log.read_text()


@pytest.fixture(scope="module")
def doomed(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A service that the tests below damage, in their order; the last one stops it."""
    with service(tmp_path_factory.mktemp("doomed"), tiny_bundle, decode_threads="1") as served:
        add_task(served, "kept")
        yield served


def classify_large(served: Served, images: int) -> httpx.Response:
    large = picture(1, size=(4000, 3000), kind="JPEG")
    files = [("image", (str(n), large, "image/jpeg")) for n in range(images)]
    url = f"{served.url}/v1/classify"
    return httpx.post(url, files=files, data={"task": "kept"}, timeout=GENEROUS_S)


def test_an_image_that_declares_too_many_pixels_costs_no_memory(doomed: Served) -> None:
    (worker,) = workers(doomed)
    before = peak_mb(worker)
    for _ in range(5):
        url = f"{doomed.url}/v1/classify?task=kept"
        answer = httpx.post(url, content=bomb(), headers=PNG, timeout=GENEROUS_S)
        assert (answer.status_code, answer.json()["code"]) == (413, "image-too-large")
    assert peak_mb(worker) - before < 50


def peak_mb(process: psutil.Process) -> float:
    """Return the peak memory of a process."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    (kilobytes,) = re.findall(r"VmHWM:\s+(\d+) kB", status)
    return float(kilobytes) / 1024


def test_livez_answers_while_large_images_are_decoded(doomed: Served) -> None:
    with ThreadPoolExecutor(1) as pool:
        request = pool.submit(classify_large, doomed, 24)
        answered = 0
        while not request.done():
            assert status(doomed, "livez") == 200
            answered += not request.done()
    assert request.result().status_code == 200
    assert answered >= 3


def test_a_killed_worker_is_replaced(doomed: Served) -> None:
    (worker,) = workers(doomed)
    worker.kill()
    wait_for("another worker", lambda: any(w.pid != worker.pid for w in workers(doomed)))
    wait_for("the new worker to be ready", lambda: status(doomed, "readyz") == 200)

    assert ask(doomed, "kept").status_code == 200


def test_requests_in_flight_are_answered_after_sigterm(doomed: Served) -> None:
    idle = requests_in_progress(doomed)  # the one that asks
    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(classify_large, doomed, 8) for _ in range(4)]
        wait_for(
            "all requests in the service, or an answer",
            lambda: requests_in_progress(doomed) == idle + 4 or any(a.done() for a in answers),
        )
        in_progress = sum(not answer.done() for answer in answers)
        doomed.process.send_signal(signal.SIGTERM)
        statuses = [answer.result().status_code for answer in answers]
    wait_for("the end of the process", lambda: doomed.process.poll() is not None)

    assert in_progress >= 1
    assert statuses == [200, 200, 200, 200]
    assert "Traceback" not in doomed.log.read_text()


def requests_in_progress(served: Served) -> float:
    lines = httpx.get(f"{served.url}/metrics", timeout=20).text.splitlines()
    name = "prompt_serve_requests_in_progress"
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


@pytest.mark.skipif(_HAS_GPU, reason="CUDA may well run here")
def test_cuda_that_would_run_on_the_cpu_does_not_start(tiny_bundle: Path, tmp_path: Path) -> None:
    process = subprocess.run(
        [sys.executable, "-m", "bentoml", "serve", "--port", str(free_port())],
        cwd=ROOT,
        env=environment(tmp_path, tiny_bundle, device="cuda", allow_anonymous="1"),
        capture_output=True,
        text=True,
        timeout=GENEROUS_S,
    )
    output = process.stdout + process.stderr

    assert process.returncode != 0
    assert "CUDA device 0 was requested" in output
    assert "CUDAExecutionProvider" in output  # of those that this onnxruntime has or lacks
    assert re.search(r"lib\w+\.so", output)  # the library that is missing
    assert "set PROMPT_SERVE_DEVICE=cpu" in output
    assert "Traceback" not in output
