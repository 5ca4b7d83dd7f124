"""Text encoder of a bundle in ONNX Runtime: float32 in every bundle, on the CPU or on CUDA."""

import numpy as np

from prompt_serve.bundle import Bundle
from prompt_serve.engines.onnx_session import CPU, Provider, open_session
from prompt_serve.prompts.sequences import Sequences
from prompt_serve.prompts.text_inputs import text_inputs
from prompt_serve.types import FloatArray


class TextEncoder:
    """Text encoder of a bundle. Thread-safe, as ONNX Runtime's sessions are.

    Args:
        bundle: an exported backbone.
        provider: runs it.
        threads: number of threads of the CPU kernels.

    Raises:
        ProviderUnavailable: the provider does not run.
        BundleInvalid: the graph cannot be loaded.
    """

    def __init__(self, bundle: Bundle, provider: Provider = CPU, *, threads: int) -> None:
        self._layers = bundle.manifest.text_layers
        self._session = open_session(bundle.text_encoder, provider, threads=threads)
        self.provider = provider.name

    def encode(self, sequences: Sequences) -> FloatArray:
        """Encode the assembled sequences of C classes to (C, E) features of unit length.

        Raises:
            PromptFileInvalid: the sequences have vectors for a different number of blocks.
        """
        inputs = text_inputs(sequences, self._layers)
        (features,) = self._session.run(["class_features"], inputs)
        return np.asarray(features, dtype=np.float32)
