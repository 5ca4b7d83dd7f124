"""Charts as inline SVG: drawn by matplotlib, then cleaned so that many fit on one page.

The same numbers give the same bytes: no date, no random ids, none of the user's own matplotlib
settings. Text stays text, so that it can be searched, copied and read out.
"""

import io
import re
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from markupsafe import Markup

from prompt_serve.research.reports.page import shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colors, told apart with any kind of color vision, without the yellow that
# white paper swallows. Rows beyond the seventh take the same colors with other lines and marks.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
DASHES = ("solid", (0, (4, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)))
MARKS = ("o", "s", "^", "D", "v", "P", "X")
GRAY, PALE, INK = "#7d848c", "#d5d9de", "#22272c"
BLUES = ("#f2f6fb", "#08427c")  # from nothing to all

WIDE = 9.6  # inches: the whole width of the page
_PIXELS_PER_POINT = 1.6
_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
# The style says what the page's own says for all charts.
_NEEDLESS = (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style")
# The page's letters, and no turning by nothing.
_NOISE = re.compile(r"font-family: [^;]*; ?|rotate\(-?0 [^)]*\) ?")
_NUMBER = re.compile(r"-?\d+\.\d+")
_SETTINGS: Any = {
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.titlelocation": "left",
    "axes.labelsize": 8,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GRAY,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e6e9ec",
    "grid.linewidth": 0.6,
    "axes.linewidth": 0.7,
    "lines.linewidth": 1.4,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "figure.constrained_layout.wspace": 0.04,
    "svg.fonttype": "none",
    "svg.hashsalt": "prompt-serve",
    # Names of strangers may hold dollar signs.
    "text.parse_math": False,
    "text.usetex": False,
}


@dataclass(frozen=True)
class Style:
    """How a row looks in every chart of a page."""

    color: str
    dash: Any
    mark: str


def styles(labels: Iterable[str]) -> dict[str, Style]:
    """A style for each row; zero-shot is gray everywhere."""
    found: dict[str, Style] = {}
    number = 0
    for label in dict.fromkeys(labels):
        if label == "zero-shot":
            found[label] = Style(GRAY, "solid", "o")
            continue
        color, turn = number % len(COLORS), number // len(COLORS)
        mark = MARKS[(color + turn) % len(MARKS)]
        found[label] = Style(COLORS[color], DASHES[turn % len(DASHES)], mark)
        number += 1
    return found


def draw(
    paint: Callable[["Figure"], object], *, name: str, width: float = WIDE, height: float = 4.0
) -> Markup:
    """The SVG of what ``paint`` puts on an empty figure.

    Args:
        paint: draws; nothing of it outlives the call.
        name: unlike that of any other chart of the page; ids within the SVG start with it.
        width: inches.
        height: inches.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    text = io.StringIO()
    with mpl.rc_context(), warnings.catch_warnings():
        # Letters that matplotlib's font lacks are there in the reader's.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        mpl.rcdefaults()
        mpl.rcParams.update(_SETTINGS)
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        paint(figure)
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(text, format="svg", metadata=nothing, transparent=True)
    return _cleaned(text.getvalue(), name)


def panels(figure: "Figure", count: int, columns: int, **sharing: Any) -> list["Axes"]:
    """``count`` axes in a grid, row by row, the places that are left over empty."""
    rows = -(-count // columns)
    grid = figure.subplots(rows, columns, squeeze=False, **sharing)
    axes = [one for row in grid for one in row]
    for spare in axes[count:]:
        spare.set_axis_off()
    if sharing.get("sharex"):
        for one in axes[max(0, count - columns) : count]:
            one.tick_params(labelbottom=True)
    return axes[:count]


def whole_steps(axes: "Axes", most: int = 7) -> None:
    """Marks of the horizontal axis at whole numbers, so many at most."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(most, integer=True))


def name_of(text: str, length: int = 28) -> str:
    """A stranger's name as a chart can hold it."""
    return " ".join(shortened(text, length).split())


def _cleaned(svg: str, name: str) -> Markup:
    """Without prolog, metadata and needless digits, with ids that are the page's only ones."""
    root = ElementTree.fromstring(svg)  # noqa: S314  # written by matplotlib a line ago
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in _NEEDLESS:
                parent.remove(child)
    used = set(re.findall(r'(?:url\(|href=")#([^)"]+)', svg))
    for element in root.iter():
        own = element.attrib.pop("id", None)
        if own in used:
            element.set("id", f"{name}-{own}")
        for key, value in list(element.attrib.items()):
            value = value.replace("url(#", f"url(#{name}-")
            if key.endswith("href") and value.startswith("#"):
                value = f"#{name}-{value[1:]}"
            if key in ("d", "points", "transform", "x", "y", "width", "height", "style"):
                value = _NUMBER.sub(_rounded, _NOISE.sub("", value))
            element.set(key, " ".join(value.split()))
            if not element.get(key):
                del element.attrib[key]
        if not (element.text or "").strip():
            element.text = None
        element.tail = None
    points = float(root.attrib["viewBox"].split()[2])
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    wide = round(points * _PIXELS_PER_POINT)
    root.set("style", f"max-width: {wide}px; min-width: {min(wide, max(340, wide * 3 // 4))}px")
    root.set("aria-hidden", "true")  # the words beside it say what it shows
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _XLINK)
    return Markup(ElementTree.tostring(root, encoding="unicode"))  # noqa: S704  # escaped by it


def _rounded(match: re.Match[str]) -> str:
    return f"{float(match[0]):.2f}".rstrip("0").rstrip(".") if "." in match[0] else match[0]
