"""Load of a drill: clients that classify, one writer per task, and the ledger of their answers."""

import asyncio
import contextlib
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httpx

from drills.answers import History, Oracle, Write

PNG = {"content-type": "image/png"}
REFUSALS = (429, 503, 504)  # the service says that it cannot now; callers retry
TRIED = ("tries", "changes", "attacks", "cross-site requests", "ambiguous requests")
CELLS = ("tries", "right", "refused", "unanswered", "wrong", "lost", "hung", "5xx")
TIMEOUT_S = 75.0  # an answer that takes longer is hung: the service has deadlines of 60 s
_BAD_IMAGES = (
    b"no image",
    b"",
    b"\x89PNG\r\n\x1a\n" + bytes(40),
    b"GIF89a\xff\xff\xff\xff",
    b"BM" * 9,
)


@dataclass
class Ledger:
    """Counts of a drill."""

    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)  # what was wrong, lost or failed; the first 50
    # Of correct answers: when the request was sent, and when the answer was received.
    good: list[tuple[float, float]] = field(default_factory=list)

    @property
    def cells(self) -> list[str]:
        """Counts for a table: tried, right, refused, unanswered, wrong, lost, hung, 5xx."""
        counts = self.counts
        tried = sum(counts[kind] for kind in TRIED)
        refused = sum(n for kind, n in counts.items() if kind.split()[-1] in map(str, REFUSALS))
        unanswered = counts["no answer"] + counts["changes without an answer"]
        wrong = counts["wrong"] + counts["accepted"]
        errors = sum(n for kind, n in counts.items() if kind.startswith("status 5"))
        numbers = (tried, counts["right"], refused, unanswered, wrong, counts["lost"])
        return [f"{n:,}" for n in (*numbers, counts["hung"], errors)]

    def fault(self, kind: str, what: str) -> None:
        """Count something that must not happen."""
        self.counts[kind] += 1
        if len(self.faults) < 50:
            self.faults.append(f"{kind}: {what}")

    def first_good_after(self, moment: float) -> float | None:
        """Return when the first correct answer to a request sent after ``moment`` was received."""
        return next((received for sent, received in self.good if sent > moment), None)


class Load:
    """Clients of a service, each answer checked.

    Args:
        url: of the service.
        oracle: expected answers.
        clients: number of clients that classify, one request after the other.
        bad_images: share of requests with an image that cannot be read.
        leaves: share of requests whose client hangs up before the answer.
        writes_per_s: uploads and rollbacks of each name, per second.
        seed: of the choices.
        address: from which the clients connect; the service gives turns by address.
        key: of all clients, if the service asks for one.
    """

    def __init__(
        self,
        url: str,
        oracle: Oracle,
        *,
        clients: int = 4,
        bad_images: float = 0.01,
        leaves: float = 0.01,
        writes_per_s: float = 1.0,
        seed: int = 0,
        address: str | None = None,
        key: str | None = None,
    ) -> None:
        self.ledger = Ledger()
        self.histories = {name: History() for name in oracle.files}
        self.url = url
        self.oracle = oracle
        self._clients = clients
        self._bad_images, self._leaves = bad_images, leaves
        self._pause_s = 1.0 / writes_per_s
        self._seed = seed
        self._address = address
        self._headers = {} if key is None else {"authorization": f"Bearer {key}"}
        self._stopped = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> "Load":
        self._http = self._open_client(self._clients + len(self.histories) + 8)
        for name in self.histories:
            await self._upload(name, self.oracle.files[name][0].version)
            if not self.histories[name].writes[-1].acknowledged < float("inf"):
                raise RuntimeError(f"The first upload of {name} failed: {self.ledger.faults}")
        draws = random.Random(self._seed)
        self._tasks = [
            *(asyncio.create_task(self._classify(draws.random())) for _ in range(self._clients)),
            *(asyncio.create_task(self._write(name, draws.random())) for name in self.histories),
        ]
        return self

    async def __aexit__(self, *exception: object) -> None:
        self._stopped.set()
        results = await asyncio.gather(*self._tasks, return_exceptions=True)
        try:
            for result in results:
                if isinstance(result, BaseException):
                    raise result
        finally:
            await self._http.aclose()

    async def check_names(self) -> None:
        """Compare every name with what was acknowledged; a difference is a lost change."""
        async with self._open_client(1) as http:
            for name, history in self.histories.items():
                answer = await http.get(f"/v1/tasks/{name}")
                found = answer.json().get("version") if answer.status_code == 200 else None
                if found not in history.final:
                    self.ledger.fault("lost", f"{name} is at {found}, not at {history.final}")
                file = await http.get(f"/v1/tasks/{name}/file")
                if found is not None and file.content != self.oracle.by_version[found].data:
                    self.ledger.fault("lost", f"the file of {name} differs from what was uploaded")

    def _open_client(self, connections: int) -> httpx.AsyncClient:
        limits = httpx.Limits(max_connections=connections)
        transport = httpx.AsyncHTTPTransport(local_address=self._address, limits=limits)
        return httpx.AsyncClient(
            base_url=self.url, timeout=TIMEOUT_S, transport=transport, headers=self._headers
        )

    async def _classify(self, seed: float) -> None:
        draw = random.Random(seed)
        names = list(self.histories)
        while not self._stopped.is_set():
            name = draw.choice(names)
            image = draw.randrange(len(self.oracle.images))
            kind = draw.random()
            if kind < self._bad_images:
                await self._send_bad(name, draw.choice(_BAD_IMAGES))
            elif kind < self._bad_images + self._leaves:
                await self._hang_up(name, image, draw.random() * 0.02)
            else:
                await self._ask(name, image)

    async def _ask(self, name: str, image: int) -> None:
        sent = time.monotonic()
        answer = await self._post(name, self.oracle.images[image])
        if answer is None:
            return
        if answer.status_code != 200:
            self._refused(answer)
            return
        received = time.monotonic()
        allowed = self.histories[name].allowed(sent, received)
        prediction = answer.json()["results"][0]["predictions"][0]
        wrong = self.oracle.wrong(prediction, image, allowed)
        if wrong is None:
            self.ledger.counts["right"] += 1
            self.ledger.good.append((sent, received))
        else:
            stale = answer.headers.get("x-stale-seconds")
            self.ledger.fault("wrong", f"{name}, image {image}: {wrong} (stale: {stale})")

    async def _send_bad(self, name: str, data: bytes) -> None:
        answer = await self._post(name, data)
        if answer is None:
            return
        if answer.status_code == 422:
            self.ledger.counts["bad image refused"] += 1
        elif answer.status_code == 200:
            self.ledger.fault("wrong", f"{data[:20]!r} was classified")
        else:
            self._refused(answer)

    async def _hang_up(self, name: str, image: int, after_s: float) -> None:
        self.ledger.counts["tries"] += 1
        with contextlib.suppress(httpx.TransportError, TimeoutError):
            async with asyncio.timeout(after_s):
                await self._http.post(
                    f"/v1/classify?task={name}", content=self.oracle.images[image], headers=PNG
                )
        self.ledger.counts["hung up"] += 1

    async def _post(self, name: str, data: bytes) -> httpx.Response | None:
        self.ledger.counts["tries"] += 1
        try:
            return await self._http.post(f"/v1/classify?task={name}", content=data, headers=PNG)
        except httpx.TimeoutException:
            self.ledger.fault("hung", f"no answer in {TIMEOUT_S:g} s")
        except httpx.TransportError:  # of a process that was killed
            self.ledger.counts["no answer"] += 1
            await asyncio.sleep(0.1)
        return None

    def _refused(self, answer: httpx.Response) -> None:
        if answer.status_code in REFUSALS:
            self.ledger.counts[f"{answer.status_code}"] += 1
        else:
            self.ledger.fault(f"status {answer.status_code}", answer.text[:200])

    async def _write(self, name: str, seed: float) -> None:
        draw = random.Random(seed)
        files = self.oracle.files[name]
        while not self._stopped.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopped.wait(), self._pause_s * (0.5 + draw.random()))
                return
            version = draw.choice(files).version
            if draw.random() < 0.3 and any(w.version == version for w in self._sure(name)):
                await self._roll_back(name, version)
            else:
                await self._upload(name, version)

    def _sure(self, name: str) -> list[Write]:
        return [w for w in self.histories[name].writes if w.acknowledged < float("inf")]

    async def _upload(self, name: str, version: str) -> None:
        data = self.oracle.by_version[version].data
        await self._change(name, version, "PUT", f"/v1/tasks/{name}", content=data)

    async def _roll_back(self, name: str, version: str) -> None:
        url = f"/v1/tasks/{name}/rollback"
        await self._change(name, version, "POST", url, json={"version": version})

    async def _change(self, name: str, version: str, method: str, url: str, **content: Any) -> None:
        self.ledger.counts["changes"] += 1
        write = Write(version, time.monotonic())
        self.histories[name].writes.append(write)
        try:
            answer = await self._http.request(method, url, **content)
        except httpx.TimeoutException:
            self.ledger.fault("hung", f"{method} {url} has no answer in {TIMEOUT_S:g} s")
            return
        except httpx.TransportError:
            self.ledger.counts["changes without an answer"] += 1
            await asyncio.sleep(0.2)
            return
        if answer.status_code in (200, 201):
            write.acknowledged = time.monotonic()
            if answer.json()["version"] != version:
                self.ledger.fault("wrong", f"{method} {url} answered another version")
        elif answer.status_code in REFUSALS:
            self.ledger.counts[f"changes {answer.status_code}"] += 1
        else:
            self.ledger.fault(
                f"status {answer.status_code}", f"{method} {url}: {answer.text[:200]}"
            )
