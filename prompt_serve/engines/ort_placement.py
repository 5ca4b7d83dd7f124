"""Execution provider of each graph node: ONNX Runtime may leave single nodes to the CPU.

A session opened for CUDA runs the nodes without a CUDA kernel on the CPU and copies their inputs
and outputs. That is fine for shape arithmetic. With matrix products it would be a CPU service that
calls itself CUDA; the int8 graphs of ``export`` are such a case.
"""

from collections import Counter
from collections.abc import Iterator

import onnxruntime as ort

# Session option: keep the assignment of nodes to providers after loading.
RECORD_ASSIGNMENT = "session.record_ep_graph_assignment_info"
_MATRIX_PRODUCTS = ("MatMul", "Gemm", "Conv", "Attention")


def nodes_on_other_providers(session: ort.InferenceSession, *providers: str) -> Counter[str]:
    """Count the matrix products that run on none of ``providers``, by operator.

    Args:
        session: opened with ``RECORD_ASSIGNMENT`` set to "1".
        providers: the requested execution providers.
    """
    return Counter(op for provider, op in _products(session) if provider not in providers)


def products_by_provider(session: ort.InferenceSession) -> Counter[str]:
    """Count the matrix products of a session, opened as above, by execution provider."""
    return Counter(provider for provider, _ in _products(session))


def _products(session: ort.InferenceSession) -> Iterator[tuple[str, str]]:
    """Generate the execution provider and the operator of every matrix product."""
    for part in session.get_provider_graph_assignment_info():
        for node in part.get_nodes():
            if any(product in node.op_type for product in _MATRIX_PRODUCTS):
                yield str(part.ep_name), str(node.op_type)
