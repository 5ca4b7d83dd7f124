"""Building blocks of the page, and their rendering to one HTML file.

Names of classes, files and rows are untrusted, so everything is escaped; only the SVG that
``charts`` draws is inserted as it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources

import jinja2
from markupsafe import Markup

from prompt_serve.evaluation_report.markup import printable
from prompt_serve.evaluation_report.page import base_style


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell of a table."""

    text: str
    value: float | None = None  # full precision, for programs that read the page
    detail: str = ""  # second, smaller line
    best: bool = False
    missing: bool = False


@dataclass(frozen=True, kw_only=True)
class ReportTable:
    """A table; the first cell of each row is its header."""

    caption: str
    headers: Sequence[str]
    rows: Sequence[Sequence[Cell | str]]
    note: str = ""
    words: bool = False  # cells hold words rather than numbers
    kind: str = "table"


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A drawing with its description and the numbers behind it."""

    title: str
    svg: Markup
    alt: str  # text alternative
    caption: str = ""
    tables: Sequence[ReportTable] = ()
    kind: str = "chart"


@dataclass(frozen=True, kw_only=True)
class Text:
    """A paragraph, or a list if there are several lines."""

    lines: Sequence[str]
    title: str = ""
    kind: str = "text"


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A small image, or the reason why it is missing."""

    source: Markup | None  # data URI
    fault: str = ""
    lines: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Pairs of images side by side."""

    title: str
    caption: str
    pairs: Sequence[tuple[Picture, Picture]]
    kind: str = "pairs"


Block = ReportTable | Chart | Text | Pairs


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading and its blocks."""

    anchor: str
    title: str
    blocks: Sequence[Block] = ()
    missing: str = ""  # files the section needs, if there is nothing to show
    intro: str = ""
    after: str = field(default="")  # figure of a paper that the section follows


def render_page(title: str, summary: str, sections: Sequence[Section]) -> str:
    """Render a page as HTML; the same sections give the same text."""
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
    style = Markup(base_style() + _file("page.css"))  # noqa: S704  # files of ours
    return page.render(title=title, summary=summary, sections=sections, style=style)


def _printable(value: object) -> object:
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _file(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
