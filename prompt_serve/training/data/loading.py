"""Read a dataset and check it; one error lists all faults."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

from prompt_serve.errors import DatasetInvalid, ImageInvalid, ImageTooLarge, PromptFileInvalid
from prompt_serve.image_folders import nfc
from prompt_serve.images.image_source import read_image_path
from prompt_serve.preprocess import decode_image
from prompt_serve.prompts.prompt_file import check_class_names
from prompt_serve.training.data.dataset import LabeledImage, RawDataset, Split, limited
from prompt_serve.training.data.folders import read_folder
from prompt_serve.training.data.image_store import ImageStore
from prompt_serve.training.data.manifests import is_split_file, labeled_images, read_split_file
from prompt_serve.training.data.opening import ImageTree, opened
from prompt_serve.training.data.tables import USUAL_COLUMNS, ColumnNames, Table
from prompt_serve.training.progress import SILENT, Advance, Progress, no_advance

Check = Callable[[Split], Sequence[str]]  # returns further faults of a split, one line each
Repair = Callable[[RawDataset], object]  # adds faults, or removes what cannot be used with a note
OnBadImage = Literal["error", "skip"]
SKIPPED_SHOWN = 20  # unreadable images listed in a note


def read_dataset(
    source: str | Path,
    *,
    images: Path | None = None,
    columns: ColumnNames = USUAL_COLUMNS,
    rename: Mapping[str, str] | None = None,
    repairs: Sequence[Repair] = (),
    checks: Sequence[Check] = (),
    workers: int = 4,
    progress: Progress = SILENT,
) -> Split:
    """Read a dataset: folders, a table, archives, or the URL of these.

    Images that are not files of this machine are copied (see ``ImageStore``).

    Args:
        source: a folder with one folder per class, or with train/[val/]test folders of such; a
            folder with images and metadata.csv, .jsonl or .parquet; a CSV, JSON, Parquet or Arrow
            table with paths or bytes of images, labels and optionally split; tar archives
            (WebDataset); a folder or pattern of tables or archives; a URL of these (s3://, gs://,
            hf://datasets/); or a split file of CoOp.
        images: the folder that the paths in a split file are relative to; guessed where None.
        columns: names of columns in tables.
        rename: new names of classes, by the name in the source.
        repairs: applied before the checks, such as ``check_images``.
        checks: further checks of the classes and numbers of images.
        workers: files of object stores read at once.
        progress: shows a progress bar while they are read.

    Raises:
        DatasetInvalid: lists all faults.
    """
    if is_split_file(str(source)):
        dataset = read_split_file(Path(source), images)
    else:
        store = ImageStore(workers=workers, progress=progress)
        with opened(str(source), columns, store) as found:
            dataset = labeled_images(found) if isinstance(found, Table) else _of_tree(found)
    return checked(dataset, str(source), rename=rename, repairs=repairs, checks=checks)


def _of_tree(tree: ImageTree) -> RawDataset:
    dataset = read_folder(tree.root)
    files = tree.located([item.path for items in dataset.items.values() for item in items])
    for part, items in dataset.items.items():
        dataset.items[part] = [
            LabeledImage(files[item.path][0], item.label, files[item.path][1])
            for item in items
            if item.path in files
        ]
    dataset.faults = tree.named(dataset.faults)
    dataset.notes = tree.named(dataset.notes)
    return dataset


def checked(
    dataset: RawDataset,
    source: str,
    *,
    rename: Mapping[str, str] | None = None,
    repairs: Sequence[Repair] = (),
    checks: Sequence[Check] = (),
    way_out: Sequence[str] = (),
) -> Split:
    """Return the dataset as a split if it has no faults.

    Args:
        dataset: from a reader.
        source: name of the dataset in the error.
        rename: new names of classes, by the name in the source.
        repairs: applied before the checks.
        checks: further checks.
        way_out: last lines of the error.

    Raises:
        DatasetInvalid: lists all faults.
    """
    _rename(dataset, rename or {})
    for repair in repairs:
        repair(dataset)
    split = dataset.split()
    faults = [*dataset.faults, *_class_faults(split)]
    for check in checks if split.class_names else ():
        faults += limited(check(split))
    if faults:
        summary = f"{source} cannot be learned from:"
        raise DatasetInvalid(summary, [*faults, *way_out, *split.notes], source=source)
    return split


def check_images(
    *, on_bad_image: OnBadImage = "error", workers: int = 4, progress: Progress = SILENT
) -> Repair:
    """Return a repair that decodes every image of a dataset, with a progress bar.

    Args:
        on_bad_image: "error" makes each image that cannot be decoded a fault; "skip" removes them
            and lists them in a note.
        workers: threads that decode.
        progress: shows the bar.
    """

    def repair(dataset: RawDataset) -> None:
        items = [item for part in dataset.items.values() for item in part]
        with progress.bar("checking images", len(items), "img") as advance:
            faults = _faults(items, workers, advance)
        if on_bad_image == "error":
            dataset.faults += limited(list(faults.values()))
        elif faults:
            _skip(dataset, faults)

    return repair


def _skip(dataset: RawDataset, faults: Mapping[Path, str]) -> None:
    for part, items in dataset.items.items():
        dataset.items[part] = [item for item in items if item.path not in faults]
    skipped = f"{len(faults):,} unreadable image{'s' if len(faults) > 1 else ''} skipped:"
    dataset.notes.append("\n  ".join([skipped, *limited(list(faults.values()), SKIPPED_SHOWN)]))


def image_faults(
    items: Sequence[LabeledImage], *, workers: int = 4, advance: Advance = no_advance
) -> list[str]:
    """Decode every image; return one line for each that cannot be read."""
    return list(_faults(items, workers, advance).values())


def _faults(items: Sequence[LabeledImage], workers: int, advance: Advance) -> dict[Path, str]:
    def fault(item: LabeledImage) -> str | None:
        try:
            decode_image(read_image_path(item.path))
        except (ImageInvalid, ImageTooLarge) as error:
            return f"{item.name}: {error}"
        finally:
            advance(1)
        return None

    with ThreadPoolExecutor(workers) as pool:
        faults = pool.map(fault, items)
        return {item.path: f for item, f in zip(items, faults, strict=True) if f is not None}


def _rename(dataset: RawDataset, rename: Mapping[str, str]) -> None:
    dataset.faults += rename_faults(dataset.class_names, rename)
    rename = {nfc(old): new for old, new in rename.items()}
    dataset.class_names = tuple(rename.get(nfc(name), name) for name in dataset.class_names)


def rename_faults(class_names: Sequence[str], rename: Mapping[str, str]) -> list[str]:
    """Return a line if classes are to be renamed that do not exist."""
    unknown = sorted(set(map(nfc, rename)) - set(map(nfc, class_names)))
    if not unknown:
        return []
    return [
        f"no class is called {', '.join(map(repr, unknown))}, so it cannot be renamed; "
        f"there are {', '.join(map(repr, limited(class_names, 10)))}"
    ]


def _class_faults(split: Split) -> list[str]:
    names = split.class_names
    if not names:
        return ["it has no class with an image"]
    counts = Counter(item.label for item in split.train.items)
    faults = [
        f"class {name!r} has no training image"
        for label, name in enumerate(names)
        if not counts[label]
    ]
    if len(names) == 1:
        faults.append(f"there is one class only, {names[0]!r}; expected two or more")
    try:
        check_class_names(names)
    except PromptFileInvalid as error:
        faults.append(str(error))
    return limited(faults)
