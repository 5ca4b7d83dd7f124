"""Operations per second of one large matrix product on all cores, by the clock of an idle machine.

Of the libraries that are at hand, the fastest counts: for float32 ONNX Runtime is twice as fast as
torch on some processors.
"""

import time
from collections.abc import Callable
from functools import partial

import numpy as np
import onnxruntime as ort
import torch
from onnx import TensorProto, helper

from benchmarks.encoder_speed import ROWS, WIDTH

SHAPES = ((ROWS, WIDTH), (WIDTH, 4 * WIDTH))
TRIES = 40


def product_peak(precision: str) -> float:
    """Return the operations per second in ``fp32``, ``bf16`` or ``int8``."""
    return 8 * ROWS * WIDTH**2 / min(map(best_seconds, products(precision)))


def products(precision: str) -> list[Callable[[], object]]:
    if precision == "int8":
        a, b = (torch.randint(-64, 64, shape, dtype=torch.int8) for shape in SHAPES)
        return [partial(torch._int_mm, a, b)]
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    a, b = (torch.randn(shape).to(dtype) for shape in SHAPES)
    found: list[Callable[[], object]] = [partial(torch.mm, a, b)]
    return [*found, onnx_product()] if precision == "fp32" else found


def onnx_product() -> Callable[[], object]:
    a, b = (np.random.default_rng(0).random(shape, dtype=np.float32) for shape in SHAPES)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["a", "b"], ["c"])],
        "product",
        [helper.make_tensor_value_info("a", TensorProto.FLOAT, a.shape)],
        [helper.make_tensor_value_info("c", TensorProto.FLOAT, [ROWS, 4 * WIDTH])],
        [helper.make_tensor("b", TensorProto.FLOAT, b.shape, b.tobytes(), raw=True)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return partial(session.run, None, {"a": a})


def best_seconds(work: Callable[[], object]) -> float:
    seconds = []
    for _ in range(TRIES):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return min(seconds)
