"""Images, tables and prompt files that the pages presume: pets, flowers, photos, scenes."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow.csv
import pyarrow.parquet

from tests.drawings import draw_image
from tests.no_torch import without_torch
from tests.service.process import ROOT
from tests.sources import labeled_forms

_PETS = {"cat": (30, 30, 220), "dog": (30, 200, 30), "guinea pig": (220, 30, 30)}
_FLOWERS = {"daisy": (220, 220, 30), "rose": (220, 30, 120), "tulip": (240, 140, 30)}
_IMAGE_SIZE = 224  # of the embedded backbone
_TIMEOUT_S = 300


def make_world(folder: Path, environment: Mapping[str, str]) -> Path:
    """Create the files in ``folder``; prompts are learned on ``embedded``, by the command line."""
    _draw(folder / "pets" / "train", _PETS, 20, seed=0)
    _draw(folder / "pets" / "test", _PETS, 6, seed=4)
    _draw(folder / "other-pets", _PETS, 6, seed=1)
    _draw(folder / "photos", {name: _PETS[name] for name in ("cat", "dog")}, 6, seed=2)
    for name in ("cat", "dog"):  # beside the class folders
        draw_image(folder / "photos" / f"{name}.jpg", _PETS[name], seed=3)
    draw_image(folder / "photo.jpg", _PETS["cat"], seed=4)
    emoji = ROOT / "prompt_serve" / "assets" / "emoji"
    shutil.copy(emoji / "test" / "wildlife" / "emojione__rabbit.png", folder / "a.png")
    (folder / "b.jpg").write_bytes(b"nonsense")
    np.save(folder / "pixels.npy", np.full((2, _IMAGE_SIZE, _IMAGE_SIZE, 3), 128, np.uint8))
    for number, name in enumerate(("flowers", "birds", "night")):
        classes = _PETS if name == "night" else _FLOWERS
        for part in ("train", "test"):
            _draw(folder / name / part, classes, 20, seed=10 * number + len(part))
    for name in ("birds.csv", "night.parquet"):
        _table(folder, name)
    _packed(folder)
    _draw(folder / "sketches", {name: _PETS[name] for name in ("cat", "dog")}, 6, seed=8)
    for number, name in enumerate(("scenes.csv", "other-scenes.csv")):
        _scenes(folder, name, seed=9 + number)
    for run, source in (("icon", "iconbench"), ("text", "iconbench"), ("image", "iconbench-vit")):
        stored = (ROOT / "docs" / "results" / source / "results.jsonl").read_text().splitlines()
        lines = [line for line in stored if json.loads(line)["protocol"] == "base-to-new"]
        (folder / "runs" / run).mkdir(parents=True)
        (folder / "runs" / run / "results.jsonl").write_text("\n".join(lines) + "\n")

    _train(folder, environment, "pets", "pets.safetensors")
    _train(folder, environment, "pets", "new.safetensors", "--bits", "1")
    _train(folder, environment, f"{emoji}/train", "labels.safetensors")
    (folder / "prompts").mkdir()
    for name in ("pets", "labels"):
        shutil.copy(folder / f"{name}.safetensors", folder / "prompts")
    return folder


def _draw(folder: Path, classes: Mapping[str, tuple[int, int, int]], count: int, seed: int) -> None:
    for number, (name, color) in enumerate(classes.items()):
        for n in range(count):
            draw_image(folder / name / f"{n}.png", color, 10_000 * seed + 100 * number + n)


def _table(folder: Path, name: str) -> None:
    """Write a table of the images in the folder of its name."""
    images = [image.relative_to(folder) for image in sorted((folder / name).parent.rglob("*.png"))]
    top = Path(name).stem
    rows = [
        (str(image), image.parts[2], image.parts[1]) for image in images if image.parts[0] == top
    ]
    columns = dict(zip(("path", "label", "split"), map(list, zip(*rows, strict=True)), strict=True))
    table = pyarrow.table(columns)
    if name.endswith(".csv"):
        pyarrow.csv.write_csv(table, folder / name)
    else:
        pyarrow.parquet.write_table(table, folder / name)


def _packed(folder: Path) -> None:
    """Write the pets as a table with their bytes, and as archives of WebDataset."""
    images = labeled_forms.images_of(folder / "pets")
    source = labeled_forms.parquet_bytes(images, folder / "packed")
    table = pyarrow.parquet.read_table(source)
    pyarrow.parquet.write_table(
        table.rename_columns(["image", "species", "split"]), folder / "packed.parquet"
    )
    shutil.rmtree(folder / "packed")
    labeled_forms.webdataset("text")(images, folder / "shards")


def _scenes(folder: Path, name: str, seed: int) -> None:
    """Write a table of images with one, two or no labels."""
    kinds = ((_PETS["cat"], "cat"), (_PETS["dog"], "dog;grass"), (_FLOWERS["daisy"], "grass"))
    lines = ["path,label"]
    for n in range(24):
        color, label = (*kinds, ((128, 128, 128), ""))[n % 4]
        image = draw_image(folder / "scenes" / f"{seed}-{n}.png", color, 10_000 * seed + n)
        lines.append(f"{image.relative_to(folder)},{label}")
    (folder / name).write_text("\n".join(lines) + "\n")


def _train(
    folder: Path, environment: Mapping[str, str], dataset: str, out: str, *options: str
) -> None:
    """Learn class vectors where torch is missing: its import takes longer than all of that."""
    hidden = without_torch(folder.parent / "no-torch")["PYTHONPATH"]
    command = [sys.executable, "-m", "prompt_serve", "train", dataset, "--out", out]
    done = subprocess.run(
        [*command, "--method", "class-vectors", *options],
        cwd=folder,
        env={**environment, "PYTHONPATH": os.pathsep.join([hidden, environment["PYTHONPATH"]])},
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
    )
    assert done.returncode == 0, done.stderr
