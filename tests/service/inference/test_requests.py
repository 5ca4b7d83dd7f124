"""Images in JSON: URLs, data URIs and base64 as other programs write it."""

import base64

import numpy as np
import pytest

from prompt_serve.errors import ImageInvalid
from prompt_serve.service.inference.requests import ImageUrl, image_from_text


@pytest.mark.parametrize("size", [*range(1, 9), 57, 58, 1000])
def test_all_forms_of_base64_give_the_same_bytes(size: int, rng: np.random.Generator) -> None:
    data = b"\xfb\xff\xfe" + rng.bytes(size)  # the digits + and / are among them
    plain, safe = base64.b64encode(data).decode(), base64.urlsafe_b64encode(data).decode()
    wrapped = base64.encodebytes(data).decode()

    for text in (plain, safe, wrapped, wrapped.replace("\n", "\r\n"), f" {plain}\t"):
        for padded in (text, text.rstrip("= \t\r\n"), f"data:image/png;base64,{text}"):
            assert image_from_text(padded).content == data


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
