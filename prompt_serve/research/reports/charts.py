"""Charts as inline SVG, drawn by matplotlib and then stripped so that many fit on one page.

The same numbers give the same bytes: no date, no random ids, and the user's matplotlib settings are
ignored. Text stays text, so that it can be searched, copied and read aloud.
"""

import io
import re
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from markupsafe import Markup

from prompt_serve.evaluation_report.markup import shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colors, distinguishable with any color vision, without the yellow that is
# invisible on white. Rows beyond the seventh reuse the colors with other dashes and markers.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
DASHES = ("solid", (0, (4, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)))
MARKS = ("o", "s", "^", "D", "v", "P", "X")
GRAY, PALE, INK = "#7d848c", "#d5d9de", "#22272c"
BLUES = ("#f2f6fb", "#08427c")  # from 0 to 1

WIDE = 9.6  # inches, the full page width
_PIXELS_PER_POINT = 1.6
_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
# page.css styles all charts.
_NEEDLESS = (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style")
# Fonts come from the page; rotations by 0 do nothing.
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
    # User-supplied names may contain dollar signs.
    "text.parse_math": False,
    "text.usetex": False,
}


@dataclass(frozen=True)
class Style:
    """Color, dashes and marker of a row in every chart of a page."""

    color: str
    dash: Any
    mark: str


def styles(labels: Iterable[str]) -> dict[str, Style]:
    """Assign a style to each row; zero-shot is always gray."""
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
    """Return the SVG of the figure that ``paint`` draws.

    Args:
        paint: draws on an empty figure.
        name: unique on the page; the prefix of all ids in the SVG.
        width: in inches.
        height: in inches.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    text = io.StringIO()
    with mpl.rc_context(), warnings.catch_warnings():
        # Characters that matplotlib's font lacks are available in the browser's font.
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
    """Return ``count`` axes in a grid, row by row; surplus cells stay empty."""
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
    """Place at most ``most`` ticks of the horizontal axis at whole numbers."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(most, integer=True))


def name_of(text: str, length: int = 28) -> str:
    """Shorten a user-supplied name to one line."""
    return " ".join(shortened(text, length).split())


def _cleaned(svg: str, name: str) -> Markup:
    """Strip prolog, metadata and digits from an SVG and make its ids unique on the page."""
    root = ElementTree.fromstring(svg)  # noqa: S314  # written by matplotlib a line ago
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in _NEEDLESS:
                parent.remove(child)
    used = set(re.findall(r'(?:url\(|href=")#([^)"]+)', svg))
    for element in root.iter():
        element_id = element.attrib.pop("id", None)
        if element_id in used:
            element.set("id", f"{name}-{element_id}")
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
    root.set("aria-hidden", "true")  # the aria-label around it describes it
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _XLINK)
    return Markup(ElementTree.tostring(root, encoding="unicode"))  # noqa: S704  # escaped by it


def _rounded(match: re.Match[str]) -> str:
    return f"{float(match[0]):.2f}".rstrip("0").rstrip(".") if "." in match[0] else match[0]
