"""A page as a browser would take it apart."""

from dataclasses import dataclass, field
from html.parser import HTMLParser

# Elements that have no end.
VOID = {"meta", "img", "br", "hr", "link", "input"}


@dataclass
class Element:
    tag: str
    attributes: dict[str, str]
    inside: tuple[str, ...]  # tags around it
    text: str = ""
    data: list[str] = field(default_factory=list)  # values of <data> within


class Page(HTMLParser):
    """All elements in order, with the text within each; complains where tags do not match."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[Element] = []
        self._open: list[Element] = []
        self.feed(html)
        self.close()
        assert not self._open, f"left open: {[one.tag for one in self._open]}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        element = Element(tag, attributes, tuple(one.tag for one in self._open))
        self.elements.append(element)
        if tag == "data":
            for one in self._open:
                one.data.append(attributes["value"])
        if tag not in VOID:
            self._open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._open, f"</{tag}> closes nothing"
        assert self._open[-1].tag == tag, f"</{tag}> closes <{self._open[-1].tag}>"
        self._open.pop()

    def handle_data(self, data: str) -> None:
        for one in self._open:
            one.text += data

    def all(self, tag: str) -> list[Element]:
        return [one for one in self.elements if one.tag == tag]

    def table(self, caption: str) -> dict[str, list[str]]:
        """The cells of the table with this caption, by the head of the row; values of <data> in
        full precision, the text of other cells."""
        found: dict[str, list[str]] = {}
        inside, row = False, ""
        for one in self.elements:
            if one.tag == "table":
                inside = False
            elif one.tag == "caption":
                inside = one.text == caption
            elif inside and one.tag == "th" and one.attributes.get("scope") == "row":
                row = one.text
                found[row] = []
            elif inside and one.tag == "td":
                found[row].append(one.data[0] if one.data else one.text.strip())
        return found
