"""Run the image encoder that takes learned vectors (see ``bundle``), opened when first needed."""

import threading
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import onnxruntime as ort

from prompt_serve.prompts.image_rows import ImageRows, image_inputs, lay_out
from prompt_serve.prompts.prompt_vectors import PromptVectors
from prompt_serve.types import FloatArray, PixelArray


class PromptedImages:
    """Prompted image graph and row graph of a bundle. Thread-safe.

    The sessions are opened when they are first used: a service without such tasks has no second
    copy of the weights in memory.

    Args:
        encoder: prompted image graph.
        rows: row graph.
        layers: L, blocks of the image tower.
        width: D, its width.
        open_graph: opens a session.
    """

    def __init__(
        self,
        encoder: Path,
        rows: Path,
        *,
        layers: int,
        width: int,
        open_graph: Callable[[Path], ort.InferenceSession],
    ) -> None:
        self._paths = encoder, rows
        self._open = open_graph
        self._sizes = {"layers": layers, "width": width}
        self._lock = threading.Lock()

    def lay_out(self, vectors: PromptVectors[FloatArray]) -> ImageRows | None:
        """Project the folded image branch of a prompt; None if there is none.

        Raises:
            PromptFileInvalid: the vectors are for another tower.
            BundleInvalid, ProviderUnavailable: the graph cannot be opened.
        """
        if vectors.context is None and not vectors.keys_values:
            return None
        return lay_out(vectors, **self._sizes, project=self._project)

    def encode(self, pixels: PixelArray, rows: Sequence[ImageRows | None]) -> FloatArray:
        """Encode (B, S, S, 3) uint8 pixels, each with the rows of its task, to (B, E) features.

        Raises:
            BundleInvalid, ProviderUnavailable: the graph cannot be opened.
        """
        inputs = {"pixels": pixels, **image_inputs(rows, **self._sizes)}
        (features,) = self._encoder.run(["image_features"], inputs)
        return np.asarray(features, dtype=np.float32)

    def _project(
        self, context: FloatArray, rows: FloatArray
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        entering, keys, values = self._rows.run(
            ["entering", "keys", "values"], {"context": context, "rows": rows}
        )
        return entering, keys, values

    @property
    def _encoder(self) -> ort.InferenceSession:
        with self._lock:
            return self._encoder_session

    @property
    def _rows(self) -> ort.InferenceSession:
        with self._lock:
            return self._rows_session

    @cached_property
    def _encoder_session(self) -> ort.InferenceSession:
        return self._open(self._paths[0])

    @cached_property
    def _rows_session(self) -> ort.InferenceSession:
        return self._open(self._paths[1])
