"""Runs of a file: one per dataset, method, number of shots and seed, each with a folder of its own.

    OUT/runs/<dataset>/<method>/[<k>-shots/]seed-<n>/
        run.json              fingerprint of all inputs, status, and the result
        train.toml            settings, as prompt-serve train --config reads them
        prompt.safetensors    learned prompt
        log.jsonl             log of the epochs
        checkpoint*           while the run is not complete

``run.json`` is replaced as a whole: a run is complete, or it is resumed from its checkpoint, or,
where its inputs have changed, trained anew.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from prompt_serve import __version__
from prompt_serve.files import atomic_file
from prompt_serve.text_files import expand_user
from prompt_serve.training.many.fingerprints import digest_of, file_states
from prompt_serve.training.many.spec import DatasetSpec, MethodSpec, Spec

RUN, SETTINGS, PROMPT, LOG = "run.json", "train.toml", "prompt.safetensors", "log.jsonl"
CHECKPOINT = "checkpoint"  # or a name that starts so, where a run tries several settings

State = Literal["new", "complete", "failed", "interrupted", "changed"]


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """A prompt to train, and where."""

    dataset: DatasetSpec
    method: MethodSpec
    shots: int | None  # None: as the settings have it
    seed: int
    backbone: str
    backbone_digest: str  # of its name and files
    out: Path  # folder of all runs

    @property
    def name(self) -> str:
        """Name of the run, and its folder."""
        shots = "" if self.shots is None else f"{self.shots}-shots/"
        return f"{self.dataset.name}/{self.method.name}/{shots}seed-{self.seed}"

    @property
    def folder(self) -> Path:
        return self.out / "runs" / self.name

    @property
    def settings(self) -> dict[str, Any]:
        """Settings as ``prompt-serve train --config`` reads them."""
        shots = {} if self.shots is None else {"shots": self.shots}
        return {**self.method.settings, **shots, "seed": self.seed}

    @cached_property
    def fingerprint(self) -> str:
        """Digest of all that the result depends on."""
        inputs = {
            "version": __version__,
            "backbone": self.backbone_digest,
            "images": self.dataset.digest,
            "class_names": dict(self.dataset.class_names),
            "on_bad_image": self.dataset.on_bad_image,
            "settings": self.settings,
        }
        return digest_of(inputs)

    def stored(self) -> Mapping[str, Any] | None:
        """Return the content of ``run.json``; None if there is none that can be read."""
        try:
            found = json.loads((self.folder / RUN).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    @property
    def state(self) -> State:
        """State on disk."""
        stored = self.stored()
        if stored is None:
            return "new"
        if stored.get("fingerprint") != self.fingerprint:
            return "changed"
        status = stored.get("status")
        if status == "complete" and (self.folder / PROMPT).is_file():
            return "complete"
        return "failed" if status == "failed" else "interrupted"

    def prepare(self) -> None:
        """Make the folder; remove what other inputs left in it, and keep a checkpoint of these."""
        if self.state == "changed":
            shutil.rmtree(self.folder)
        self.store("started")
        _write(self.folder / SETTINGS, _toml(self.settings))

    def store(self, status: str, **facts: Any) -> None:
        """Replace ``run.json``."""
        content = {"fingerprint": self.fingerprint, "status": status, **facts}
        _write(self.folder / RUN, json.dumps(content, indent=1) + "\n")

    def remove_checkpoints(self) -> None:
        """Remove the checkpoints of a complete run."""
        for path in self.folder.glob(f"{CHECKPOINT}*"):
            path.unlink(missing_ok=True)


def plan_runs(spec: Spec, out: Path) -> list[PlannedRun]:
    """Return all runs, in the order of the file; seeds vary fastest.

    Runs beside each other then rarely encode the same images at the same time.
    """
    backbone = digest_of([spec.backbone, file_states(_backbone_files(spec.backbone))])
    return [
        PlannedRun(
            dataset=dataset,
            method=method,
            shots=shots,
            seed=seed,
            backbone=spec.backbone,
            out=out,
            backbone_digest=backbone,
        )
        for dataset in spec.datasets
        for shots in spec.shots
        for method in spec.methods
        for seed in spec.seeds
    ]


def _backbone_files(name: str) -> list[Path]:
    """Return the files of a backbone that is a folder or a checkpoint file."""
    path = expand_user(name.partition("@")[2] or name)
    return sorted(path.iterdir()) if path.is_dir() else [path]


def _toml(settings: Mapping[str, Any]) -> str:
    """Return settings as TOML: its strings, numbers, booleans and lists are those of JSON."""
    lines = (
        f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in settings.items()
    )
    return "".join(lines)


def _write(path: Path, text: str) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
