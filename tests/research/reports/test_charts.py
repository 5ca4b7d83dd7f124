"""Charts and thumbnails: the same every time, and clean."""

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
import pytest
from PIL import Image

from prompt_serve.research.reports import thumbnails as module
from prompt_serve.research.reports.charts import draw, styles
from prompt_serve.research.reports.thumbnails import Thumbnails
from tests.drawings import draw_image

NAME = '<b>$x_1$</b> & "犬" id="y'


def painted(figure: Any) -> None:
    axes = figure.subplots()
    axes.plot([1.0, 2.0, 3.0], [0.1, 0.123456789, 0.2], "o", label=NAME)
    axes.fill_between([1, 2], [0, 1], [1, 2], hatch="/")
    axes.set_title(NAME)
    axes.legend()


def test_a_chart_is_the_same_every_time_whatever_the_user_has_set() -> None:
    first = draw(painted, name="one")
    with mpl.rc_context({"font.size": 30, "svg.fonttype": "path", "axes.grid": False}):
        assert draw(painted, name="one") == first
        assert mpl.rcParams["font.size"] == 30


def test_a_chart_keeps_names_as_text_and_shares_no_id() -> None:
    svg = draw(painted, name="one")
    root = ElementTree.fromstring(svg)
    texts = [one.text for one in root.iter("{http://www.w3.org/2000/svg}text")]
    assert texts.count(NAME) == 2  # title and legend, not as a formula
    ids = {one.get("id") for one in root.iter()} - {None}
    assert ids
    assert all(str(own).startswith("one-") for own in ids)
    assert ids.isdisjoint(
        one.get("id") for one in ElementTree.fromstring(draw(painted, name="two")).iter()
        if one.get("id")
    )  # fmt: skip
    assert "metadata" not in svg
    assert "0.123456" not in svg


def test_rows_look_different_and_zero_shot_is_gray() -> None:
    looks = styles(["zero-shot", *(f"row {n}" for n in range(24))])
    assert len({(one.color, str(one.dash)) for one in looks.values()}) == 25
    assert looks["zero-shot"].color == "#7d848c"


def test_an_image_that_is_not_there_or_none_says_so_in_its_place(tmp_path: Path) -> None:
    thumbnail = Thumbnails()
    (tmp_path / "text.png").write_text("no image")
    assert thumbnail(str(tmp_path / "absent.png")).fault == "the image file is not there"
    assert thumbnail(str(tmp_path / "text.png")).fault == "the image file cannot be read"
    assert thumbnail(str(tmp_path)).fault == "the image file is not there"
    assert thumbnail("a\x00b").source is None


def test_thumbnails_are_small_and_not_too_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = tmp_path / "large.png"
    Image.effect_noise((900, 1200), 80).save(large)
    thumbnail = Thumbnails()
    source = thumbnail(str(large)).source
    assert source is not None
    assert len(source) < 16_000
    assert thumbnail(str(large)).source is source
    monkeypatch.setattr(module, "MOST", 1)
    other = draw_image(tmp_path / "other.png", (1, 2, 3), 0)
    assert thumbnail(str(other)).fault == "left out: 1 images are on this page"
