"""One image against many tasks: what a request costs with K tasks beside what it costs with one.

    python -m benchmarks.many_tasks --bundle DIR --tasks 100 --classes 100 --rounds 30

Encodes one image through the bundle's image graph, then scores it by random tasks of as many
classes, exactly as the service does (``service.answers``), answers in JSON included. One task and K
tasks take turns within one run; the figures are medians. The target is a ratio of at most 1.2.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from prompt_serve.bundle import open_bundle
from prompt_serve.schemas import ClassifyAnswer
from prompt_serve.scoring import class_logits, top_classes, unit
from prompt_serve.service.answers import NamedTasks, scored
from prompt_serve.service.engine import Engine
from prompt_serve.service.inputs import ImageItem
from prompt_serve.service.tasks import Task
from prompt_serve.types import FloatArray


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, required=True, help="from prompt-serve export")
    parser.add_argument("--tasks", type=int, default=100)
    parser.add_argument("--classes", type=int, default=100, help="of each task")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2, help="of ONNX Runtime")
    options = parser.parse_args()

    bundle = open_bundle(options.bundle)
    engine = Engine(bundle, cuda_device=None, threads=options.threads, max_batch=1)
    side, width = (
        engine.bundle.manifest.preprocessing.image_size,
        bundle.manifest.backbone.embed_dim,
    )
    pixels = np.random.default_rng(0).integers(0, 256, (1, side, side, 3), dtype=np.uint8)
    tasks = random_tasks(options.tasks, options.classes, width)
    scale = bundle.manifest.logit_scale
    engine.encode_images(pixels)

    def ask(asked: NamedTasks) -> None:
        (features,) = engine.encode_images(pixels)
        results = scored([ImageItem(b"")], [features], asked, 5, scale)
        ClassifyAnswer(results=results, backbone="").model_dump_json()

    (features,) = engine.encode_images(pixels)
    steps: dict[str, Callable[[], object]] = {
        "encoder alone": lambda: engine.encode_images(pixels),
        "one task": lambda: ask(tasks[:1]),
        f"{options.tasks} tasks": lambda: ask(tasks),
        "their scores, together": lambda: scored([ImageItem(b"")], [features], tasks, 5, scale),
        "their scores, one by one": lambda: one_by_one(features, tasks, scale),
    }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(options.rounds + 1):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(measured[1:]) for name, measured in seconds.items()}
    print(f"{bundle.manifest.backbone.id} ({bundle.manifest.precision}), {options.classes} classes")
    for name, median in medians.items():
        print(f"{name:26} {1000 * median:8.2f} ms")
    print(f"ratio {medians[f'{options.tasks} tasks'] / medians['one task']:.2f}")


def random_tasks(n_tasks: int, n_classes: int, width: int) -> NamedTasks:
    rng = np.random.default_rng(1)
    names = tuple(f"class {label}" for label in range(n_classes))
    return [
        (
            f"task-{n}",
            Task(
                version="0" * 64,
                class_names=names,
                class_features=unit(rng.standard_normal((n_classes, width)).astype(np.float32)),
            ),
        )
        for n in range(n_tasks)
    ]


def one_by_one(features: FloatArray, tasks: NamedTasks, scale: float) -> None:
    for _, task in tasks:
        (logits,) = class_logits(features[np.newaxis], task.class_features, scale)
        top_classes(logits, task.class_names, 5)


if __name__ == "__main__":
    main()
