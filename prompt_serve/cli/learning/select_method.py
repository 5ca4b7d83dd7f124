"""``prompt-serve train --method auto``: choose a method by a byte budget."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prompt_serve.training.clip.backbone import Backbone
    from prompt_serve.training.config import TrainConfig
    from prompt_serve.training.data.dataset import Split
    from prompt_serve.training.data.features import FeatureCache
    from prompt_serve.training.progress import Progress
    from prompt_serve.training.select_method import Candidate, MethodSelection

METHOD = "auto"
MAX_BYTES = 4_096  # where --max-bytes is not given: CoOp's size on ViT-B/16


def is_auto(settings: Mapping[str, Any]) -> bool:
    """Whether the settings ask for a choice of the method."""
    return settings.get("method") == METHOD


def base_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings for ``make_config``, with a method that stands in for those to be tried.

    Raises:
        ConfigInvalid: some are settings of single methods, which a choice cannot keep to.
    """
    from prompt_serve.errors import ConfigInvalid
    from prompt_serve.training.config import settings as known

    own = [
        f"{name} is a setting of single methods; leave it out, or name a method"
        for name in settings
        if name in known() and known()[name].own
    ]
    if own:
        raise ConfigInvalid("The training settings are not valid for method 'auto':", own)
    return {**settings, "method": "zero-shot"}


def train_auto(
    backbone: "Backbone",
    dataset: "Split",
    config: "TrainConfig",
    *,
    max_bytes: int | None,
    frontier: Path | None,
    candidates: str = "text",
    name: str,
    cache: "FeatureCache | None",
    workers: int,
    progress: "Progress",
    log: Callable[[Mapping[str, Any]], object] = lambda line: None,
) -> "MethodSelection":
    """Choose a prompt, and write what it was chosen from.

    Args:
        config: made of ``base_settings``.
        frontier: table, plot or folder to write (``write_frontier``).
        log: told of every candidate.
    """
    from prompt_serve.training.pareto import check_frontier_path, write_frontier
    from prompt_serve.training.select_method import select_method

    if frontier:
        check_frontier_path(frontier)
    chosen = select_method(
        backbone,
        dataset,
        config,
        max_bytes=MAX_BYTES if max_bytes is None else max_bytes,
        candidates="all" if candidates == "all" else "text",
        name=name,
        cache=cache,
        workers=workers,
        progress=progress,
        on_candidate=lambda candidate: log({"candidate": candidate.to_dict()}),
    )
    if frontier:
        write_frontier(chosen.candidates, frontier)
    return chosen


def frontier_report(rows: Sequence["Candidate"]) -> Iterable[str]:
    """A table for the terminal: ``*`` on the frontier, ``>`` chosen."""
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
