"""Where the work of a graph really runs: ONNX Runtime may leave single nodes to the CPU.

A session that names CUDA first runs what CUDA has no kernel for on the CPU, and copies to and fro.
For the arithmetic of shapes that is as it should be; for products of matrices it is a service on
the CPU that says CUDA. The int8 graphs of ``export`` are such a case.
"""

from collections import Counter

import onnxruntime as ort

RECORD = "session.record_ep_graph_assignment_info"  # ONNX Runtime tells after it loaded a graph
_HEAVY = ("MatMul", "Gemm", "Conv", "Attention")


def nodes_on_other_providers(session: ort.InferenceSession, provider: str) -> Counter[str]:
    """Operators of products of matrices that another provider than ``provider`` runs.

    Args:
        session: opened with ``RECORD`` set to "1".
        provider: the one that was asked for.

    Returns:
        How many nodes of each operator.
    """
    return Counter(
        str(node.op_type)
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name != provider
        for node in part.get_nodes()
        if any(heavy in node.op_type for heavy in _HEAVY)
    )
