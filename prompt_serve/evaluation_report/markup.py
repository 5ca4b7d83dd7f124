"""HTML and SVG elements from Python calls; text is escaped, and every element is closed."""

import html
import re
from collections.abc import Sequence

# Control characters and lone surrogates are not allowed in HTML or XML.
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_VOID = {"meta", "img"}  # elements without an end tag

Attribute = str | int | float | None


class Markup(str):
    """Text that is HTML already and is inserted as it is."""


def tag(name: str, *children: str | None, **attributes: Attribute) -> Markup:
    """Return an element.

    Args:
        name: of the element.
        children: elements, or texts to escape; None is left out.
        attributes: ``class_`` is written as ``class``, ``font_size`` as ``font-size``; None is
            left out.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(_text(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID:
        return Markup(f"<{name}{written}>")
    return Markup(f"<{name}{written}>{joined(*children)}</{name}>")


def joined(*children: str | None) -> Markup:
    """Join elements and texts; texts are escaped and None is left out."""
    return Markup("".join(_escaped(child) for child in children if child is not None))


def number(value: float, text: str) -> Markup:
    """Return a number as text, with its full precision for programs that read the page."""
    return tag("data", text, value=repr(value))


def table(
    caption: str,
    headers: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    note: str | None = None,
    class_: str | None = None,
) -> Markup:
    """Return a table that scrolls sideways on narrow screens.

    Args:
        caption: above the table.
        headers: of the columns.
        rows: cells, the first of which is the header of its row; a cell that is not a ``td`` or
            ``th`` element is made one.
        note: below the table.
        class_: CSS class.
    """
    head = tag("tr", *(_cell(header, "th", scope="col") for header in headers))
    body = [
        tag("tr", _cell(first, "th", scope="row"), *(_cell(cell, "td") for cell in others))
        for first, *others in rows
    ]
    whole = tag(
        "table", tag("caption", caption), tag("thead", head), tag("tbody", *body), class_=class_
    )
    scrolled = tag("div", whole, class_="scroll", role="region", tabindex=0, aria_label=caption)
    return joined(scrolled, tag("p", note, class_="note") if note else None)


def printable(text: str) -> str:
    """Replace characters that are not allowed in HTML."""
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def shortened(text: str, length: int) -> str:
    """Truncate a text to at most ``length`` characters."""
    text = printable(text)
    return text if len(text) <= length else f"{text[: length - 1]}…"


def percent(share: float | None, digits: int = 1) -> str:
    """Format a fraction as a percentage without the sign; "–" for None."""
    return "–" if share is None else f"{100 * share:.{digits}f}"


def _cell(cell: str, name: str, **attributes: Attribute) -> Markup:
    if isinstance(cell, Markup) and cell.startswith(("<td", "<th")):
        return cell
    return tag(name, cell, **attributes)


def _escaped(text: str) -> str:
    return text if isinstance(text, Markup) else html.escape(printable(text))


def _text(value: str | float) -> str:
    return f"{round(value, 3):g}" if isinstance(value, float) else printable(str(value))
