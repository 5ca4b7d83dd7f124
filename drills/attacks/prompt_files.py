"""Attacks by the author of a prompt file: valid and odd, or valid but for one thing.

A valid file must be stored, described, classified with by itself and together with others,
downloaded, exported, imported and rolled back to, with the right probabilities and finite JSON. A
file of which one thing is changed is refused with a reason, or works as well.
"""

import asyncio
import io
import json
import random
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, NoReturn
from urllib.parse import quote

import httpx

from drills.attacks.kind import Kind, Target, together
from drills.attacks.odd_prompts import (
    OddPrompt,
    images,
    judge,
    nearly_valid_prompt,
    valid_prompt,
)

OCTETS = {"content-type": "application/octet-stream"}
PNG = {"content-type": "image/png"}
KEPT = 24  # tasks at once; the oldest is deleted
MIXED_EVERY = 8  # instances, after which all tasks are asked at once, exported and imported
NEARLY = 0.5  # share of files of which one thing is changed
LONGEST = 200  # characters of a search


class _Attack:
    """Uploads of one attack, and the tasks that are there."""

    def __init__(self, target: Target, bundle: str) -> None:
        self._target, self._bundle = target, bundle
        self._images = images()
        self._tasks: OrderedDict[str, OddPrompt] = OrderedDict()
        self._done = 0
        self._turn = asyncio.Lock()

    async def upload(self, seed: int) -> None:
        """Draw a file and do all that can be done with it."""
        draws = random.Random(f"what is done with {seed}")
        make = nearly_valid_prompt if draws.random() < NEARLY else valid_prompt
        file = await self._target.make(make, seed, self._bundle)
        name = f"odd-{seed:x}"
        stored = await self._put(name, file, may_fail=make is nearly_valid_prompt)
        if stored:
            await self._described(name, file, stored)
            await self._classified(name, file, draws.randrange(len(self._images)))
            if draws.random() < 0.3:
                await self._rolled_back(name, file, draws)
            self._tasks[name] = file
        self._done += 1
        async with self._turn:  # or a task that is asked is deleted, or imported again after that
            if self._done % MIXED_EVERY == 0:
                await self._mixed(draws.randrange(len(self._images)))
                await self._exported()
            while len(self._tasks) > KEPT:
                await self._remove(self._tasks.popitem(last=False)[0])

    async def close(self) -> None:
        """Delete what is left."""
        for name in self._tasks:
            await self._remove(name)

    async def _put(self, name: str, file: OddPrompt, *, may_fail: bool) -> dict[str, Any] | None:
        answer = await self._ask("PUT", f"/v1/tasks/{name}", file, file.data, OCTETS)
        if answer.status_code in (200, 201):
            if not file.answers:
                self._wrong(file, "was stored, but cannot be read")
            return self._json(answer, file) if file.answers else None
        if not (may_fail and answer.status_code == 422 and len(answer.json()["detail"]) > 20):
            self._wrong(file, f"{answer.status_code} to its upload: {answer.text[:300]}")
        return None

    async def _described(self, name: str, file: OddPrompt, stored: Mapping[str, Any]) -> None:
        details = self._json(await self._ask("GET", f"/v1/tasks/{name}", file), file)
        facts = {
            "class_names": list(file.class_names),
            "templates": list(file.templates),
            "method": file.method.replace("\0", " "),  # PostgreSQL cannot store it
            "metrics": dict(file.metrics),
            "version": file.version,
        }
        for fact, expected in facts.items():
            for found in (details, stored):
                if found.get(fact) != expected:
                    self._wrong(file, f"{fact} {str(found.get(fact))[:200]}")
        data = await self._ask("GET", f"/v1/tasks/{name}/file", file)
        if data.content != file.data:
            self._wrong(file, f"another file: {len(data.content)} bytes")
        search = quote(file.class_names[0].replace("\0", " ")[:LONGEST], safe="")
        listed = self._json(
            await self._ask("GET", f"/v1/tasks?limit=1000&search={search}", file), file
        )
        if name not in [task["name"] for task in listed.get("tasks", ())]:
            self._wrong(file, f"is not found by {file.class_names[0][:LONGEST]!r}")
        await self._ask("GET", f"/v1/tasks/{name}/history", file)

    async def _classified(self, name: str, file: OddPrompt, image: int) -> None:
        path = f"/v1/classify?task={name}&top_k={len(file.class_names)}"
        answer = await self._ask("POST", path, file, self._images[image], PNG)
        self._judge(answer, {name: file}, image, file)

    async def _rolled_back(self, name: str, file: OddPrompt, draws: random.Random) -> None:
        """Upload another version, and come back."""
        other = await self._target.make(valid_prompt, draws.getrandbits(48), self._bundle)
        if await self._put(name, other, may_fail=False):
            await self._ask("POST", f"/v1/tasks/{name}/rollback", file)
            await self._classified(name, file, draws.randrange(len(self._images)))

    async def _mixed(self, image: int) -> None:
        """Ask all tasks of the attack at once."""
        tasks = {name: file for name, file in self._tasks.items() if len(file.class_names) < 100}
        if not tasks:
            return
        most = max(len(file.class_names) for file in tasks.values())
        asked = "&".join(f"task={name}" for name in tasks)
        file = next(iter(tasks.values()))
        path = f"/v1/classify?{asked}&top_k={most}"
        self._judge(
            await self._ask("POST", path, file, self._images[image], PNG), tasks, image, file
        )
        everything = await self._ask("POST", "/v1/classify?task=*", file, self._images[image], PNG)
        if everything.status_code == 200:
            self._json(everything, file)

    async def _exported(self) -> None:
        file = next(iter(self._tasks.values()), None)
        if file is None:
            return
        answer = await self._ask("GET", "/v1/registry/export", file)
        # Tasks of others stay as they are, which may be of a later version by now.
        kept = io.BytesIO()
        with (
            zipfile.ZipFile(io.BytesIO(answer.content)) as archive,
            zipfile.ZipFile(kept, "w") as own_archive,
        ):
            index = json.loads(archive.read("registry.json"))
            index["tasks"] = [task for task in index["tasks"] if task["name"] in self._tasks]
            own_archive.writestr("registry.json", json.dumps(index))
            names = archive.namelist()
            for name, own in list(self._tasks.items()):
                path = f"versions/{own.version}.safetensors"
                if path not in names or archive.read(path) != own.data:
                    self._wrong(own, f"{name} is not in the export")
                elif path not in own_archive.namelist():
                    own_archive.writestr(path, own.data)
        zipped = {"content-type": "application/zip"}
        back = await self._ask("POST", "/v1/registry/import", file, kept.getvalue(), zipped)
        if back.status_code != 200:
            self._wrong(file, f"{back.status_code} to an import: {back.text[:300]}")

    async def _remove(self, name: str) -> None:
        await self._target.ask("DELETE", f"/v1/tasks/{name}", name=f"delete {name}")

    def _judge(
        self, answer: httpx.Response, tasks: Mapping[str, OddPrompt], image: int, file: OddPrompt
    ) -> None:
        found = self._json(answer, file)
        predictions = {
            one["task"]: one for one in found.get("results", [{}])[0].get("predictions") or ()
        }
        for name, own in tasks.items():
            if name not in predictions:
                self._wrong(own, f"no prediction: {answer.status_code} {answer.text[:300]}")
            elif fault := judge(own, image, predictions[name]):
                self._wrong(own, f"image {image}: {fault}")

    async def _ask(
        self,
        method: str,
        path: str,
        file: OddPrompt,
        content: bytes = b"",
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        return await self._target.ask(
            method, path, name=f"{file.what} ({file.seed})", content=content, headers=headers
        )

    def _json(self, answer: httpx.Response, file: OddPrompt) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads(answer.text, parse_constant=_not_finite)
        except ValueError as error:
            self._wrong(file, f"{answer.status_code} with JSON that is none: {error}")
            return {}
        return found

    def _wrong(self, file: OddPrompt, what: str) -> None:
        self._target.fault("wrong", f"{file.what} ({file.seed}): {what}")


def _not_finite(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


async def _odd_files(target: Target, draws: random.Random, count: int) -> None:
    attack = _Attack(target, target.stand.settings.get("bundle", "embedded"))
    await together((attack.upload(draws.getrandbits(48)) for _ in range(count)), at_once=2)
    await attack.close()


KINDS: Mapping[str, Kind] = {
    "prompt-files": Kind(
        "prompt files: odd ones, and ones of which one thing is wrong", _odd_files
    ),
    "image-prompts": Kind(
        "the same with vectors of the image tower", _odd_files, settings={"bundle": "embedded-vit"}
    ),
}
