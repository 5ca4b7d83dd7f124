"""The page: what sections are made of, and the one HTML file they become.

Names of classes, files and rows come from strangers, so everything is escaped; only the charts,
drawn and cleaned by ``drawing``, go in as they are.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources

import jinja2
from markupsafe import Markup

# A control character, or half of a surrogate pair: no HTML or XML may hold one.
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell of a table."""

    text: str
    value: float | None = None  # with full precision, for programs that read the page
    detail: str = ""  # a second, smaller line
    best: bool = False
    missing: bool = False


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table; the first cell of each row is its head."""

    caption: str
    heads: Sequence[str]
    rows: Sequence[Sequence[Cell | str]]
    note: str = ""
    words: bool = False  # cells are words to be read, not numbers to be compared
    kind: str = "table"


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A drawing, what it shows in words, and its numbers."""

    title: str
    svg: Markup
    alt: str  # for who cannot see it
    caption: str = ""
    tables: Sequence[Table] = ()
    kind: str = "chart"


@dataclass(frozen=True, kw_only=True)
class Text:
    """A paragraph, or a list where there are several."""

    lines: Sequence[str]
    title: str = ""
    kind: str = "text"


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A small image, or why there is none."""

    source: Markup | None  # a data URI
    fault: str = ""
    lines: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Images beside each other."""

    title: str
    caption: str
    pairs: Sequence[tuple[Picture, Picture]]
    kind: str = "pairs"


Block = Table | Chart | Text | Pairs


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading and what stands below it."""

    anchor: str
    title: str
    blocks: Sequence[Block] = ()
    missing: str = ""  # what the section would want, where there is nothing to show
    intro: str = ""
    after: str = field(default="")  # the figure of a paper that it is made after


def render_page(title: str, summary: str, sections: Sequence[Section]) -> str:
    """The HTML of a page; the same sections give the same text."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_file),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_printable,
    )
    page = environment.get_template("page.html")
    style = Markup(_file("page.css"))  # noqa: S704  # a file of ours
    return page.render(title=title, summary=summary, sections=sections, style=style)


def printable(text: str) -> str:
    """With a replacement character for each that no page may hold."""
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def shortened(text: str, length: int) -> str:
    """At most ``length`` characters, the end of a longer text cut off."""
    text = printable(text)
    return text if len(text) <= length else f"{text[: length - 1]}…"


def percent(share: float | None, digits: int = 1) -> str:
    """A share as in tables, without the sign; "–" for one that is not there."""
    return "–" if share is None else f"{100 * share:.{digits}f}"


def _printable(value: object) -> object:
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _file(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
