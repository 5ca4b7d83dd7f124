"""``--report`` of ``prompt-serve evaluate`` and ``train``: from scores to the facts of a page."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prompt_serve.cli.output_file import save
from prompt_serve.errors import counted

if TYPE_CHECKING:
    from prompt_serve.evaluation_report.facts import EvaluationFacts
    from prompt_serve.prompts.prompt_file import Prompt
    from prompt_serve.training.clip.backbone import Backbone
    from prompt_serve.training.data.dataset import ImageSet, Split
    from prompt_serve.training.data.image_batches import ImageData
    from prompt_serve.training.without_torch.outcome import TrainingResult


def write_report(
    options: Mapping[str, Any],
    prompt: "Prompt",
    backbone: "Backbone",
    split: "Split",
    part: str,
    images: "ImageSet",
    data: "ImageData",
) -> Path:
    """Write the page of a prompt on the images of a part, with zero-shot for comparison.

    Args:
        options: of the command; "report" and "prompt_file" are read.
        prompt: evaluated prompt.
        backbone: the one it was learned on.
        split: all parts of the dataset.
        part: evaluated part.
        images: its images, with the labels of the prompt.
        data: their features or pixels.

    Returns:
        Where the page is.
    """
    from prompt_serve.evaluation_report.facts import EvaluationFacts
    from prompt_serve.training.evaluate import evaluate_prompt, image_features_of, logits_of
    from prompt_serve.training.results import zero_shot_prompt

    zero_shot = None
    if prompt.encodings:
        zero_shot = evaluate_prompt(zero_shot_prompt(prompt), backbone, data).accuracy
    features = image_features_of(prompt, backbone, data)
    facts = EvaluationFacts.of_prompt(
        prompt,
        part=part,
        labels=data.labels,
        logits=logits_of(prompt, backbone, features),
        paths=[item.path for item in images.items],
        names=[item.name for item in images.items],
        features=features,
        file_bytes=options["prompt_file"].stat().st_size,
        zero_shot_accuracy=zero_shot,
        left_out=_other_parts({name: len(other) for name, other in split.parts.items()}, part),
    )
    return _write(options["report"], facts)


def write_training_report(
    path: Path, result: "TrainingResult", dataset: "Split", file_bytes: int
) -> Path | None:
    """Write the page of a finished prompt.

    Args:
        path: HTML file.
        result: with the scores of held-out images, if there are any.
        dataset: all images.
        file_bytes: size of the prompt file.

    Returns:
        Where the page is; None if no image was held out to measure the accuracy on.
    """
    from prompt_serve.evaluation_report.facts import EvaluationFacts

    scores, prompt = result.scores, result.prompt
    if scores is None:
        return None
    is_cross_validated = scores.part == "cross-validation"
    left_out = _other_parts(result.images, scores.part)
    if is_cross_validated:
        alone = result.images["train"] - len(scores.images)
        left_out = [f"{counted(alone, 'image')}, each the only one of its class."] if alone else []
    not_drawn = sum(map(len, dataset.parts.values())) - sum(result.images.values())
    if not_drawn:
        left_out.append(f"{counted(not_drawn, 'image')} not drawn (--shots).")
    facts = EvaluationFacts.of_prompt(
        prompt,
        part="train (left out in turn)" if is_cross_validated else scores.part,
        labels=scores.labels,
        logits=scores.logits,
        paths=[image.path for image in scores.images],
        names=[image.name for image in scores.images],
        similarities=scores.similarities,
        file_bytes=file_bytes,
        zero_shot_accuracy=result.comparisons[scores.part].zero_shot.accuracy
        if prompt.encodings
        else None,
        notes=result.notes,
        left_out=left_out,
    )
    return _write(path, facts)


def _other_parts(images: Mapping[str, int], part: str) -> list[str]:
    return [
        f"{counted(count, 'image')} of part {name}."
        for name, count in images.items()
        if name != part
    ]


def _write(path: Path, facts: "EvaluationFacts") -> Path:
    from prompt_serve.evaluation_report.page import write_evaluation_report

    return save(path, lambda path: write_evaluation_report(path, facts))
