"""``prompt-serve train --method auto``: choose a method by a byte budget."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from prompt_serve.cli.output_file import OutputFileOrFolder, save

if TYPE_CHECKING:
    from prompt_serve.training.clip.backbone import Backbone
    from prompt_serve.training.config import TrainConfig
    from prompt_serve.training.data.dataset import Split
    from prompt_serve.training.data.features import FeatureCache
    from prompt_serve.training.progress import Progress
    from prompt_serve.training.selection.by_validation import Candidate, MethodSelection
    from prompt_serve.training.without_torch.outcome import Extras

AUTO_METHOD = "auto"
MAX_BYTES = 16_384
MAX_SECONDS = 60.0


def auto_options() -> list[click.Parameter]:
    """Return the options of ``--method auto``."""
    return [
        click.Option(
            ["--max-bytes"], type=click.IntRange(min=0), default=MAX_BYTES, show_default=True,
            help="Size limit of the learned numbers and of the sketch, in bytes.",
        ),
        click.Option(
            ["--max-seconds"], type=click.FloatRange(min=0), default=MAX_SECONDS, show_default=True,
            help="Time limit in seconds, features included. A prompt that would take longer is "
            "skipped.",
        ),
        click.Option(
            ["--open-vocabulary"], is_flag=True,
            help="Choose a prompt, which takes new class names; class vectors do not.",
        ),
        click.Option(
            ["--frontier"], type=OutputFileOrFolder(),
            help="Table (.tsv, .json) or plot (.svg, .png) of bytes against accuracy to write, or "
            "a folder for all of them.",
        ),
        click.Option(
            ["--candidates"], type=click.Choice(["text", "all"]),
            help="Try many prompts of the text tower, or of both towers, and choose by validation "
            "images. Takes minutes; all needs a ViT. [default: class vectors, a prompt and "
            "zero-shot, by cross-validation]",
        ),
    ]  # fmt: skip


def is_auto(settings: Mapping[str, Any]) -> bool:
    """Return True if the settings leave the choice of the method to validation."""
    return settings.get("method") == AUTO_METHOD


def base_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings for ``make_config``, with a method in place of those to be tried.

    Raises:
        ConfigInvalid: some are settings of single methods, which do not apply to all candidates.
    """
    from prompt_serve.errors import ConfigInvalid
    from prompt_serve.training.config import SHARED, setting_owners

    own = [
        f"{name} is a setting of single methods; leave it out, or name a method"
        for name in settings
        if name not in SHARED and setting_owners(name)
    ]
    if own:
        raise ConfigInvalid("The training settings are invalid for method 'auto':", own)
    return {**settings, "method": "zero-shot"}


def train_auto(
    backbone: "Backbone",
    dataset: "Split",
    config: "TrainConfig",
    *,
    max_bytes: int,
    max_seconds: float,
    open_vocabulary: bool,
    frontier: Path | None,
    candidates: str | None,
    name: str,
    cache: "FeatureCache | None",
    workers: int,
    progress: "Progress",
    extras: "Extras",
    log: Callable[[Mapping[str, Any]], object] = lambda line: None,
) -> "MethodSelection":
    """Train all candidates, choose a prompt, and write the frontier.

    Args:
        config: made of ``base_settings``.
        max_bytes: limit of the learned numbers.
        max_seconds: time limit, where the choice is by cross-validation.
        open_vocabulary: leave out class vectors.
        frontier: table, plot or folder to write (``write_frontier``).
        candidates: "text" or "all" prompts by validation images; None: by cross-validation.
        extras: what is made beside the learned numbers.
        log: called with a line for every candidate.
    """
    from prompt_serve.training.selection.by_cross_validation import select_by_cross_validation
    from prompt_serve.training.selection.by_validation import select_method
    from prompt_serve.training.selection.pareto import write_frontier

    def on_candidate(candidate: "Candidate") -> None:
        log({"candidate": candidate.to_dict()})

    if candidates is None:
        chosen = select_by_cross_validation(
            backbone,
            dataset,
            config,
            max_bytes=max_bytes,
            max_seconds=max_seconds,
            open_vocabulary=open_vocabulary,
            extras=extras,
            name=name,
            cache=cache,
            workers=workers,
            progress=progress,
            on_candidate=on_candidate,
        )
    else:
        chosen = select_method(
            backbone,
            dataset,
            config,
            max_bytes=max_bytes,
            candidates="all" if candidates == "all" else "text",
            extras=extras,
            name=name,
            cache=cache,
            workers=workers,
            progress=progress,
            on_candidate=on_candidate,
        )
    if frontier:
        save(frontier, partial(write_frontier, chosen.candidates))
    return chosen


def frontier_report(rows: Sequence["Candidate"]) -> Iterable[str]:
    """Yield the lines of a table: ``*`` is on the frontier, ``>`` is chosen."""
    width = max(len(row.label) for row in rows)
    yield f"  {'candidate':<{width}} {'bytes':>9} {'val':>7} {'val loss':>9} {'seconds':>8}"
    for row in rows:
        mark = ">" if row.chosen else "*" if row.on_frontier else " "
        size = "-" if row.size_bytes is None else f"{row.size_bytes:,}"
        if row.val_accuracy is None or row.skipped:
            yield f"{mark} {row.label:<{width}} {size:>9}  {row.skipped.partition(chr(10))[0]}"
            continue
        yield (
            f"{mark} {row.label:<{width}} {size:>9} {row.val_accuracy:>7.1%} "
            f"{row.val_loss or 0.0:>9.3f} {row.seconds:>8.1f}"
        )
