"""Match the classes of a prompt and of a dataset by name; split classes into halves."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from prompt_serve.errors import DatasetInvalid, PromptUnsupported
from prompt_serve.image_folders import nfc
from prompt_serve.prompts.encodings import Dense
from prompt_serve.prompts.probe import probe
from prompt_serve.prompts.prompt_file import Prompt, check_class_names
from prompt_serve.training.clip.backbone import Backbone
from prompt_serve.training.data.dataset import ImageSet, Split
from prompt_serve.training.evaluate import probed_features


def half_labels(n_classes: int) -> tuple[range, range]:
    """Return the labels of the base classes (the first half, rounded up) and of the new classes
    (CoCoOp, section 4.1)."""
    m = -(-n_classes // 2)
    return range(m), range(m, n_classes)


def of_labels(images: ImageSet, labels: Sequence[int]) -> ImageSet:
    """Return the images of some classes, relabeled from 0 in the order of ``labels``."""
    new_labels = {label: index for index, label in enumerate(labels)}
    return ImageSet(
        class_names=tuple(images.class_names[label] for label in labels),
        items=tuple(
            replace(item, label=new_labels[item.label])
            for item in images.items
            if item.label in new_labels
        ),
    )


def split_of_labels(split: Split, labels: Sequence[int]) -> Split:
    """Return the images of some classes in each part (see ``of_labels``)."""
    parts = {name: of_labels(part, labels) for name, part in split.parts.items()}
    return replace(split, train=parts["train"], val=parts.get("val"), test=parts.get("test"))


def halves(whole: Split) -> tuple[Split, ImageSet]:
    """Return the base classes, and the test images of the new classes (see ``half_labels``).

    Raises:
        DatasetInvalid: there are no test images.
    """
    base, new = half_labels(len(whole.class_names))
    if whole.test is None:
        raise DatasetInvalid("There are no test images of new classes to test on.")
    return split_of_labels(whole, base), of_labels(whole.test, new)


def with_classes(prompt: Prompt, class_names: Sequence[str], backbone: Backbone) -> Prompt:
    """Return the learned context with other class names, such as classes it was not trained on.

    Metrics, the sketch and the thresholds for unknown images belong to the old classes and are
    dropped; the temperature stays.

    Raises:
        PromptUnsupported: every class has a context of its own.
        PromptFileInvalid: the class names are invalid.
        BackboneMismatch, PromptTooLong: as for the class features.
    """
    if prompt.classes is not None:
        raise PromptUnsupported(
            f"Prompt {prompt.name!r} has class vectors, which were learned from images of its own "
            f"classes and take no other names. Train a prompt to name new classes, for example "
            f"with --method qcoop."
        )
    if isinstance(prompt.text, Dense) and prompt.text.n_classes is not None:
        raise PromptUnsupported(
            f"Prompt {prompt.name!r} has a context of its own for each of its classes, so it "
            f"cannot take others. Train one that all classes share: leave class_specific out."
        )
    names = tuple(class_names)
    check_class_names(names)
    other = replace(
        prompt,
        class_names=names,
        probe=np.zeros(len(names), dtype=np.float16),
        metrics={},
        unknown_below=0.0,
        sketch=None,
        unlike_below=-1.0,
    )
    return replace(other, probe=probe(probed_features(other, backbone)))


def relabeled(images: ImageSet, class_names: Sequence[str], *, fewer_ok: bool = False) -> ImageSet:
    """Return the images with labels that are indices of ``class_names``.

    Args:
        images: images of classes with the same names, in any order and Unicode spelling.
        class_names: of a prompt.
        fewer_ok: allow classes without images.

    Raises:
        DatasetInvalid: the classes differ; the error lists the differences.
    """
    labels = {nfc(name): label for label, name in enumerate(class_names)}
    faults = [
        f"class {name!r} is not one of the prompt's"
        for name in images.class_names
        if nfc(name) not in labels
    ]
    if not fewer_ok:
        present = set(map(nfc, images.class_names))
        faults += [
            f"class {name!r} of the prompt has no images"
            for name in class_names
            if nfc(name) not in present
        ]
    if faults:
        raise DatasetInvalid(
            "The classes of the images differ from those of the prompt (rename them with "
            "--class-name OLD=NEW; evaluate other classes with --class-names or --new-classes; "
            "allow missing classes with --fewer-classes-ok):",
            faults,
        )
    items = (
        replace(item, label=labels[nfc(images.class_names[item.label])]) for item in images.items
    )
    return ImageSet(class_names=tuple(class_names), items=tuple(items))
