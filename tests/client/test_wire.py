"""Requests as they are sent: task names, tags, deadlines, embeddings."""

import numpy as np
import pytest

from prompt_serve.client import wire
from prompt_serve.client.classify_options import ClassifyOptions
from prompt_serve.client.embedding import Embeddings, rows_of_embeddings
from prompt_serve.client.images import ImageFile, is_url, pack
from prompt_serve.errors import RequestInvalid

options = ClassifyOptions.from_arguments


def test_task_names_are_split_into_requests_unless_only_the_service_can_count_them() -> None:
    named = options(["a", "b", "a", "c"], top_k=2)

    assert [group.tasks for group in named.groups(2)] == [("a", "b"), ("c",)]
    assert named.n_tasks == 3
    for uncounted in (options("*"), options(["a", "b", "c"], tags="t"), options((), "t")):
        assert uncounted.n_tasks is None
        assert uncounted.groups(2) == [uncounted]
    assert options(["a", "*"], ["t"]).selectors == ("a", "*", "tag:t")


def test_options_without_a_task_or_with_an_expired_deadline_are_rejected() -> None:
    with pytest.raises(RequestInvalid, match="No task was named"):
        options(())
    with pytest.raises(RequestInvalid, match="deadline_s is 0"):
        options("a", deadline_s=0)


def test_a_deadline_travels_as_a_header_and_a_url_as_a_field() -> None:
    files = [ImageFile(0, "a", b"x"), ImageFile(1, "b", b"https://x/", is_url=True)]

    call = wire.classify_call(files, options(["a"], ["t"], 3, 0.25))

    assert call.arguments["headers"] == {"X-Request-Timeout-Ms": "250"}
    assert [name for name, _ in call.arguments["files"]] == ["image", "image_url"]
    assert call.arguments["data"] == {"task": ["a"], "tag": ["t"], "top_k": "3"}
    assert "headers" not in wire.embed_call(files, None).arguments


def test_urls_are_distinguished_from_paths() -> None:
    (files,) = pack(
        [(0, "https://x/a.png"), (1, b"bytes")], max_images=9, request_bytes=999, max_bytes=9999
    )

    assert isinstance(files, list)
    assert [file.is_url for file in files] == [True, False]
    assert is_url("HTTP://x")
    assert not is_url("httpx/a.png")


def test_embeddings_are_an_array_with_the_fingerprint_of_their_backbone() -> None:
    vectors = np.asarray([[1, 0], [np.nan, np.nan]], dtype=np.float32)

    rows, fingerprint = rows_of_embeddings(Embeddings(vectors, {}, "b", "f" * 64))
    call = wire.score_call(rows.tolist(), options(["a"]), fingerprint)

    assert call.arguments["json"]["embeddings"] == [[1.0, 0.0], [0.0, 0.0]]
    assert call.arguments["json"]["fingerprint"] == "f" * 64
    assert rows_of_embeddings([0.5, 0.5])[0].shape == (1, 2)  # type: ignore[list-item]
    for wrong in ([], [[[1.0]]], [["x"]]):
        with pytest.raises(RequestInvalid, match="embeddings"):
            rows_of_embeddings(wrong)  # type: ignore[arg-type]
