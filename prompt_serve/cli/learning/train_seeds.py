"""``prompt-serve train --seeds 1,2,3``: train a prompt file per seed, all at once."""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from prompt_serve.cli.facts import Report
from prompt_serve.cli.learning.train_report import training_document
from prompt_serve.cli.output_file import save
from prompt_serve.errors import counted

if TYPE_CHECKING:
    from prompt_serve.prompts.prompt_file import Prompt
    from prompt_serve.training.clip.backbone import Backbone
    from prompt_serve.training.config import TrainConfig
    from prompt_serve.training.data.dataset import Split
    from prompt_serve.training.data.features import FeatureCache
    from prompt_serve.training.progress import Progress
    from prompt_serve.training.without_torch.outcome import Extras, TrainingResult


def parse_seeds(
    context: click.Context, option: click.Parameter, value: str | None
) -> tuple[int, ...]:
    """Return the numbers in "1,2,3"; a click callback."""
    if value is None:
        return ()
    try:
        seeds = tuple(int(part) for part in value.split(","))
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is not a list of numbers, as in 1,2,3.") from error
    if len(set(seeds)) < len(seeds):
        raise click.BadParameter(f"{value!r} names a seed twice.")
    return seeds


def path_of_seed(out: Path, seed: int) -> Path:
    """``pets.safetensors`` -> ``pets-seed1.safetensors``."""
    return out.with_name(f"{out.stem}-seed{seed}{out.suffix}")


def train_seeds(
    backbone: "Backbone",
    dataset: "Split",
    config: "TrainConfig",
    seeds: Sequence[int],
    *,
    out: Path,
    name: str | None,
    cache: "FeatureCache | None",
    workers: int,
    progress: "Progress",
    extras: "Extras",
    log: Callable[[Mapping[str, Any]], object] = lambda line: None,
    stamped: Callable[["TrainingResult"], "Prompt"] = lambda result: result.prompt,
    signed: Callable[[bytes], bytes] | None = None,
) -> Report:
    """Train and write a prompt for each seed; return what to print.

    Args:
        seeds: one or more, in place of ``config.seed``.
        out: each seed's file is named after it (``path_of_seed``).
        extras: what is made beside the learned numbers.
        log: called with a line for every epoch and every result, with the seed.
        stamped: returns the prompt to write for a result.
        signed: adds a signature to a prompt file.
    """
    from prompt_serve.prompts.prompt_file import write_prompt_file
    from prompt_serve.training.findings import with_findings
    from prompt_serve.training.train import train_prompts

    paths = [path_of_seed(out, seed) for seed in seeds]
    results = train_prompts(
        backbone,
        dataset,
        [config.replace(seed=seed) for seed in seeds],
        names=[name or path.stem for path in paths],
        cache=cache,
        workers=workers,
        progress=progress,
        on_epoch=lambda index, record: log({"seed": seeds[index], **record.to_dict()}),
        extras=extras,
    )
    results = [with_findings(result, dataset, workers=workers) for result in results]
    for index, (seed, result) in enumerate(zip(seeds, results, strict=True)):
        prompt = stamped(result)
        paths[index] = save(paths[index], partial(write_prompt_file, prompt, signed=signed))
        log({"seed": seed, "metrics": dict(result.prompt.metrics)})
    documents = [
        {"seed": seed, **training_document(result, path, path.stat().st_size)}
        for seed, path, result in zip(seeds, paths, results, strict=True)
    ]
    return Report(documents, list(seeds_report(seeds, paths, results)))


def seeds_report(
    seeds: Sequence[int], paths: Sequence[Path], results: Sequence["TrainingResult"]
) -> Iterable[str]:
    """Yield the accuracy of each seed, their mean and sample standard deviation, in percent."""
    first = results[0]
    images = ", ".join(f"{count} {part}" for part, count in first.images.items())
    yield f"{counted(len(first.prompt.class_names), 'class')}; images: {images}"
    yield from (f"Note: {n}" for n in dict.fromkeys(n for r in results for n in r.notes))
    parts = list(first.comparisons)
    yield ""
    yield " ".join([f"{'seed':<6}", *(f"{part:>22}" for part in parts)]).rstrip()
    for seed, path, result in zip(seeds, paths, results, strict=True):
        cells = [f"{100 * result.comparisons[part].prompt.accuracy:>22.1f}" for part in parts]
        yield " ".join([f"{seed:<6}", *cells, f" {path}"])
    for label, of in (("mean", "prompt"), ("zero", "zero_shot")):
        cells = []
        for part in parts:
            shares = [100 * getattr(r.comparisons[part], of).accuracy for r in results]
            spread = statistics.stdev(shares) if len(shares) > 1 else 0.0
            cells.append(f"{f'{statistics.mean(shares):.1f} ± {spread:.1f}':>22}")
        shown = "mean" if label == "mean" else "zero-shot"
        yield " ".join([f"{shown:<6}", *cells]).rstrip()
    yield ""
    yield f"payload      {counted(first.prompt.payload_bytes, 'byte')} each"
    seconds = ", ".join(f"{stage} {s:.1f}" for stage, s in first.seconds.items())
    yield f"seconds      {seconds} in total"
