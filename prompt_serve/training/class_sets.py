"""Bring the classes of a prompt and those of a dataset together, by their names."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from prompt_serve.errors import DatasetInvalid, PromptUnsupported
from prompt_serve.prompts.encodings import Dense
from prompt_serve.prompts.probe import probe
from prompt_serve.prompts.prompt_file import Prompt, check_class_names
from prompt_serve.training.clip.backbone import Backbone
from prompt_serve.training.data.dataset import ImageSet, LabeledImage, Split
from prompt_serve.training.evaluate import probed_features


def half_labels(n_classes: int) -> tuple[range, range]:
    """Labels of the base and of the new classes: the first half, rounded up, and the rest (CoCoOp,
    section 4.1)."""
    m = -(-n_classes // 2)
    return range(m), range(m, n_classes)


def of_labels(images: ImageSet, labels: Sequence[int]) -> ImageSet:
    """The images of some classes, relabeled from 0 in the order of ``labels``."""
    numbers = {label: index for index, label in enumerate(labels)}
    return ImageSet(
        class_names=tuple(images.class_names[label] for label in labels),
        items=tuple(
            LabeledImage(item.path, numbers[item.label])
            for item in images.items
            if item.label in numbers
        ),
    )


def split_of_labels(split: Split, labels: Sequence[int]) -> Split:
    """``of_labels`` of each part."""
    return Split(**{name: of_labels(part, labels) for name, part in split.parts.items()})


def halves(whole: Split) -> tuple[Split, ImageSet]:
    """The base classes, and the test images of the new ones (see ``half_labels``).

    Raises:
        DatasetInvalid: there are no test images.
    """
    base, new = half_labels(len(whole.class_names))
    if whole.test is None:
        raise DatasetInvalid("There are no test images of new classes to test on.")
    return split_of_labels(whole, base), of_labels(whole.test, new)


def with_classes(prompt: Prompt, class_names: Sequence[str], backbone: Backbone) -> Prompt:
    """The learned context with other class names: how it does on classes it never saw.

    What was fitted to the old classes (metrics, the threshold for unknown images) is left out; the
    temperature stays.

    Raises:
        PromptUnsupported: every class has a context of its own.
        PromptFileInvalid: the names are no set of class names.
        BackboneMismatch, PromptTooLong: as for the class features.
    """
    if isinstance(prompt.text, Dense) and prompt.text.n_classes is not None:
        raise PromptUnsupported(
            f"Prompt {prompt.name!r} has a context of its own for each of its classes, so it says "
            f"nothing of others. Train one that they share: leave class_specific out."
        )
    names = tuple(class_names)
    check_class_names(names)
    other = replace(
        prompt,
        class_names=names,
        probe=np.zeros(len(names), dtype=np.float16),
        metrics={},
        unknown_below=0.0,
    )
    return replace(other, probe=probe(probed_features(other, backbone)))


def relabeled(images: ImageSet, class_names: Sequence[str], *, fewer_ok: bool = False) -> ImageSet:
    """The images with labels that count in ``class_names``.

    Args:
        images: whose classes have the same names, in any order.
        class_names: of a prompt.
        fewer_ok: classes without an image are no fault.

    Raises:
        DatasetInvalid: the classes differ; the error lists how.
    """
    numbers = {name: label for label, name in enumerate(class_names)}
    faults = [
        f"class {name!r} is not one of the prompt's"
        for name in images.class_names
        if name not in numbers
    ]
    if not fewer_ok:
        there = set(images.class_names)
        faults += [
            f"class {name!r} of the prompt has no images"
            for name in class_names
            if name not in there
        ]
    if faults:
        raise DatasetInvalid(
            "The classes of the images are not those of the prompt (rename them with "
            "--class-name OLD=NEW; ask for other classes with --class-names or --new-classes; let "
            "classes be absent with --fewer-classes-ok):",
            faults,
        )
    items = (
        LabeledImage(item.path, numbers[images.class_names[item.label]]) for item in images.items
    )
    return ImageSet(class_names=tuple(class_names), items=tuple(items))
