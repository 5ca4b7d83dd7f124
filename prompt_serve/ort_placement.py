"""Execution provider of each graph node: ONNX Runtime may leave single nodes to the CPU.

A session opened for CUDA runs the nodes without a CUDA kernel on the CPU and copies their inputs
and outputs. That is fine for shape arithmetic. With matrix products it would be a CPU service that
calls itself CUDA; the int8 graphs of ``export`` are such a case.
"""

from collections import Counter

import onnxruntime as ort

# Session option: keep the assignment of nodes to providers after loading.
RECORD_ASSIGNMENT = "session.record_ep_graph_assignment_info"
_MATRIX_PRODUCTS = ("MatMul", "Gemm", "Conv", "Attention")


def nodes_on_other_providers(session: ort.InferenceSession, provider: str) -> Counter[str]:
    """Count the matrix products that do not run on ``provider``, by operator.

    Args:
        session: opened with ``RECORD_ASSIGNMENT`` set to "1".
        provider: the requested execution provider.
    """
    return Counter(
        str(node.op_type)
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name != provider
        for node in part.get_nodes()
        if any(product in node.op_type for product in _MATRIX_PRODUCTS)
    )
