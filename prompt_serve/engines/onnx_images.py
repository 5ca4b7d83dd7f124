"""Image encoder of a bundle in ONNX Runtime, without and with learned vectors of its tasks."""

import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import onnxruntime as ort

from prompt_serve.bundle import Bundle
from prompt_serve.engines.batch_sizes import Rows, in_bucket
from prompt_serve.engines.captured_batches import CapturedBatches
from prompt_serve.engines.onnx_session import CPU, Provider, open_session
from prompt_serve.engines.ort_placement import products_by_provider
from prompt_serve.prompts.image_rows import ImageRows, image_inputs, lay_out
from prompt_serve.prompts.prompt_vectors import PromptVectors
from prompt_serve.types import EngineName, FloatArray, PixelArray, Precision


class OnnxImages:
    """Image encoder of a bundle on one execution provider; an ``ImageEngine``.

    Args:
        bundle: an exported backbone.
        provider: runs it.
        name: what the engine is called when it is chosen.
        threads: number of threads of the CPU kernels.
        batch_sizes: sizes that batches are padded to; none on a CPU, where a padded image costs as
            much as a real one.
        captured: provider that captures a CUDA graph for each of ``batch_sizes``, to run images
            without learned vectors; None runs them as all others.

    Raises:
        ProviderUnavailable: the provider does not run.
        BundleInvalid: the graph cannot be loaded.
        RuntimeError: the graph cannot be captured.
    """

    def __init__(
        self,
        bundle: Bundle,
        provider: Provider = CPU,
        *,
        name: EngineName = "onnxruntime",
        threads: int,
        batch_sizes: Sequence[int] = (),
        captured: Provider | None = None,
    ) -> None:
        self.name = name
        self.precision: Precision = bundle.manifest.precision
        self.batch_sizes = batch_sizes
        open_graph = partial(open_session, provider=provider, threads=threads)
        self._session = open_session(bundle.image_encoder, captured or provider, threads=threads)
        self._captured = None if captured is None else self._capture(bundle, captured)
        self.provider = provider.name
        self.prompted = prompted_images(bundle, open_graph, in_steps=bool(batch_sizes))

    @property
    def runtime(self) -> str:
        """ONNX Runtime and its version, and whether batches are captured."""
        graphs = "" if self._captured is None else ", CUDA graphs"
        return f"onnxruntime {ort.__version__}{graphs}"

    @property
    def placement(self) -> Mapping[str, int]:
        """Number of matrix products by execution provider."""
        return products_by_provider(self._session)

    def encode(self, pixels: PixelArray) -> FloatArray:
        """Encode (B, S, S, 3) uint8 pixels to (B, E) image features of unit length."""
        if self._captured is not None:
            return self._captured.encode(pixels)
        return in_bucket(self._run, pixels, (), self.batch_sizes)

    def _run(self, pixels: PixelArray, _: Rows) -> FloatArray:
        (features,) = self._session.run(["image_features"], {"pixels": pixels})
        return np.asarray(features, dtype=np.float32)

    def _capture(self, bundle: Bundle, provider: Provider) -> CapturedBatches:
        return CapturedBatches(
            self._session,
            self.batch_sizes,
            side=bundle.manifest.preprocessing.image_size,
            device_id=provider.options["device_id"],
        )


class PromptedImages:
    """Prompted image graph and row graph of a bundle; a ``PromptedEngine``.

    The sessions are opened when they are first used: a service without such tasks has no second
    copy of the weights in memory.

    Args:
        encoder: prompted image graph.
        rows: row graph.
        layers: L, blocks of the image tower.
        width: D, its width.
        open_graph: opens a session.
        in_steps: round the numbers of rows up, for a device that plans each new shape.
    """

    def __init__(
        self,
        encoder: Path,
        rows: Path,
        *,
        layers: int,
        width: int,
        open_graph: Callable[[Path], ort.InferenceSession],
        in_steps: bool = False,
    ) -> None:
        self._paths = encoder, rows
        self._open = open_graph
        self._sizes = {"layers": layers, "width": width}
        self._in_steps = in_steps
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
        own = image_inputs(rows, **self._sizes, in_steps=self._in_steps)
        (features,) = self._encoder.run(["image_features"], {"pixels": pixels, **own})
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


def prompted_images(
    bundle: Bundle,
    open_graph: Callable[[Path], ort.InferenceSession],
    *,
    in_steps: bool = False,
) -> PromptedImages | None:
    """Return the prompted graphs of a bundle; None if its image tower takes no vectors."""
    size = bundle.manifest.image_tower
    if size is None:
        return None
    return PromptedImages(
        bundle.prompted_image_encoder,
        bundle.image_rows,
        layers=size.layers,
        width=size.width,
        open_graph=open_graph,
        in_steps=in_steps,
    )
