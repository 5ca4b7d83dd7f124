"""Both encoders of a bundle on one device: for the service, to learn from, and to score."""

from collections.abc import Callable, Sequence

from prompt_serve.bundle import Bundle
from prompt_serve.engines.choice import Chosen, choose_engine
from prompt_serve.engines.image_encoder import ImageEncoder
from prompt_serve.engines.interface import PromptedEngine
from prompt_serve.engines.onnx_cuda import cuda
from prompt_serve.engines.onnx_session import CPU
from prompt_serve.engines.onnx_text import TextEncoder
from prompt_serve.preprocess import Preprocessing
from prompt_serve.prompts.image_rows import ImageRows
from prompt_serve.prompts.sequences import Sequences
from prompt_serve.types import BackboneRef, EngineName, FloatArray, PixelArray

CPU_BATCH, CUDA_BATCH = 8, 32  # images
OpenText = Callable[[Callable[[], TextEncoder]], TextEncoder]


def default_batch(cuda_device: int | None) -> int:
    """Return the images per batch that reach the full throughput of a device."""
    return CPU_BATCH if cuda_device is None else CUDA_BATCH


class Encoders:
    """Both encoders of a bundle. Thread-safe.

    Args:
        bundle: an exported backbone.
        images: its image encoder.
        text: its text encoder.
        batch_size: images to encode at once where speed counts, not the delay of one.
        chosen: why the image encoder's engine was chosen.
    """

    def __init__(
        self,
        bundle: Bundle,
        images: ImageEncoder,
        text: TextEncoder,
        *,
        batch_size: int,
        chosen: Chosen,
    ) -> None:
        self.bundle, self.images, self.text = bundle, images, text
        self.batch_size, self.chosen = batch_size, chosen

    @classmethod
    def open(
        cls,
        bundle: Bundle,
        *,
        cuda_device: int | None,
        threads: int,
        engine: EngineName | None = "onnxruntime",
        max_batch: int | None = None,
        open_text: OpenText = lambda open_it: open_it(),
    ) -> "Encoders":
        """Open both encoders on one device.

        Args:
            bundle: an exported backbone.
            cuda_device: index of a CUDA device; None runs on the CPU.
            threads: number of threads of the CPU kernels.
            engine: runs the image encoder; None chooses the fastest. The text encoder always runs
                in ONNX Runtime.
            max_batch: maximum number of images per call; None: ``default_batch``.
            open_text: opens the text encoder by calling its argument, in a thread of its choice.

        Raises:
            ProviderUnavailable: the engine cannot run this bundle on this device.
            DependencyMissing: the engine is not installed.
            BundleInvalid: the graphs cannot be loaded.
        """
        max_batch = max_batch or default_batch(cuda_device)
        chosen = choose_engine(
            bundle,
            engine,
            cuda_device=cuda_device,
            threads=threads,
            max_batch=max_batch,
        )
        provider = CPU if cuda_device is None else cuda(cuda_device)
        return cls(
            bundle,
            ImageEncoder(bundle, chosen.engine, max_batch=max_batch),
            open_text(lambda: TextEncoder(bundle, provider, threads=threads)),
            batch_size=max_batch,
            chosen=chosen,
        )

    @property
    def ref(self) -> BackboneRef:
        """The backbone."""
        return self.bundle.manifest.backbone

    @property
    def preprocessing(self) -> Preprocessing:
        """How images become pixels."""
        return self.bundle.manifest.preprocessing

    @property
    def runtime(self) -> str:
        """Library that runs the image encoder, and its precision."""
        return f"{self.images.engine.name} {self.images.engine.precision}"

    @property
    def provider(self) -> str:
        """Device of the image encoder, in the words of its library."""
        return self.images.engine.provider

    @property
    def prompted(self) -> PromptedEngine:
        """The image encoder that takes learned vectors.

        Raises:
            BackboneUnsupported: this image tower takes none.
        """
        return self.images.prompted

    def encode_pixels(
        self, pixels: PixelArray, /, rows: Sequence[ImageRows | None] = ()
    ) -> FloatArray:
        """Encode (B, S, S, 3) uint8 pixels to (B, E) image features; see ``ImageEncoder``."""
        return self.images.encode(pixels, rows)

    def encode_text(self, sequences: Sequences) -> FloatArray:
        """Encode the assembled sequences of C classes to (C, E) features; see ``TextEncoder``."""
        return self.text.encode(sequences)
