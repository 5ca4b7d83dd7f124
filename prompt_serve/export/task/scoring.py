"""Scoring of a task as nodes behind an image encoder, equal to ``prompt_serve.scoring``.

An image of a single-label task has one class:

    label          (B,) string     name of the most probable class
    probabilities  (B, C)          softmax over the classes
    unknown        (B,) bool       the image shows none of the classes

An image of a multi-label task has any number of labels:

    labels         (B, C) bool     probability from the label's threshold on
    probabilities  (B, C)          one sigmoid per label
    unknown        (B,) bool       the image is unlike the training images

Both have two more outputs: ``class_names`` (C,) string, because a browser does not show a model's
metadata, and ``image_features`` (B, E).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from prompt_serve.tasks.task import Task
from prompt_serve.types import FloatArray


def append_scoring(model: onnx.ModelProto, task: Task, logit_scale: float) -> None:
    """Append the scoring of a task to an encoder with the output ``image_features`` (B, E)."""
    graph = _Nodes(model.graph)
    logits = graph.add(
        "Mul",
        graph.add("MatMul", "image_features", graph.constant(task.class_features.T)),
        graph.constant(np.float32(logit_scale)),
    )  # (B, C)
    c = len(task.class_names)
    names = graph.constant(np.array(task.class_names, dtype=object))
    if task.label_scores is None:
        weights = graph.add("Div", logits, graph.constant(np.float32(task.temperature)))
        probabilities = graph.add("Softmax", weights, out="probabilities", axis=1)
        best = graph.add("ArgMax", logits, axis=1, keepdims=0)  # of equal ones the first
        graph.add("Gather", names, best, out="label")
        highest = graph.add("ReduceMax", probabilities, graph.constant(np.array([1])), keepdims=0)
        unsure = graph.add("Less", highest, graph.constant(np.float32(task.unknown_below)))
        graph.output("label", TensorProto.STRING, ["B"])
    else:
        scores = task.label_scores
        cosines = graph.add("Div", logits, graph.constant(np.float32(logit_scale)))
        log_odds = graph.add(
            "Add",
            graph.add("Mul", cosines, graph.constant(scores.slopes)),
            graph.constant(scores.offsets),
        )
        # As in ``scoring.sigmoid``: 0.5 (1 + tanh(x / 2)).
        half = graph.constant(np.float32(0.5))
        curve = graph.add("Tanh", graph.add("Mul", log_odds, half))
        raised = graph.add("Add", curve, graph.constant(np.float32(1)))
        probabilities = graph.add("Mul", raised, half, out="probabilities")
        graph.add("GreaterOrEqual", probabilities, graph.constant(scores.thresholds), out="labels")
        never = graph.constant(np.array([-np.inf], dtype=np.float32))
        highest = graph.add("ReduceMax", probabilities, graph.constant(np.array([1])), keepdims=0)
        unsure = graph.add("Less", highest, never)  # (B,) False
        graph.output("labels", TensorProto.BOOL, ["B", c])
    unlike = _unlike(graph, task)
    graph.add("Or", unsure, unlike or unsure, out="unknown")
    graph.output("probabilities", TensorProto.FLOAT, ["B", c])
    graph.output("unknown", TensorProto.BOOL, ["B"])
    graph.add("Identity", names, out="class_names")
    graph.output("class_names", TensorProto.STRING, [c])
    # In this order, with the features last.
    features, *rest = model.graph.output
    ordered = [*rest, features]
    kept = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in ordered]
    del model.graph.output[:]
    model.graph.output.extend(kept)


def _unlike(graph: "_Nodes", task: Task) -> str | None:
    """Add whether images are unlike the training images (B,); None without a sketch."""
    if task.sketch is None:
        return None
    cosines = graph.add("MatMul", "image_features", graph.constant(task.sketch.T))
    nearest = graph.add("ReduceMax", cosines, graph.constant(np.array([1])), keepdims=0)
    return graph.add("Less", nearest, graph.constant(_at_least(task.unlike_below)))


def _at_least(threshold: float) -> np.float32:
    """Return the smallest float32 not below a threshold: no float32 lies between the two."""
    rounded = np.float32(threshold)
    return rounded if rounded >= threshold else np.nextafter(rounded, np.float32(np.inf))


class _Nodes:
    """Nodes at the end of a graph, with names of their own."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph
        self._count = 0

    def add(self, op: str, *inputs: str, out: str | None = None, **attributes: Any) -> str:
        """Append a node and return the name of its output."""
        name = out or self._name()
        self._graph.node.append(helper.make_node(op, inputs, [name], **attributes))
        return name

    def constant(self, value: "FloatArray | NDArray[np.generic] | np.float32") -> str:
        name = self._name()
        array = np.ascontiguousarray(value) if np.ndim(value) else np.asarray(value)
        self._graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    def output(self, name: str, kind: int, shape: Sequence[str | int]) -> None:
        self._graph.output.append(helper.make_tensor_value_info(name, kind, shape))

    def _name(self) -> str:
        self._count += 1
        return f"task.score.{self._count}"
