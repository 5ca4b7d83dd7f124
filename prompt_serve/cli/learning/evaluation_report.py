"""``prompt-serve evaluate --report``: from an evaluation to the facts of its page."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prompt_serve.cli.output_file import save

if TYPE_CHECKING:
    from prompt_serve.prompts.prompt_file import Prompt
    from prompt_serve.training.clip.backbone import Backbone
    from prompt_serve.training.data.dataset import ImageSet, Split
    from prompt_serve.training.data.image_batches import ImageData


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
    from prompt_serve.evaluation_report.page import write_evaluation_report
    from prompt_serve.training.data.features import FeatureSet
    from prompt_serve.training.evaluate import evaluate_prompt, prompt_logits
    from prompt_serve.training.results import zero_shot_prompt

    zero_shot = None
    if prompt.encodings:
        zero_shot = evaluate_prompt(zero_shot_prompt(prompt), backbone, data).accuracy
    facts = EvaluationFacts.of_prompt(
        prompt,
        part=part,
        labels=data.labels,
        logits=prompt_logits(prompt, backbone, data),
        paths=[item.path for item in images.items],
        features=data.plain if isinstance(data, FeatureSet) else None,
        file_bytes=options["prompt_file"].stat().st_size,
        zero_shot_accuracy=zero_shot,
        left_out=[
            f"{len(other):,} images of part {name}."
            for name, other in split.parts.items()
            if name != part
        ],
    )
    return save(options["report"], lambda path: write_evaluation_report(path, facts))
