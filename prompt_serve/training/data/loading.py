"""Read a dataset from disk and check it: all that is wrong comes out in one error."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from prompt_serve.errors import DatasetInvalid, ImageInvalid, ImageTooLarge, PromptFileInvalid
from prompt_serve.preprocess import decode_image
from prompt_serve.prompts.prompt_file import check_class_names
from prompt_serve.training.data.dataset import LabeledImage, RawDataset, Split, limited
from prompt_serve.training.data.folders import read_folder
from prompt_serve.training.data.manifests import read_split_file, read_table
from prompt_serve.training.progress import Advance, no_advance

Check = Callable[[Split], Sequence[str]]  # further faults of a split, one line each


def read_dataset(
    source: Path,
    *,
    images: Path | None = None,
    rename: Mapping[str, str] | None = None,
    checks: Sequence[Check] = (),
) -> Split:
    """Read a folder, a CSV or Parquet manifest, or a ``split_zhou_*.json``.

    Args:
        source: a folder with one folder a class, or with train/[val/]test folders of such; or a
            manifest with the columns path, label and perhaps split; or a split file of CoOp.
        images: the folder that the paths in a split file start from; guessed where None.
        rename: other names for classes, by the name the source gives them.
        checks: looked at in addition, such as ``image_faults``.

    Raises:
        DatasetInvalid: all that is wrong, in one error.
    """
    if source.is_dir():
        listing = read_folder(source)
    elif not source.is_file():
        raise DatasetInvalid(f"There is no folder or file {source}.", [])
    elif source.suffix.lower() == ".json":
        listing = read_split_file(source, images)
    else:
        listing = read_table(source)
    return checked(listing, str(source), rename=rename, checks=checks)


def checked(
    listing: RawDataset,
    source: str,
    *,
    rename: Mapping[str, str] | None = None,
    checks: Sequence[Check] = (),
    way_out: Sequence[str] = (),
) -> Split:
    """A listing as a split, if nothing is wrong with it.

    Args:
        listing: what a reader found.
        source: what the error calls it.
        rename: other names for classes, by the name the source gives them.
        checks: looked at in addition.
        way_out: lines that end the error.

    Raises:
        DatasetInvalid: all that is wrong, in one error.
    """
    _rename(listing, rename or {})
    split = listing.split()
    faults = [*listing.faults, *_class_faults(split)]
    for check in checks if split.class_names else ():
        faults += limited(check(split))
    if faults:
        summary = f"{source} cannot be learned from:"
        raise DatasetInvalid(summary, [*faults, *way_out], source=source)
    return split


def image_faults(
    items: Sequence[LabeledImage], *, workers: int = 4, advance: Advance = no_advance
) -> list[str]:
    """Open and decode every image; one line for each that cannot be read."""

    def fault(item: LabeledImage) -> str | None:
        try:
            decode_image(item.path.read_bytes())
        except (ImageInvalid, ImageTooLarge, OSError) as error:
            return f"{item.path}: {error}"
        finally:
            advance(1)
        return None

    with ThreadPoolExecutor(workers) as pool:
        return [line for line in pool.map(fault, items) if line is not None]


def _rename(listing: RawDataset, rename: Mapping[str, str]) -> None:
    unknown = sorted(set(rename) - set(listing.class_names))
    if unknown:
        listing.faults.append(
            f"no class is called {', '.join(map(repr, unknown))}, so it cannot be renamed; "
            f"there are {', '.join(map(repr, limited(listing.class_names, 10)))}"
        )
    listing.class_names = tuple(rename.get(name, name) for name in listing.class_names)


def _class_faults(split: Split) -> list[str]:
    names = split.class_names
    if not names:
        return ["it holds no class with an image"]
    counts = Counter(item.label for item in split.train.items)
    faults = [
        f"class {name!r} has no training image"
        for label, name in enumerate(names)
        if not counts[label]
    ]
    if len(names) == 1:
        faults.append(f"there is one class only, {names[0]!r}; wanted two or more")
    try:
        check_class_names(names)
    except PromptFileInvalid as error:
        faults.append(str(error))
    return limited(faults)
