"""Images in JSON: URLs, data URIs and base64 as other programs write it."""

import base64
from urllib.parse import quote

import numpy as np
import pytest

from prompt_serve.errors import ImageInvalid
from prompt_serve.service.inference.requests import ImageUrl, image_from_text


@pytest.mark.parametrize("size", [*range(1, 9), 57, 58, 1000, 800_000, 1_600_001])
def test_all_forms_of_base64_give_the_same_bytes(size: int, rng: np.random.Generator) -> None:
    data = b"\xfb\xff\xfe" + rng.bytes(size)  # the digits + and / are among them
    plain, safe = base64.b64encode(data).decode(), base64.urlsafe_b64encode(data).decode()
    wrapped = base64.encodebytes(data).decode()

    for text in (plain, safe, wrapped, wrapped.replace("\n", "\r\n"), f" {plain}\t"):
        escaped = "data:image/png;base64," + quote(text)
        for padded in (text, text.rstrip("= \t\r\n"), f"data:image/png;base64,{text}", escaped):
            assert image_from_text(padded).content == data


@pytest.mark.parametrize(
    "text",
    [
        "data:a/b;base64," + "%41" * 100_000,
        "QQ==" + "QUJD" * 300_000,
        "QUJD" * 262_143 + "QQ==" + "QUJD" * 300_000,  # the padding ends a piece
        "!" * 3_000_000,
        "QUJD" * 600_000 + "A",
    ],
    ids=["escapes", "padding first", "padding in the middle", "no digits", "one digit too many"],
)
def test_long_text_that_is_not_base64_is_an_image_with_an_error(text: str) -> None:
    assert isinstance(image_from_text(text).content, ImageInvalid)


@pytest.mark.parametrize("text", ["a", "ab*d", "aaaaa", "YWJj!", "YW=Jj", "é", "YW\u00a0Jj", "%"])
def test_other_text_is_an_image_with_an_error(text: str) -> None:
    assert isinstance(image_from_text(text).content, ImageInvalid)


@pytest.mark.parametrize(
    "url",
    [
        "http://a.example/x.png",
        "HTTPS://a.example",
        " http://a.example\n",
        "Http://a",
        "\thttps://a",
    ],
)
def test_a_url_is_read_as_people_write_it(url: str) -> None:
    assert image_from_text(url).content == ImageUrl(url.strip())
