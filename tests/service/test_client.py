"""The Python client and the shell commands against a started service."""

import asyncio
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from prompt_serve.cli.main import main
from prompt_serve.client import AsyncClient, Client
from prompt_serve.errors import (
    ImageInvalid,
    ImageTooLarge,
    PromptFileInvalid,
    TaskNameInvalid,
    TaskNotFound,
)
from prompt_serve.types import PixelArray
from tests.service.process import Served

pytestmark = pytest.mark.serve

CLASSES = ["red square", "green square", "blue square"]


@pytest.fixture
def client(served: Served) -> Iterator[Client]:
    with Client(served.url) as client:
        yield client


@pytest.fixture
def squares(client: Client) -> Iterator[str]:
    """Name of a zero-shot task."""
    client.create_zero_shot("client-squares", CLASSES, ["a {}.", "the {}."])
    yield "client-squares"
    client.delete("client-squares")


@pytest.fixture
def pixels(rng: np.random.Generator) -> PixelArray:
    return rng.integers(0, 256, (50, 40, 3), dtype=np.uint8)


def png(pixels: PixelArray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_all_forms_of_a_picture_get_the_same_answer(
    client: Client, squares: str, pixels: PixelArray, tmp_path: Path
) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(png(pixels))
    forms: list[Any] = [path, str(path), path.read_bytes(), Image.open(path), pixels]

    with path.open("rb") as file:
        answers = [client.classify(form, squares).predictions for form in [*forms, file]]

    assert answers[0] is not None
    assert {score.class_name for score in answers[0][0].classes} == set(CLASSES)
    for answer in answers[1:]:
        assert answer is not None
        assert answer[0].version == answers[0][0].version
        for score, first in zip(answer[0].classes, answers[0][0].classes, strict=True):
            assert score.class_name == first.class_name
            # Batches of other sizes may round the last bit of a float32 differently.
            assert score.logit == pytest.approx(first.logit, abs=1e-3)


def test_a_list_longer_than_a_request_may_be_is_answered_whole(
    client: Client, squares: str, rng: np.random.Generator
) -> None:
    n = client.info().limits.max_images * 2 + 3
    images: list[bytes] = [png(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)) for _ in range(n)]
    images[5] = b"bad"

    results = client.classify(images, squares, top_k=1)

    assert [result.index for result in results] == list(range(n))
    assert [i for i, result in enumerate(results) if result.error] == [5]
    [alone] = client.classify([images[n - 1]], squares, top_k=1)
    together = results[n - 1].predictions
    assert alone.predictions is not None
    assert together is not None
    assert together[0].classes[0].class_name == alone.predictions[0].classes[0].class_name


def test_scoring_gives_every_image_its_row(
    client: Client, squares: str, rng: np.random.Generator
) -> None:
    bad = {3, 50, 51, 120}
    pictures = [rng.integers(0, 256, (8, 8, 3), dtype=np.uint8) for _ in range(150)]
    stream = (b"bad" if i in bad else picture for i, picture in enumerate(pictures))

    rows = list(client.score(stream, squares))

    assert [row.index for row in rows] == list(range(150))
    assert {row.index for row in rows if row.error} == bad
    for index in (0, 77, 149):
        result = client.classify(pictures[index], squares, top_k=1)
        assert result.predictions is not None
        assert result.predictions[0].classes[0].class_name == rows[index].class_name


def test_images_that_are_all_bad_are_told_apart(client: Client, squares: str) -> None:
    results = client.classify([b"bad", b""], squares)

    assert [r.error.code if r.error else None for r in results] == ["image-invalid"] * 2
    assert results[1].error is not None
    assert "0 bytes" in results[1].error.detail


def test_errors_are_the_packages_own(client: Client, squares: str) -> None:
    with pytest.raises(ImageInvalid):
        client.classify(b"bad", squares)
    with pytest.raises(ImageTooLarge) as too_large:
        client.classify(huge_png(), squares)
    assert too_large.value.facts["max_pixels"] == client.info().limits.max_image_pixels
    with pytest.raises(TaskNotFound, match="client-square") as not_found:
        client.classify(png(np.zeros((4, 4, 3), np.uint8)), "client-square")
    assert not_found.value.name == "client-square"
    with pytest.raises(TaskNotFound):
        client.delete("client-nothing")
    with pytest.raises(TaskNameInvalid):
        client.upload(client.download(squares), name="no/name at all")
    with pytest.raises(PromptFileInvalid):
        client.upload(b"nonsense", name="client-nonsense")


def huge_png() -> bytes:
    """Return a few kilobytes that declare 100 million pixels."""
    buffer = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_task_moves_through_its_file(client: Client, squares: str) -> None:
    info = client.upload(client.download(squares), name="client-copy")

    assert info.version == client.task(squares).version
    assert info.class_names == CLASSES
    assert {"client-copy", squares} <= {task.name for task in client.tasks()}
    client.delete("client-copy")
    with pytest.raises(TaskNotFound):
        client.task("client-copy")


def test_the_async_client_asks_many_at_once(served: Served, squares: str) -> None:
    async def ask() -> list[str]:
        async with AsyncClient(served.url) as client:
            await client.wait_until_ready()
            images = [np.full((8, 8, 3), i, np.uint8) for i in range(20)]
            results = await asyncio.gather(*(client.classify(i, squares) for i in images))
            return [r.predictions[0].task for r in results if r.predictions]

    assert asyncio.run(ask()) == [squares] * 20


def test_the_shell_scores_a_folder(
    served: Served, squares: str, pixels: PixelArray, tmp_path: Path
) -> None:
    for i in range(5):
        Image.fromarray(pixels).save(tmp_path / f"{i}.jpg")
    out = tmp_path / "scores.parquet"
    command = ["score", str(tmp_path), "--task", squares, "-o", str(out), "--url", served.url]

    result = CliRunner().invoke(main, command)

    assert result.exit_code == 0, result.output
    assert "5 images, 5 rows" in result.stdout
    assert out.is_file()


@pytest.mark.parametrize(
    ("kind", "size"), [("JPEG", (900, 700)), ("PNG", (301, 200)), ("WEBP", (1501, 1400))]
)
def test_resized_images_get_the_answers_of_whole_ones(
    served: Served, squares: str, tmp_path: Path, kind: str, size: tuple[int, int]
) -> None:
    paths = [tmp_path / f"{index}.{kind.lower()}" for index in range(3)]
    for index, path in enumerate(paths):
        noise = np.random.default_rng(index).integers(0, 256, (60, 50, 3), dtype=np.uint8)
        Image.fromarray(noise).resize(size).save(path, kind)

    with Client(served.url) as client, Client(served.url, resize=True) as resizing:
        whole, resized = (c.embed(paths).vectors for c in (client, resizing))
        rows = [list(c.score(paths, squares)) for c in (client, resizing)]

    np.testing.assert_allclose(resized, whole, atol=1e-5)  # batches may differ
    assert [row.class_name for row in rows[0]] == [row.class_name for row in rows[1]]


def test_score_resizes_on_request(served: Served, squares: str, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for index in range(3):
        noise = np.random.default_rng(index).integers(0, 256, (60, 50, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((700, 500)).save(photos / f"{index}.jpg")
    tables = []
    for options in ([], ["--resize"]):
        out = tmp_path / f"scores{len(options)}.jsonl"
        arguments = ["score", str(photos), "--task", squares, "-o", str(out), "--url", served.url]
        done = CliRunner().invoke(main, [*arguments, "--no-progress", *options])
        assert done.exit_code == 0, done.output
        rows = [json.loads(line) for line in out.read_text().splitlines()]
        tables.append([(row["source"], row["class_name"]) for row in rows])
    assert len(tables[0]) == 3
    assert tables[0] == tables[1]
