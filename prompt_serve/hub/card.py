"""Model card of a prompt file: metadata that the Hub reads, and what a user has to know.

Everything in a prompt file is text of its author: it is escaped, so that it is shown as it is.
"""

import re
import shlex
from collections.abc import Iterable, Mapping
from typing import Any

from prompt_serve.errors import counted
from prompt_serve.evaluation_report.markup import printable
from prompt_serve.prompts.prompt_file import Prompt

# Of a card that was written here. A card without it belongs to its author and is kept.
GENERATED = "<!-- Written by prompt-serve push; without this line, the page is kept as it is. -->"
CLASSES_SHOWN = 200
# Shares that training measures, by their names in a prompt file.
_MEASURES = {
    "accuracy": "accuracy",
    "zero_shot_accuracy": "zero-shot accuracy",
    "calibration_error": "calibration error",
    "mean_average_precision": "mean average precision",
    "micro_f1": "micro F1",
    "macro_f1": "macro F1",
}
_PLAIN = re.compile(r"[\w./:+@ -]+", re.ASCII)
_MARKUP = frozenset("&<>\"'|`*_[](){}#~$!\\^:@")


def model_card(
    prompt: Prompt,
    *,
    file_name: str,
    file_bytes: int,
    version: str,
    repo_id: str,
    base_model: str | None = None,
    license_id: str | None = None,
) -> str:
    """Return the text of README.md.

    Args:
        prompt: content of the file.
        file_name: of the file in the repository.
        file_bytes: its size.
        version: its sha256.
        repo_id: repository, ``user/name``.
        base_model: repository of the backbone on the Hub; None if it has none.
        license_id: as the Hub names it, such as ``apache-2.0``.
    """
    metadata = _metadata(prompt, base_model, license_id)
    return f"---\n{metadata}\n---\n\n{GENERATED}\n\n" + "\n\n".join(
        [
            f"# {escaped(prompt.name)}",
            _summary(prompt),
            f"## Use\n\n{_use(prompt, file_name, repo_id)}",
            f"## Classes\n\n{_classes(prompt)}",
            *_measured(prompt.metrics),
            f"## File\n\n{_facts(prompt, file_name, file_bytes, version)}\n",
        ]
    )


def escaped(text: str) -> str:
    """Return Markdown that shows a text as it is, on one line."""
    return "".join(
        f"&#{ord(character)};" if character in _MARKUP else character
        for character in printable(" ".join(text.split()))
    )


def _metadata(prompt: Prompt, base_model: str | None, license_id: str | None) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    measured = [
        EvalResult(
            task_type="image-classification",
            dataset_type="private",
            dataset_name=prompt.name,
            dataset_split=part,
            metric_type=measure,
            metric_value=share,
        )
        for part, shares in _parts(prompt.metrics).items()
        for measure, share in shares.items()
        if measure in ("accuracy", "mean_average_precision")
    ]
    # Class vectors know their classes only; a prompt takes any names.
    fixed = prompt.classes is not None
    data = ModelCardData(
        base_model=base_model,
        license=license_id,
        library_name="prompt-serve",
        tags=["prompt-serve", "clip", "prompt-learning", prompt.method],
        pipeline_tag="image-classification" if fixed else "zero-shot-image-classification",
        model_name=prompt.name or "prompt",
        metrics=list(dict.fromkeys(result.metric_type for result in measured)) or None,
        eval_results=measured or None,
    )
    return data.to_yaml()


def _parts(metrics: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Return the known measures of each part; a prompt file may hold anything else as well."""
    found = {
        part: {
            measure: float(values[measure])
            for measure in _MEASURES
            if _is_share(values.get(measure))
        }
        for part, values in metrics.items()
        if isinstance(values, dict)
    }
    return {part: shares for part, shares in found.items() if shares}


def _is_share(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def _summary(prompt: Prompt) -> str:
    count = len(prompt.class_names)
    kind = counted(count, "independent label") if prompt.multi_label else counted(count, "class")
    return (
        f"A task of prompt-serve with {kind}, learned by the method {escaped(prompt.method)} on "
        f"the frozen CLIP {escaped(prompt.backbone.id)}. The file holds "
        f"{counted(prompt.learned_numbers, 'learned number')}, and no weights of the CLIP."
    )


def _use(prompt: Prompt, file_name: str, repo_id: str) -> str:
    from prompt_serve.bundle import SHIPPED

    shipped = prompt.backbone.id in SHIPPED
    bundle = "" if shipped else ', bundle="bundles/backbone"'
    # In a block of code nothing can be escaped.
    backbone = prompt.backbone.id if _PLAIN.fullmatch(prompt.backbone.id) else "BACKBONE"
    export = shlex.join(["prompt-serve", "export", backbone, "-o", "bundles/backbone"])
    lines = [
        "```sh",
        "pip install 'prompt-serve[serve,hub]'",
        *([] if shipped else [f"{export}  # needs prompt-serve[train], once"]),
        f"{shlex.join(['prompt-serve', 'pull', repo_id, '--file', file_name])}",
        "```",
        "",
        "```python",
        "import prompt_serve",
        "",
        f'model = prompt_serve.load("{file_name}"{bundle})',
        'print(model.predict("image.jpg").class_name)',
        "```",
    ]
    return "\n".join(lines)


def _classes(prompt: Prompt) -> str:
    shown = ", ".join(map(escaped, prompt.class_names[:CLASSES_SHOWN]))
    more = len(prompt.class_names) - CLASSES_SHOWN
    rest = f", and {more:,} more" if more > 0 else ""
    return f"{len(prompt.class_names):,}: {shown}{rest}"


def _measured(metrics: Mapping[str, Any]) -> Iterable[str]:
    parts = _parts(metrics)
    if not parts:
        return
    columns = [name for name in _MEASURES if any(name in shares for shares in parts.values())]
    head = ["images", *(_MEASURES[name] for name in columns)]
    rows = [
        [escaped(part), *(f"{shares[name]:.1%}" if name in shares else "" for name in columns)]
        for part, shares in parts.items()
    ]
    table = [head, ["---"] * len(head), *rows]
    lines = "\n".join(f"| {' | '.join(cells)} |" for cells in table)
    yield f"## Measured at training\n\n{lines}"


def _facts(prompt: Prompt, file_name: str, file_bytes: int, version: str) -> str:
    facts = {
        "file": f"`{file_name}`, {counted(file_bytes, 'byte')}",
        "sha256": f"`{version}`",
        "backbone": escaped(prompt.backbone.id),
        "fingerprint": f"`{prompt.backbone.fingerprint}`",
        "templates": ", ".join(map(escaped, prompt.templates)),
        "unknown images": _unknown(prompt),
        "written by": escaped(f"prompt-serve {prompt.tool_version}"),
    }
    lines = [f"| {name} | {value} |" for name, value in facts.items()]
    return "\n".join(["| | |", "|---|---|", *lines])


def _unknown(prompt: Prompt) -> str:
    rules = []
    if prompt.unknown_below:
        rules.append(f"best probability below {prompt.unknown_below:.3g}")
    if prompt.sketch is not None:
        rules.append(f"cosine to the training images below {prompt.unlike_below:.3g}")
    return ", or ".join(rules) or "not recognized"
