"""``prompt-serve inspect``: show the contents of a prompt file, as text or JSON."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from prompt_serve.cli.facts import json_option, print_document, to_the_second
from prompt_serve.cli.learning.inspect_metrics import metric_lines
from prompt_serve.cli.user_path import DASH, UserPath, read_input
from prompt_serve.errors import counted

if TYPE_CHECKING:
    from prompt_serve.prompts.encodings import StoredEncoding
    from prompt_serve.prompts.prompt_file import Prompt

NAMES_SHOWN = 12


@click.command()
@click.argument("file", type=UserPath(dash=True))
@json_option
def inspect(file: Path, as_json: bool) -> None:
    """Show the classes, backbone, learned tensors, settings and accuracy of a prompt file.

    The whole file is validated. FILE may be - for standard input.

    \b
    prompt-serve inspect flowers.safetensors
    """
    from prompt_serve.prompts.prompt_file import from_bytes, read_prompt_file

    data = read_input(file) if file == DASH else None
    prompt = read_prompt_file(file) if data is None else from_bytes(data)
    data = file.read_bytes() if data is None else data
    description = describe(prompt, data)
    if as_json:
        print_document(description)
    else:
        click.echo("\n".join(_lines(description)))


def describe(prompt: "Prompt", data: bytes) -> dict[str, Any]:
    """Return the contents of a prompt file without the learned numbers, as JSON types."""
    from prompt_serve.prompts.prompt_file import thresholds_of, version_of
    from prompt_serve.signing.signature import signature_of

    signature = signature_of(data)
    return {
        "name": prompt.name,
        "version": version_of(data),
        "method": prompt.method,
        "backbone": prompt.backbone.model_dump(mode="json"),
        "class_names": list(prompt.class_names),
        "templates": list(prompt.templates),
        "class_position": prompt.class_position,
        "encodings": {branch: _encoding(encoding) for branch, encoding in prompt.encodings.items()},
        "tensors": {name: _tensor(tensor) for name, tensor in prompt.tensors.items()},
        "temperature": prompt.temperature,
        "unknown_below": prompt.unknown_below,
        "unlike_below": None if prompt.sketch is None else prompt.unlike_below,
        "multi_label": prompt.multi_label,
        "thresholds": thresholds_of(prompt),
        "takes_new_names": prompt.classes is None,
        "prompts_images": prompt.image is not None,
        "learned_numbers": prompt.learned_numbers,
        "payload_bytes": prompt.payload_bytes,
        "file_bytes": len(data),
        "training": dict(prompt.training),
        "metrics": dict(prompt.metrics),
        "created": prompt.created,
        "signed_by": signature and signature.key_id,
        "tool_version": prompt.tool_version,
    }


def _encoding(encoding: "StoredEncoding") -> dict[str, Any]:
    from prompt_serve.prompts.encodings import Deep, Projected, PrunedKeyValues
    from prompt_serve.prompts.encodings import describe as kind_of

    described: dict[str, Any] = {"kind": kind_of(encoding), "options": encoding.options()}
    if isinstance(encoding, Deep | Projected):
        described["blocks"] = len(encoding.layers)
    if isinstance(encoding, PrunedKeyValues):
        described["rows_by_block"] = encoding.lengths.tolist()
    return described


def _tensor(tensor: Any) -> dict[str, Any]:
    from prompt_serve.prompts.quantized_tensor import QuantizedTensor

    kind = f"{tensor.bits}-bit codes" if isinstance(tensor, QuantizedTensor) else str(tensor.dtype)
    return {"dtype": kind, "shape": list(tensor.shape), "bytes": tensor.nbytes}


def _lines(description: Mapping[str, Any]) -> Iterable[str]:
    backbone = description["backbone"]
    yield f"{'name':<16} {description['name']}"
    yield f"{'version':<16} {description['version']}"
    yield f"{'method':<16} {description['method']}"
    yield f"{'backbone':<16} {backbone['id']}"
    yield f"{'  fingerprint':<16} {backbone['fingerprint']}"
    yield (
        f"{'  sizes':<16} text width {backbone['text_width']}, embedding {backbone['embed_dim']}, "
        f"{backbone['context_length']} tokens"
    )
    yield f"{'classes':<16} {_shortened(description['class_names'])}"
    for template in description["templates"]:
        yield f"{'template':<16} {template!r}, class name at the {description['class_position']}"
    for branch, encoding in description["encodings"].items():
        yield f"{f'{branch} branch':<16} {', '.join(_encoding_parts(encoding))}"
    if not description["encodings"]:
        yield f"{'learned':<16} none"
    yield from _tensor_lines(description["tensors"])
    yield f"{'learned numbers':<16} {description['learned_numbers']:,}"
    yield f"{'temperature':<16} {description['temperature']:.4g}"
    if description["unknown_below"]:
        yield f"{'unknown below':<16} {description['unknown_below']:.4g}"
    if description["unlike_below"] is not None:
        yield f"{'unlike below':<16} {description['unlike_below']:.4g} (cosine to the sketch)"
    if description["multi_label"]:
        low, high = min(description["thresholds"]), max(description["thresholds"])
        yield f"{'labels':<16} independent, each from a probability of {low:.2f} to {high:.2f} on"
    if not description["takes_new_names"]:
        yield f"{'new names':<16} none: class vectors know the classes they were learned from"
    yield f"{'serving':<16} {_serving(description)}"
    yield f"{'payload':<16} {counted(description['payload_bytes'], 'byte')}"
    yield f"{'file':<16} {counted(description['file_bytes'], 'byte')}"
    yield from _table("training", description["training"])
    measured, others = metric_lines(description["metrics"], description["class_names"])
    yield from _table("metrics", others) if others or not measured else ["metrics"]
    yield from measured
    yield f"{'created':<16} {to_the_second(description['created'] or 'not recorded')}"
    yield f"{'signed by':<16} {description['signed_by'] or 'nobody'}"
    yield f"{'written by':<16} prompt-serve {description['tool_version'] or '(unknown version)'}"


def _encoding_parts(encoding: Mapping[str, Any]) -> Iterable[str]:
    yield encoding["kind"]
    if "blocks" in encoding:
        yield counted(encoding["blocks"], "block")
    layers = encoding["options"].get("layers")
    # Only the first block of a deep context can have the template as its base.
    first = layers[0]["options"] if isinstance(layers, list) else encoding["options"]
    if "base" in first:
        yield f"base {first['base']}"
    if "rows_by_block" in encoding:
        yield f"rows per block {' '.join(map(str, encoding['rows_by_block']))}"


def _serving(description: Mapping[str, Any]) -> str:
    """Say what an image costs that is classified by the task."""
    if description["prompts_images"]:
        return (
            "one pass through the image encoder per image for this task alone; on plain vision "
            "transformers only"
        )
    kinds = [encoding["kind"] for encoding in description["encodings"].values()]
    if "conditional" in kinds:
        return "not possible: every image has class features of its own"
    return "shares the pass of an image through the image encoder with other tasks"


def _tensor_lines(tensors: Mapping[str, Mapping[str, Any]]) -> Iterable[str]:
    """Yield one line per tensor; tensors that differ only in their block share a line."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for name, tensor in tensors.items():
        branch, block, own = name.split(".") if name.count(".") == 2 else (name, "", "")
        shape = " x ".join(map(str, tensor["shape"]))
        shape_and_size = f"{shape} {tensor['dtype']}, {counted(tensor['bytes'], 'byte')}"
        alike.setdefault((branch, own, shape_and_size), []).append(block)
    for (branch, own, shape_and_size), blocks in alike.items():
        if blocks == [""]:
            yield f"{'  ' + branch:<16} {shape_and_size}"
            continue
        consecutive = len(blocks) > 1 and int(blocks[-1]) - int(blocks[0]) == len(blocks) - 1
        block_range = f"{blocks[0]}-{blocks[-1]}" if consecutive else ",".join(blocks)
        each = f" each, {len(blocks)} tensors" if len(blocks) > 1 else ""
        yield f"{f'  {branch}.{block_range}.{own}':<16} {shape_and_size}{each}"


def _table(title: str, values: Mapping[str, Any]) -> Iterable[str]:
    yield title if values else f"{title:<16} none"
    for key, value in values.items():
        if isinstance(value, Mapping):
            inner = ", ".join(f"{k} {_plain(v)}" for k, v in value.items())
            yield f"  {key:<14} {inner}"
        else:
            yield f"  {key:<14} {_plain(value)}"


def _plain(value: object) -> str:
    if isinstance(value, list):
        return f"[{_shortened(value)}]" if value else "[]"
    return json.dumps(value, ensure_ascii=False)


def _shortened(values: list[Any]) -> str:
    shown = ", ".join(str(value) for value in values[:NAMES_SHOWN])
    rest = len(values) - NAMES_SHOWN
    return f"{len(values):,}: {shown}" + (f", ... and {rest:,} more" if rest > 0 else "")
