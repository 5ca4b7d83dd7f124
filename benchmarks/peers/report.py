"""Table, chart and sentences of what was measured."""

import html
import platform
import subprocess
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.http_throughput import Load
from benchmarks.peers.peer import Peer
from benchmarks.peers.turns import Plan, Turn
from drills.chaos import table_header, table_row
from prompt_serve.engines.onnx_session import available_cores
from prompt_serve.research.reports.charts import COLORS, GRAY, INK, draw

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OWN = "prompt-serve"
# Of one image in the linear layers of a ViT-B/16; benchmarks.encoder_speed counts them.
OPERATIONS = 33.7e9
TITLES = (
    "server", "images/s", "each turn", "p50 ms", "p99 ms", "failed", "start s", "MiB",
    "encoder alone", "share of it", "share of the peak", "cosine to fp32",
)  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """Figures of one server.

    Args:
        alone: images/s of its encoder without a server.
        cosine: smallest between a feature of its encoder and open_clip's in float32; None if that
            was not measured.
        peak: operations per second of one large matrix product of its precision.
    """

    peer: Peer
    turns: Sequence[Turn]
    alone: float
    cosine: float | None
    peak: float

    @property
    def loads(self) -> list[Load]:
        return [turn.load for turn in self.turns]

    @property
    def rates(self) -> list[float]:
        """Images/s of every turn."""
        return [load.statuses["200"] / load.seconds for load in self.loads]

    @property
    def images_per_s(self) -> float:
        answered = sum(load.statuses["200"] for load in self.loads)
        return answered / sum(load.seconds for load in self.loads)

    @property
    def client_apart(self) -> float:
        """Images/s on what the client leaves of the machine."""
        return self.images_per_s / float(np.mean([load.left_to_service for load in self.loads]))

    @property
    def share_of_encoder(self) -> float:
        return self.client_apart / self.alone

    @property
    def failed(self) -> int:
        return sum(load.statuses.total() - load.statuses["200"] for load in self.loads)

    def percentile(self, share: float) -> float:
        return float(np.percentile(np.concatenate([one.latencies_ms for one in self.loads]), share))

    def row(self) -> str:
        """Return the row of the table."""
        return table_row(
            self.peer.label,
            f"{self.images_per_s:.1f}",
            " ".join(f"{rate:.1f}" for rate in self.rates),
            f"{self.percentile(50):.0f}",
            f"{self.percentile(99):.0f}",
            f"{self.failed}",
            f"{np.median([turn.start_s for turn in self.turns]):.1f}",
            f"{max(turn.memory for turn in self.turns) / 2**20:.0f}",
            f"{self.alone:.1f}",
            f"{self.share_of_encoder:.2f}",
            f"{self.client_apart * OPERATIONS / self.peak:.2f}",
            "-" if self.cosine is None else f"{self.cosine:.4f}",
        )


def table(measured: Sequence[Measured], missing: Mapping[str, str]) -> str:
    """Return the table; servers that were not measured say why in their row."""
    rows = [one.row() for one in sorted(measured, key=lambda one: -one.images_per_s)]
    blank = [""] * (len(TITLES) - 2)
    rows += [
        table_row(name, f"not measured: {in_a_cell(reason)}", *blank)
        for name, reason in missing.items()
    ]
    return "\n".join([table_header(*TITLES), *rows])


def in_a_cell(text: str) -> str:
    """Return any text as it stands in a cell of a Markdown table."""
    return html.escape(text, quote=False).replace("|", "&#124;")


def section(
    measured: Sequence[Measured],
    missing: Mapping[str, str],
    *,
    plan: Plan,
    photographs: str,
    peaks: Mapping[str, float],
) -> str:
    """Return what stands between the marks of the page."""
    shown = ", ".join(f"{name} {peak / 1e9:,.0f}" for name, peak in peaks.items())
    packages = sorted({part for one in measured for part in one.peer.versions.split(", ")})
    facts = [
        f"{machine()}; Python {platform.python_version()}; {photographs}; {plan.concurrency} "
        f"requests in flight; {plan.rounds} rounds, each with a turn of {plan.seconds:g} s per "
        f"server after {plan.warm_up_s:g} s of warm-up.",
        steadiness(measured),
        f"The peaks, in GOP/s of one large matrix product on all cores: {shown}.",
        f"Versions: {', '.join(packages)}.",
    ]
    text = " ".join(fact for fact in facts if fact)
    return "\n\n".join([wrapped(text), table(measured, missing), picture(), verdict(measured)])


def steadiness(measured: Sequence[Measured]) -> str:
    """Say how far the rounds differ, and what the machine did between the turns."""
    if not measured:
        return ""
    others = [turn.others for one in measured for turn in one.turns]
    drift = ", ".join(f"{share:.3f}" for share in of_rounds(measured))
    return (
        f"Rates of the rounds against the mean of all: {drift}. Between the turns, with no server "
        f"running, {np.median(others):.1%} of the machine was in use (at most {max(others):.1%})."
    )


def of_rounds(measured: Sequence[Measured]) -> list[float]:
    """Return the rate of every round against that of all rounds, in the mean over the servers."""
    rates = np.array([one.rates for one in measured])  # (S, rounds)
    shares = rates / rates.mean(axis=1, keepdims=True)
    return [float(share) for share in shares.mean(axis=0)]


def picture() -> str:
    return "![Images per second of every server, and of its encoder alone](results/peers.svg)"


def machine() -> str:
    """Return the processor's name and the number of cores."""
    lines = subprocess.run(["lscpu"], capture_output=True, text=True, check=True).stdout
    facts = dict(line.split(":", 1) for line in lines.splitlines() if ":" in line)
    flags = set(facts.get("Flags", "").split())
    extras = [flag for flag in ("avx512_vnni", "avx512_bf16", "avx2") if flag in flags]
    return f"{facts['Model name'].strip()}, {available_cores()} cores ({', '.join(extras)})"


def verdict(measured: Sequence[Measured]) -> str:
    """Say who leads in what, and where the service stands: losses as well as wins."""
    kinds: list[tuple[str, Callable[[Measured], float], str]] = [
        ("images/s", lambda one: one.images_per_s, "{:.1f}"),
        ("p99 (ms)", lambda one: -one.percentile(99), "{:.0f}"),
        ("the share of its encoder", lambda one: one.share_of_encoder, "{:.2f}"),
    ]
    found = []
    for precision in sorted({one.peer.precision for one in measured}, key="fp32 bf16 int8".find):
        group = [one for one in measured if one.peer.precision == precision]
        own = [one for one in group if one.peer.name.startswith(OWN)]
        others = [one for one in group if not one.peer.name.startswith(OWN)]
        if not own or not others:
            continue
        parts = []
        for title, key, form in kinds:
            ours, theirs = max(own, key=key), max(others, key=key)
            outcome = "wins" if key(ours) > key(theirs) else "loses"
            figures = (form.format(abs(key(one))) for one in (ours, theirs))
            parts.append(
                f"{outcome} on {title} ({' against '.join(figures)} of {theirs.peer.name})"
            )
        found.append(f"- {precision}: prompt-serve {', '.join(parts)}.")
    if measured:
        best = max(measured, key=lambda one: one.images_per_s)
        found.append(f"- Of all: {best.peer.label} has the most images/s, {best.images_per_s:.1f}.")
    return "\n".join(wrapped(line, "  ") for line in found)


def wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(
        text, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def chart(measured: Sequence[Measured]) -> str:
    """Return an SVG of images/s over HTTP, each before its encoder alone."""
    ordered = sorted(measured, key=lambda one: one.images_per_s)

    def paint(figure: "Figure") -> None:
        axes = figure.subplots()
        labels = [one.peer.label for one in ordered]
        colors = [COLORS[0] if label.startswith(OWN) else COLORS[1] for label in labels]
        alone, rates = [one.alone for one in ordered], [one.images_per_s for one in ordered]
        axes.barh(labels, alone, color="none", edgecolor=GRAY, label="encoder alone")
        bars = axes.barh(labels, rates, color=colors, height=0.55)
        axes.bar_label(bars, fmt="%.1f", label_type="center", color="white", fontsize=7.5)
        for one in ordered:
            axes.plot(one.rates, [one.peer.label] * len(one.rates), "|", color=INK, markersize=6)
        axes.set_xlabel("images per second over HTTP; outline: the encoder alone; |: each turn")
        axes.grid(axis="y", visible=False)

    return str(draw(paint, name="peers", width=7.0, height=0.8 + 0.27 * len(ordered)))
