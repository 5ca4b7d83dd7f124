"""Export a backbone's two towers as ONNX graphs (see ``bundle`` for their inputs and outputs).

The image graph of an ``int8`` bundle is the fp32 graph, quantized afterwards (``quantize``). The
image graph of an ``fp16`` bundle is exported from a half-precision copy of the tower.
"""

import copy
from typing import Any, cast

import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prompt_serve.export.attention import with_exported_attention
from prompt_serve.export.quiet import quiet_libraries
from prompt_serve.export.text_encoder import TextEncoder
from prompt_serve.export.vision_transformer import PromptedVitEncoder, RowProjector, VitEncoder
from prompt_serve.training.clip.backbone import Backbone

OPSET = 20  # the first with Gelu as one operator; every onnxruntime since 1.18 runs it


class Normalize(nn.Module):
    """Pixels (B, S, S, 3) uint8 to the image tower's input (B, 3, S, S), normalized.

    Normalizing stays in float32, because rounding would cost most there; the result is ``dtype``.
    """

    def __init__(self, backbone: Backbone, dtype: torch.dtype) -> None:
        super().__init__()
        preprocessing = backbone.preprocessing
        self.dtype = dtype
        self.mean = nn.Buffer(_per_channel(preprocessing.mean, backbone.device))
        self.std = nn.Buffer(_per_channel(preprocessing.std, backbone.device))

    def forward(self, pixels: Tensor) -> Tensor:
        return ((pixels.permute(0, 3, 1, 2).float() - self.mean) / self.std).to(self.dtype)


class OtherEncoder(nn.Module):
    """Image tower other than a plain vision transformer, as open_clip computes it."""

    def __init__(self, tower: nn.Module, normalize: Normalize) -> None:
        super().__init__()
        self.tower, self.normalize = tower, normalize

    def forward(self, pixels: Tensor) -> Tensor:
        return F.normalize(self.tower(self.normalize(pixels)).float(), dim=-1)


def image_graph(backbone: Backbone, dtype: torch.dtype = torch.float32) -> onnx.ModelProto:
    """Export the image tower with pixel normalization, for any number of images.

    With ``dtype`` float16 only the tower is in half precision. Normalizing pixels and scaling
    features to unit length stay in float32, because rounding and overflow would cost most there.
    """
    tower, normalize = _exported(backbone, dtype), Normalize(backbone, dtype)
    return export_graph(
        (VitEncoder if backbone.takes_image_vectors else OtherEncoder)(tower, normalize),
        {"pixels": _pixels(backbone)},
        axes={"pixels": {0: "B"}},
        outputs=("image_features",),
    )


def prompted_image_graph(backbone: Backbone, dtype: torch.dtype = torch.float32) -> onnx.ModelProto:
    """Export the image tower with learned vectors of each image its own (see ``bundle``).

    Raises:
        BackboneUnsupported: the tower takes no vectors.
    """
    tower, device = backbone.image_tower, backbone.device
    images, count, layers = 2, 3, tower.layers
    inputs = {
        "pixels": _pixels(backbone),
        "rows": torch.zeros(images, count, tower.width, device=device),
        "rows_block": torch.zeros(images, dtype=torch.int64, device=device),
        "rows_used": torch.zeros(images, count, dtype=torch.bool, device=device),
        "keys": torch.zeros(layers, images, 5, tower.width, device=device),
        "values": torch.zeros(layers, images, 5, tower.width, device=device),
        "keys_used": torch.zeros(layers, images, 5, dtype=torch.bool, device=device),
    }
    return export_graph(
        PromptedVitEncoder(_exported(backbone, dtype), Normalize(backbone, dtype)),
        inputs,
        axes={
            "pixels": {0: "B"},
            "rows": {0: "B", 1: "M"},
            "rows_block": {0: "B"},
            "rows_used": {0: "B", 1: "M"},
            "keys": {1: "B", 2: "R"},
            "values": {1: "B", 2: "R"},
            "keys_used": {1: "B", 2: "R"},
        },
        outputs=("image_features",),
    )


def row_graph(backbone: Backbone) -> onnx.ModelProto:
    """Export what turns a task's image vectors into inputs of the prompted image graph.

    Raises:
        BackboneUnsupported: the tower takes no vectors.
    """
    tower, device = backbone.image_tower, backbone.device
    return export_graph(
        RowProjector(_exported(backbone, torch.float32)),
        {
            "context": torch.zeros(3, tower.width, device=device),
            "rows": torch.zeros(tower.layers, 5, tower.width, device=device),
        },
        axes={"context": {0: "M"}, "rows": {1: "R"}},
        outputs=("entering", "keys", "values"),
    )


def _exported(backbone: Backbone, dtype: torch.dtype) -> Any:
    visual = backbone.clip.visual
    # ``to`` works in place, so half precision needs a copy of the weights.
    tower = visual if dtype == torch.float32 else copy.deepcopy(visual).to(dtype)
    return with_exported_attention(tower)


def _pixels(backbone: Backbone) -> Tensor:
    """Return example pixels of two images: an axis of size one would be exported as constant."""
    size = backbone.preprocessing.image_size
    return torch.zeros(2, size, size, 3, dtype=torch.uint8, device=backbone.device)


def text_graph(backbone: Backbone) -> onnx.ModelProto:
    """Export the text tower on assembled sequences, for any numbers of classes, rows and tokens."""
    width, device = backbone.token_embedding.shape[1], backbone.device
    layers = backbone.text_tower.layers
    inputs = {
        "prefix": torch.zeros(5, width, device=device),
        "suffix": torch.zeros(3, 7, width, device=device),
        "eot": torch.tensor([6, 4, 5], device=device),
        "deeper": torch.zeros(layers, 5, width, device=device),
        "deeper_used": torch.zeros(layers, 5, dtype=torch.bool, device=device),
        "keys_values": torch.zeros(layers, 4, width, device=device),
        "keys_values_used": torch.zeros(layers, 4, dtype=torch.bool, device=device),
    }
    return export_graph(
        TextEncoder(backbone.text_tower),
        inputs,
        axes={
            "prefix": {0: "P"},
            "suffix": {0: "C", 1: "S"},
            "eot": {0: "C"},
            "deeper": {1: "P"},
            "deeper_used": {1: "P"},
            "keys_values": {1: "K"},
            "keys_values_used": {1: "K"},
        },
        outputs=("class_features",),
    )


def export_graph(
    module: nn.Module,
    inputs: dict[str, Tensor],
    *,
    axes: dict[str, dict[int, str]],
    outputs: tuple[str, ...],
) -> onnx.ModelProto:
    """Export a module as a graph.

    Args:
        module: module whose ``forward`` takes ``inputs`` in their order.
        inputs: example inputs by name; dynamic axes have at least two elements.
        axes: letters of the dynamic axes, by input and axis number.
        outputs: names of the outputs.
    """
    dynamic = {name: dict.fromkeys(named, torch.export.Dim.DYNAMIC) for name, named in axes.items()}
    with quiet_libraries():
        program = torch.onnx.export(
            module.eval(),
            tuple(inputs.values()),
            dynamo=True,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes=dynamic,
            verbose=False,
        )
    model = cast(torch.onnx.ONNXProgram, program).model_proto
    _name_axes(model, axes)
    _forget_origin(model)
    return model


def _name_axes(model: onnx.ModelProto, axes: dict[str, dict[int, str]]) -> None:
    """Rename the dynamic axes from the exporter's ``s62`` to this project's letters."""
    renamed: dict[str, str] = {}
    for value in model.graph.input:
        dims = value.type.tensor_type.shape.dim
        renamed |= {dims[axis].dim_param: letter for axis, letter in axes[value.name].items()}
    del model.graph.value_info[:]  # it has the old names, and is recomputed when needed
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = renamed.get(dim.dim_param, dim.dim_param)


def _forget_origin(model: onnx.ModelProto) -> None:
    """Remove source lines and local paths, so that equal weights give equal files."""
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    for item in (*model.graph.node, *model.graph.input, *model.graph.output):
        del item.metadata_props[:]


def _per_channel(values: tuple[float, float, float], device: torch.device) -> Tensor:
    return (torch.tensor(values, device=device) * 255).view(1, 3, 1, 1)
