"""Charts as inline SVG; colors are those of the page, in light and dark mode.

The drawings are 360 units wide, the width of a phone, so that their text stays readable there.
"""

from collections.abc import Iterable, Sequence

from prompt_serve.calibration import BINS, ConfidenceBin
from prompt_serve.errors import counted
from prompt_serve.evaluation_report.markup import Markup, joined, tag
from prompt_serve.measures import Answered

FEW = 10  # images; shares of fewer are drawn pale or not at all
_WIDTH, _HEIGHT = 360, 276
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 340, 10, 234  # of the axes


def reliability_diagram(bins: Sequence[ConfidenceBin | None], alt: str) -> Markup:
    """Draw accuracy by bin of confidence, beside the diagonal of perfect calibration."""
    images = sum(one.images for one in bins if one)
    width = (_x(1) - _x(0)) / BINS
    bars = [
        tag(
            "rect",
            tag("title", f"{counted(one.images, 'image')}: confidence {one.confidence:.1%}, "
                f"accuracy {one.accuracy:.1%}"),
            x=_x(index / BINS) + 1, y=_y(one.accuracy), width=width - 2,
            height=_y(0) - _y(one.accuracy),
            class_="bar" if one.images >= FEW else "bar pale",
        )
        for index, one in enumerate(bins)
        if one
    ]  # fmt: skip
    corners = []
    for index, one in enumerate(bins):
        share = one.images / images if one else 0.0
        corners += [(index / BINS, share), ((index + 1) / BINS, share)]
    return _axes(
        joined(
            *bars,
            _line([(0, 0), (1, 1)], "diagonal"),
            _line(corners, "shares"),
        ),
        x_label="confidence",
        alt=alt,
    )


def coverage_chart(
    points: Sequence[Answered], images: int, unknown_below: float, alt: str
) -> Markup:
    """Draw accuracy on the answered images, and their share, by threshold."""
    accurate = [(p.threshold, p.right / p.images) for p in points if p.images >= min(FEW, images)]
    mark = None
    if unknown_below:
        mark = tag(
            "line", tag("title", f"threshold of the file: {unknown_below:.3g}"), class_="mark",
            x1=_x(unknown_below), x2=_x(unknown_below), y1=_TOP, y2=_BOTTOM,
        )  # fmt: skip
    return _axes(
        joined(
            mark,
            _line([(p.threshold, p.images / images) for p in points], "answered"),
            _line(accurate, "accuracy"),
        ),
        x_label="threshold for the largest probability",
        alt=alt,
    )


def _axes(inside: Markup, *, x_label: str, alt: str) -> Markup:
    """Draw a square from 0 to 100 % with grid and labels around what is inside."""
    ticks = []
    for quarter in range(5):
        at = quarter / 4
        text = f"{25 * quarter}" + " %" * (quarter == 4)
        ticks += [
            tag("line", x1=_LEFT, x2=_RIGHT, y1=_y(at), y2=_y(at), class_="grid"),
            tag("text", text, x=_LEFT - 6, y=_y(at) + 4, text_anchor="end"),
            tag("text", text, x=_x(at), y=_BOTTOM + 16, text_anchor="middle"),
        ]
    return tag(
        "svg",
        *ticks,
        inside,
        tag("text", x_label, x=(_LEFT + _RIGHT) / 2, y=_HEIGHT - 8, text_anchor="middle"),
        viewBox=f"0 0 {_WIDTH} {_HEIGHT}",
        role="img",
        aria_label=alt,
    )


def _line(points: Iterable[tuple[float, float]], class_: str) -> Markup:
    path = " ".join(f"{_x(x):.1f},{_y(y):.1f}" for x, y in points)
    return tag("polyline", points=path, class_=f"line {class_}")


def _x(share: float) -> float:
    return _LEFT + share * (_RIGHT - _LEFT)


def _y(share: float) -> float:
    return _BOTTOM - share * (_BOTTOM - _TOP)
