"""Results file: one line per learned prompt, with full precision.

A run folder holds ``results.jsonl`` and, for each line, a folder ``runs/<run_id>`` with the prompt
file (``prompt.safetensors``), the sampled images (``images.json``: paths of "train" and "val"), the
log (``history.jsonl``, one ``EpochRecord`` per line) and the predictions on each test set
(``predictions-<test set>.npz``, see ``StoredPredictions``).
"""

import json
import platform
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from prompt_serve import __version__
from prompt_serve.errors import ResultsInvalid
from prompt_serve.files import atomic_file
from prompt_serve.types import FloatArray, IntArray

FORMAT = 1
FILE_NAME = "results.jsonl"
PACKAGES = ("torch", "open_clip_torch", "numpy", "pillow")


@dataclass(frozen=True, kw_only=True)
class Result:
    """Result of one dataset, one row of the table and one seed."""

    protocol: str  # "base-to-new", "few-shot", "cross-dataset", "domain-generalization"
    suite: str  # "papers", "icon", "user"
    dataset: str  # training dataset
    method: str  # a name in METHODS
    label: str  # of the row in tables; two rows of one method differ in it
    seed: int
    shots: int
    # By test set: base-to-new "base", "new"; few-shot "test"; cross-dataset "source" and the name
    # of each target; domain-generalization "source" and the name of each domain. Fractions, 0 to 1.
    accuracy: Mapping[str, float]
    calibration_error: Mapping[str, float]  # the same keys
    images: Mapping[str, int]  # the same keys, and "train", "val"
    classes: Mapping[str, int]  # the same keys as accuracy
    validation_accuracy: float | None  # the only accuracy that may be used for selection
    trained_numbers: int  # parameters updated by SGD
    payload_bytes: int  # learned numbers in the prompt file
    learning_rate: float | None
    seconds: float  # training time; for batched runs, this run's share
    idk: tuple[float, ...] = ()  # ID_k after the last epoch
    config: Mapping[str, Any] = field(default_factory=dict)  # all fields of TrainConfig
    backbone: Mapping[str, Any] = field(default_factory=dict)  # id, fingerprint
    environment: Mapping[str, Any] = field(default_factory=dict)
    format: int = FORMAT

    @property
    def run_id(self) -> str:
        """Name of the run's folder, unique within a results file."""
        words = (self.protocol, self.dataset, self.label, f"{self.shots}-shots", f"{self.seed}")
        return "-".join(re.sub(r"[^a-z0-9.]+", "_", word.lower()).strip("_") for word in words)

    def to_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False)


@dataclass(frozen=True, kw_only=True)
class StoredPredictions:
    """Predictions of one prompt on one test set."""

    paths: tuple[str, ...]  # N image files
    labels: IntArray  # (N,)
    probabilities: FloatArray  # (N, K), of the K most probable classes, calibrated, descending
    predicted: IntArray  # (N, K), labels of those classes
    class_names: tuple[str, ...]  # C

    def save(self, path: Path) -> None:
        np.savez_compressed(
            path,
            paths=np.array(self.paths, dtype=np.str_),
            labels=self.labels.astype(np.int32),
            probabilities=self.probabilities.astype(np.float16),
            predicted=self.predicted.astype(np.int32),
            class_names=np.array(self.class_names, dtype=np.str_),
        )

    @classmethod
    def load(cls, path: Path) -> "StoredPredictions":
        # Opened here because numpy leaves its own handle open if the file is damaged.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            return cls(
                paths=tuple(stored["paths"].tolist()),
                labels=stored["labels"].astype(np.int64),
                probabilities=stored["probabilities"].astype(np.float32),
                predicted=stored["predicted"].astype(np.int64),
                class_names=tuple(stored["class_names"].tolist()),
            )


def predictions_file(test_set: str) -> str:
    """Return the file name of the predictions on a test set."""
    return f"predictions-{test_set}.npz"


def read_results(path: Path) -> tuple[Result, ...]:
    """Read a results file, or the one in a run folder.

    Raises:
        ResultsInvalid: the file is missing or a line is invalid; the error names it.
    """
    file = path / FILE_NAME if path.is_dir() else path
    expected = (
        f"Expected a run folder with {FILE_NAME}, as prompt-serve protocol and prompt-serve "
        f"reproduce write it, or such a file."
    )
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ResultsInvalid(f"{file} cannot be read: {error.strerror}. {expected}") from error
    except UnicodeDecodeError as error:
        raise ResultsInvalid(f"{file} is not text. {expected}") from error
    return tuple(_result(line, f"{file}, line {n}") for n, line in enumerate(lines, 1) if line)


def _result(line: str, where: str) -> Result:
    try:
        values = json.loads(line)
        if values["format"] != FORMAT:
            raise ResultsInvalid(
                f"{where}: results format {values['format']!r}, this version reads {FORMAT}."
            )
        return Result(**{**values, "idk": tuple(values["idk"])})
    except json.JSONDecodeError as error:
        raise ResultsInvalid(f"{where} is not a protocol result: not JSON ({error}).") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ResultsInvalid(f"{where} is not a protocol result: {error!r}.") from error


def append_results(folder: Path, results: Iterable[Result]) -> None:
    """Append lines to the results file of a run folder in one write."""
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(f"{result.to_json()}\n" for result in results)
    with (folder / FILE_NAME).open("a", encoding="utf-8") as file:
        file.write(text)


def replace_results(folder: Path, results: Iterable[Result]) -> None:
    """Write the results file anew, atomically: who reads it finds whole lines."""
    with atomic_file(folder / FILE_NAME) as temporary:
        temporary.write_text("".join(f"{result.to_json()}\n" for result in results), "utf-8")


@cache
def environment() -> Mapping[str, Any]:
    """Return versions and machine, as stored in every line."""
    return {
        "prompt_serve": __version__,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "processor": platform.machine(),
    }
