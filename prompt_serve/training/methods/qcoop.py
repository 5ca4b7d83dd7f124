"""QCoOp: CoOp seen through a codebook (Quantized Prompt, ECCV 2024, section 4).

CoOp's vectors, each number one of ``2**b`` (``quantization.codebook``): on ViT-B/16 with 4 vectors
260 bytes at one bit, 520 at two, 1,056 at four, 2,560 at eight, where CoOp has 4,096. The vectors
themselves are quantized, not their change: at one bit, learning starts from two numbers in place of
the template's words.

``quantization = "ptq"`` learns plain CoOp and quantizes the result: the paper's own comparison.
"""

from dataclasses import dataclass

from prompt_serve.training.methods.base import Method
from prompt_serve.training.methods.coop import Coop, CoopSettings


@dataclass(frozen=True, kw_only=True)
class QcoopSettings(CoopSettings):
    """Settings of QCoOp: those of CoOp with a codebook."""

    bits: int | None = 1


METHOD = Method(
    name="qcoop",
    summary="CoOp with numbers of one bit, or of a few (Quantized Prompt).",
    paper="Quantized Prompt, ECCV 2024, sections 4.2 and 4.3",
    settings=QcoopSettings,
    learner=Coop,
    # Emoji sample, embedded backbone, 10 epochs, one seed: validation accuracy 0.50, 0.54 and 0.42
    # at these three.
    learning_rate=0.01,
    learning_rates=(0.002, 0.01, 0.05),
    # Four words in few bits are too small a prompt for most image folders; these take 1,568 bytes.
    user_settings={"n_ctx": 16, "init": "random", "bits": 4},
)
