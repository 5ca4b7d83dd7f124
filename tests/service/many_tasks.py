"""More tasks than one JSON answer holds: class vectors of different sizes, uploaded in bulk."""

import io
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import numpy as np

from prompt_serve.bundle import Manifest
from prompt_serve.prompts.class_vectors import ClassVectors, LabelVectors
from prompt_serve.prompts.probe import probe
from prompt_serve.prompts.prompt_file import Prompt, to_bytes
from tests.service.prompts import Numbers

TASKS_PER_ZIP = 500


def task_files(manifest: Manifest, names: list[str]) -> Iterator[tuple[str, bytes]]:
    """Prompt files of two to six classes; every fifth may say ``unknown``, every seventh has
    labels."""
    for seed, name in enumerate(names):
        n_classes = 2 + seed % 5
        numbers = Numbers(seed)
        rows = numbers(n_classes, manifest.backbone.embed_dim)
        classes: ClassVectors | LabelVectors
        if seed % 7 == 3:
            classes = LabelVectors(
                rows=rows,
                scales=np.ones(n_classes, np.float16),
                offsets=np.zeros(n_classes, np.float16),
                thresholds=np.full(n_classes, 0.5, np.float16),
            )
        else:
            classes = ClassVectors(rows=rows, scales=np.full(n_classes, 3, np.float16))
        yield (
            name,
            to_bytes(
                Prompt(
                    name=name,
                    method="class-vectors",
                    class_names=tuple(f"class {i}" for i in range(n_classes)),
                    templates=("a photo of a {}.",),
                    backbone=manifest.backbone,
                    probe=probe(classes.class_features()[0]),
                    classes=classes,
                    unknown_below=0.9 if seed % 5 == 0 and seed % 7 != 3 else 0.0,
                )
            ),
        )


@contextmanager
def many_tasks(url: str, manifest: Manifest, names: list[str]) -> Iterator[None]:
    """Upload tasks of these names; they are deleted at the end."""
    files = list(task_files(manifest, names))
    with httpx.Client(base_url=url, timeout=120) as http:
        for start in range(0, len(files), TASKS_PER_ZIP):
            body = io.BytesIO()
            with zipfile.ZipFile(body, "w") as archive:
                for name, data in files[start : start + TASKS_PER_ZIP]:
                    archive.writestr(f"{name}.safetensors", data)
            kind = {"content-type": "application/zip"}
            http.put("/v1/tasks", content=body.getvalue(), headers=kind).raise_for_status()
        try:
            yield
        finally:
            for name in names:
                http.delete(f"/v1/tasks/{name}")
