"""Check that a split is the published one: its counts, the order of its labels, and its images.

If the split file is missing, CoOp's code draws a new split under the same name. Its counts and
class names match the published split but its images do not, so a few list positions are checked.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from prompt_serve.research.datasets.class_names import class_name_of
from prompt_serve.research.datasets.spec import DatasetSpec
from prompt_serve.training.data.dataset import ImageSet, Split, limited


def published_faults(
    spec: DatasetSpec, images: Path, class_names: Sequence[str], parts: Mapping[str, ImageSet]
) -> list[str]:
    """Return one line per difference between a dataset and the published one.

    Args:
        spec: the published dataset.
        images: folder that the paths in the split are relative to.
        class_names: in the order of the labels.
        parts: images of each part.
    """
    return [
        *_count_faults(spec, class_names, parts),
        *_order_faults(spec, class_names),
        *_draw_faults(spec, images, parts),
        *_name_faults(spec, images, parts),
    ]


def split_check(spec: DatasetSpec, images: Path) -> Callable[[Split], list[str]]:
    """Return ``published_faults`` as a check for ``loading.checked``."""
    return lambda split: published_faults(spec, images, split.class_names, split.parts)


def _count_faults(
    spec: DatasetSpec, class_names: Sequence[str], parts: Mapping[str, ImageSet]
) -> list[str]:
    faults = []
    if spec.classes and len(class_names) != spec.classes:
        faults.append(f"it has {len(class_names):,} classes; published are {spec.classes:,}")
    for part, size in spec.sizes.items():
        found = len(parts[part]) if part in parts else 0
        if found != size:
            faults.append(f"{part} has {found:,} images; published are {size:,}")
    if spec.sizes:
        faults += [f"it has an unexpected part {part}" for part in parts if part not in spec.sizes]
    return faults


def _order_faults(spec: DatasetSpec, class_names: Sequence[str]) -> list[str]:
    half = (len(class_names) + 1) // 2
    if not spec.first_new or len(class_names) != spec.classes or half >= len(class_names):
        return []
    if class_names[half] == spec.first_new:
        return []
    return [
        f"class {half} is {class_names[half]!r}; published is {spec.first_new!r}, the first of the "
        f"new classes: names or labels have changed"
    ]


def _draw_faults(spec: DatasetSpec, images: Path, parts: Mapping[str, ImageSet]) -> list[str]:
    train = parts["train"].items if "train" in parts else ()
    if len(train) != spec.sizes.get("train"):
        return []  # already reported, and positions are meaningless
    wrong = [
        f"training image {at} is {_below(train[at].path, images).as_posix()}; published is "
        f"{file}: the split was drawn anew"
        for at, file in spec.published.items()
        if train[at].path != images / file
    ]
    return wrong[:1]


def _name_faults(spec: DatasetSpec, images: Path, parts: Mapping[str, ImageSet]) -> list[str]:
    if not spec.names_from:
        return []
    faults = []
    for part in parts.values():
        for item in part.items:
            file = _below(item.path, images)
            name, expected = part.class_names[item.label], class_name_of(file, spec)
            if expected is not None and name != expected:
                faults.append(f"{file.as_posix()} is called {name!r}; published is {expected!r}")
    return limited(faults, 3)


def _below(path: Path, images: Path) -> Path:
    """Return the path relative to the folder of images; unchanged if it is outside of it."""
    return path.relative_to(images) if path.is_relative_to(images) else path
