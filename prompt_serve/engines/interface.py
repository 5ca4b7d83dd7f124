"""Interface of what runs an image encoder: pixels in, image features out.

    onnx_images      ONNX Runtime, on the CPU; with ``onnx_cuda`` and ``onnx_tensorrt`` on CUDA
    openvino_images  OpenVINO, on the CPU

An engine runs on the requested device and in the requested precision, or cannot be opened: there is
no silent fallback. Everything else (padding, batches in which some images have vectors, warm-up) is
the same for all of them: ``ImageEncoder``.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

from prompt_serve.prompts.image_rows import ImageRows
from prompt_serve.prompts.prompt_vectors import PromptVectors
from prompt_serve.types import EngineName, FloatArray, PixelArray, Precision


class PromptedEngine(Protocol):
    """Image encoder that takes the learned vectors of each image's task. Thread-safe."""

    def lay_out(self, vectors: PromptVectors[FloatArray]) -> ImageRows | None:
        """Project the folded image branch of a prompt; None if there is none.

        Raises:
            PromptFileInvalid: the vectors are for another tower.
            BundleInvalid, ProviderUnavailable: the graph cannot be opened.
        """

    def encode(self, pixels: PixelArray, rows: Sequence[ImageRows | None]) -> FloatArray:
        """Encode (B, S, S, 3) uint8 pixels, each with the rows of its task, to (B, E) features.

        Raises:
            BundleInvalid, ProviderUnavailable: the graph cannot be opened.
        """


class ImageEngine(Protocol):
    """Image encoder of a bundle, opened on one device. Thread-safe."""

    @property
    def name(self) -> EngineName:
        """What it is called when it is chosen."""

    @property
    def runtime(self) -> str:
        """The library and its version."""

    @property
    def precision(self) -> Precision:
        """Precision of its matrix products."""

    @property
    def provider(self) -> str:
        """Device that runs it, in the library's words."""

    @property
    def placement(self) -> Mapping[str, int]:
        """Number of matrix products by what runs them: the proof that nothing fell back."""

    @property
    def batch_sizes(self) -> Sequence[int]:
        """Batch sizes to warm up, ascending: ``encode`` pads to them; none: any size is as good."""

    @property
    def prompted(self) -> PromptedEngine | None:
        """The encoder that takes learned vectors; None if this image tower takes none."""

    def encode(self, pixels: PixelArray) -> FloatArray:
        """Encode (B, S, S, 3) uint8 pixels to (B, E) image features of unit length."""
