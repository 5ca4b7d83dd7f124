"""Train one run with the command ``prompt-serve train``, in a process of its own."""

import contextlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prompt_serve.cli.failures import failure_of
from prompt_serve.training.many.plan import CHECKPOINT, LOG, PROMPT, SETTINGS, PlannedRun


@dataclass(frozen=True, kw_only=True)
class RunOrder:
    """A run, and the options of the machine it is trained on."""

    run: PlannedRun
    device: str
    workers: int
    cache_folder: str | None
    no_cache: bool

    @classmethod
    def of(cls, run: PlannedRun, options: Mapping[str, Any]) -> "RunOrder":
        """Take what belongs to the machine out of the options of the command."""
        cache = options["cache_folder"]
        return cls(
            run=run,
            device=options["device"],
            workers=options["workers"],
            cache_folder=None if cache is None else str(cache.absolute()),
            no_cache=options["no_cache"],
        )

    def arguments(self) -> list[str]:
        """Arguments of ``prompt-serve train``."""
        run, dataset = self.run, self.run.dataset
        options: dict[str, Any] = {
            "--config": run.folder / SETTINGS,
            "--out": run.folder / PROMPT,
            "--name": dataset.name,
            "--log": run.folder / LOG,
            "--checkpoint": run.folder / CHECKPOINT,
            "--backbone": run.backbone,
            "--on-bad-image": dataset.on_bad_image,
            "--device": self.device,
            "--workers": self.workers,
            "--images": dataset.images,
            "--cache": self.cache_folder,
        }
        given = [str(w) for pair in options.items() if pair[1] is not None for w in pair]
        renames = [f"--class-name={old}={new}" for old, new in dataset.class_names.items()]
        cache = ["--no-cache"] if self.no_cache else []
        return [*given, *renames, *cache, "--quiet", "--json", "--", dataset.path]


def train_run(order: RunOrder) -> None:
    """Train a run, or resume it, and store its result or its error in its folder."""
    run = order.run
    run.prepare()
    try:
        document = _trained(order.arguments())
    except Exception as error:
        failure = failure_of(error)
        message = f"{type(error).__name__}: {error}" if failure is None else failure.message
        run.store("failed", error=" ".join(message.split()))
        return
    if document["file"] != str(run.folder / PROMPT):
        run.store("failed", error=f"The disk is full; the prompt is in {document['file']}.")
        return
    run.store("complete", result=document)
    run.remove_checkpoints()


def _trained(arguments: list[str]) -> Mapping[str, Any]:
    """Run the command in this process; return the document that it prints."""
    from prompt_serve.cli.learning.train import train

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        train.main(arguments, prog_name="prompt-serve train", standalone_mode=False)
    document: Mapping[str, Any] = json.loads(printed.getvalue())
    return document
