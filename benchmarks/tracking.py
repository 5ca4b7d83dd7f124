"""Measure what a tracker costs a training: CPU time per epoch, and once per run.

    python -m benchmarks.tracking

The curves are those of a prompt, five numbers per epoch. Trackers write into a temporary folder:
event files of TensorBoard, a database of MLflow.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prompt_serve.training.tracking.runs import TrackedRuns, Tracker

EPOCH = {
    "learning_rate": 0.1, "loss": 1.25, "val_accuracy": 0.5, "val_loss": 1.5, "seconds": 0.01,
}  # fmt: skip
OUTCOME: dict[str, Any] = {
    "name": "pets", "method": "coop", "class_names": ["cat", "dog"], "learned_numbers": 8192,
    "payload_bytes": 16384, "file_bytes": 17000, "temperature": 1.0, "unknown_below": 0.0,
    "unlike_below": None, "training": {"learning_rate": 0.1, "epochs": 200}, "seconds": {},
    "metrics": {"test": {"accuracy": 0.5}},
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=1000)
    epochs: int = parser.parse_args().epochs
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        prompt = Path("pets.safetensors")
        prompt.write_bytes(bytes(17_000))
        print(f"{'tracker':<12} {'begin ms':>9} {'epoch ms':>9} {'finish ms':>10}   CPU time")
        for name, start in (("tensorboard", _tensorboard), ("mlflow", _mlflow)):
            start("first")  # imports, and the tables of a new database
            runs = TrackedRuns(start, lambda seed: "pets", print)
            begun = _cpu_ms(runs.begin)

            def log(runs: TrackedRuns = runs) -> None:
                for epoch in range(epochs):
                    runs.line({"epoch": epoch, **EPOCH})

            logged = _cpu_ms(log) / epochs
            outcome = {**OUTCOME, "file": str(prompt)}
            finished = _cpu_ms(lambda runs=runs, outcome=outcome: runs.finish(outcome))  # type: ignore[misc]
            print(f"{name:<12} {begun:>9.1f} {logged:>9.3f} {finished:>10.1f}")


def _tensorboard(name: str) -> Tracker:
    from prompt_serve.training.tracking.tensorboard_run import TensorboardRun

    return TensorboardRun(name, folder=Path("runs"), dataset="pets/")


def _mlflow(name: str) -> Tracker:
    from prompt_serve.training.tracking.mlflow_run import MlflowRun

    return MlflowRun(name, uri="sqlite:///mlflow.db", experiment="pets", dataset="pets/")


def _cpu_ms(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return 1000 * (time.process_time() - start)


if __name__ == "__main__":
    main()
