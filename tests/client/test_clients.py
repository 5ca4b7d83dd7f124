"""Both clients cover the API, and importing them loads nothing they do not need."""

import asyncio
import inspect
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from prompt_serve.client import AsyncClient, Client
from prompt_serve.errors import PromptFileInvalid, RequestInvalid, TaskNameInvalid, TaskNotFound
from prompt_serve.prompts.prompt_file import Prompt, to_bytes
from prompt_serve.types import BackboneRef
from tests.client.fake_service import FakeService, numbered_image


def prompt(name: str) -> Prompt:
    backbone = BackboneRef(
        id="fake", fingerprint="0" * 64, text_width=8, embed_dim=8, context_length=16
    )
    return Prompt(
        name=name,
        method="zero_shot",
        class_names=("cat", "dog"),
        templates=("a {}.",),
        backbone=backbone,
        probe=np.zeros(2, np.float16),
    )


def test_tasks_come_and_go(service: FakeService, client: Client) -> None:
    assert client.upload(prompt("birds")).name == "birds"
    assert client.create_zero_shot("fish", ["cod", "eel"]).name == "fish"
    assert [task.name for task in client.tasks()] == ["birds", "fish", "pets"]
    assert client.task("birds").class_names == ["cat", "dog"]
    assert client.download("birds") == to_bytes(prompt("birds"))

    client.delete("birds")

    assert [task.name for task in client.tasks()] == ["fish", "pets"]


def test_all_pages_of_tasks_are_listed(service: FakeService, client: Client) -> None:
    names = [f"task-{i:03}" for i in range(250)]
    service.behavior.tasks = dict.fromkeys(names, b"")

    assert [task.name for task in client.tasks()] == names
    assert len(service.behavior.paths) == 3


def test_an_upload_takes_the_files_name_or_that_of_a_prompt(
    service: FakeService, client: Client, tmp_path: Path
) -> None:
    nameless = tmp_path / "flowers.safetensors"
    nameless.write_bytes(to_bytes(prompt("")))
    named = tmp_path / "other.safetensors"
    named.write_bytes(to_bytes(prompt("trees")))

    assert client.upload(nameless).name == "flowers"
    assert client.upload(str(named)).name == named.stem
    assert client.upload(named.read_bytes()).name == "trees"
    assert client.upload(named, name="shrubs").name == "shrubs"


def test_invalid_uploads_are_rejected_at_once(client: Client, tmp_path: Path) -> None:
    with pytest.raises(RequestInvalid, match="has no name"):
        client.upload(prompt(""))
    with pytest.raises(PromptFileInvalid, match="No such file"):
        client.upload(tmp_path / "missing.safetensors")
    with pytest.raises(PromptFileInvalid, match="Not a prompt file"):
        client.upload(b"nonsense")


@pytest.mark.parametrize(
    "data", [b"", b"<html>", b"version https://git-lfs.github.com/spec/v1\n", b"PK\x03\x04", b"{}"]
)
def test_files_of_other_kinds_are_not_even_sent(
    data: bytes, service: FakeService, client: Client, tmp_path: Path
) -> None:
    path = tmp_path / "ViT-B-32.safetensors"
    path.write_bytes(data)

    with pytest.raises(PromptFileInvalid, match="Not a prompt file: it is"):
        client.upload(data, name="pets")
    with pytest.raises(PromptFileInvalid, match=r"ViT-B-32.safetensors: Not a prompt file: it is"):
        client.upload(path, name="pets")

    assert service.behavior.paths == []


@pytest.mark.parametrize("name", ["", ".", "..", "a/b/c", "a/file", "../info"])
def test_a_name_that_is_another_path_is_rejected(
    name: str, service: FakeService, client: Client
) -> None:
    with pytest.raises(TaskNameInvalid, match="is not a valid task name"):
        client.delete(name)

    assert service.behavior.paths == []


def test_an_odd_name_is_sent_as_it_is(service: FakeService, client: Client) -> None:
    with pytest.raises(TaskNotFound):
        client.task("a b?c#d")

    assert service.behavior.paths == ["GET /v1/tasks/a b?c#d"]


def test_many_threads_share_a_client(client: Client) -> None:
    answers: dict[int, str] = {}

    def classify(number: int) -> None:
        result = client.classify(numbered_image(number), "pets")
        assert result.predictions is not None
        answers[number] = result.predictions[0].classes[0].class_name

    threads = [threading.Thread(target=classify, args=(i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert answers == {i: str(i) for i in range(16)}


def test_both_clients_have_the_same_methods() -> None:
    def interface(kind: type) -> dict[str, list[str]]:
        return {
            name: list(inspect.signature(member).parameters)
            for name, member in inspect.getmembers(kind, inspect.isfunction)
            if not name.startswith("_")
        }

    own = interface(Client)
    shared = {name: names for name, names in interface(AsyncClient).items() if name in own}

    assert own == shared


def test_the_async_client_does_the_same(service: FakeService) -> None:
    async def use() -> list[str]:
        async with AsyncClient(service.url) as client:
            await client.wait_until_ready()
            await client.upload(prompt("birds"))
            await client.create_zero_shot("fish", ["cod"])
            await client.delete("pets")
            result = await client.classify(numbered_image(9), "birds")
            results = await client.classify([numbered_image(8), b"bad"], ["fish", "birds"])
            assert result.predictions is not None
            assert results[0].predictions is not None
            assert results[1].error is not None
            assert (await client.info()).tasks == 2
            assert (await client.task("fish")).name == "fish"
            assert await client.download("birds") == to_bytes(prompt("birds"))
            return [task.name async for task in client.tasks()]

    assert asyncio.run(use()) == ["birds", "fish"]


def test_a_client_works_inside_a_running_event_loop(client: Client) -> None:
    async def notebook_cell() -> str:
        return client.info().precision

    assert asyncio.run(notebook_cell()) == "fp32"


@pytest.mark.parametrize("module", ["prompt_serve.client", "prompt_serve.cli.main"])
def test_importing_needs_neither_torch_nor_a_server(module: str) -> None:
    heavy = {"torch", "open_clip", "bentoml", "fastapi", "sqlalchemy", "onnxruntime", "PIL"}
    code = f"import sys, {module}; print(*sorted({heavy!r} & set(sys.modules)))"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == ""


def test_an_interpreter_exits_although_the_client_was_not_closed(service: FakeService) -> None:
    code = (
        f"from prompt_serve.client import Client\n"
        f"client = Client({service.url!r})\n"
        f"rows = client.score(iter([{numbered_image(4)!r}] * 1000), 'pets', chunk_size=1)\n"
        f"print(next(rows).class_name)\n"
    )

    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60
    )

    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "4", "")
