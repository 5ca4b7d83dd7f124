"""DIP: learn a low-rank change of the template (Dense Information Prompt, arXiv 2312.10813).

Algorithm 3 (low-rank prompt): ``P = P_init + Dropout(P_A P_B, p)`` with P_A (M, R) and P_B (R, D);
at evaluation ``P = P_init + P_A P_B``. P_init is the frozen token embedding of the template's words
and is not stored; the learned numbers are R (M + D): 516 on ViT-B/16 with 4 vectors and rank 1.

Traps:

* Dropout acts on the M x D *product*, element by element, not on the factors; one mask a step for
  all classes; what is kept is scaled by 1 / (1 - p).
* Both factors start from N(0, init_std^2) and neither may be zero: the gradient of each is a
  multiple of the other. The step that P really takes is the learning rate times the squared norm
  of the factors, so CoOp's 0.002 is far too small here: up to 0.02 the factors never leave the
  saddle at zero within 50 epochs (flowers, embedded backbone). The paper does not state its own.
* Weight decay pulls the product to zero, that is the context to the template.

With a depth J every prompted block has factors of its own, 516 J numbers (appendix F); only the
first adds to the template's words. In the image branch (``branch = "image"``) there are no words,
so the product stands alone: 772 numbers on ViT-B/16.
"""

from prompt_serve.errors import ConfigInvalid
from prompt_serve.training.methods.base import LearnerInputs, Method, PromptLearner
from prompt_serve.training.methods.branches import ImageVectors, TextVectors, check_placing
from prompt_serve.training.methods.parameters import (
    CODEBOOK_SETTINGS,
    LowRankVectors,
    low_rank_text_vectors,
)


class Dip(TextVectors):
    """J R (M + D) numbers of the text branch."""

    def __init__(self, start: LearnerInputs) -> None:
        check_low_rank(start, start.width)
        check_placing(start)
        super().__init__(low_rank_text_vectors(start, start.depth(start.text_layers)))


class ImageDip(ImageVectors):
    """J R (M + D) numbers of the image branch."""

    def __init__(self, start: LearnerInputs) -> None:
        width = start.prompted_image_width()
        check_low_rank(start, width)
        shape, depth = (start.n_ctx, width), start.depth(start.image_layers)
        super().__init__([LowRankVectors(None, shape, start) for _ in range(depth)])


def make(start: LearnerInputs) -> PromptLearner:
    """The learner of the branch asked for."""
    return ImageDip(start) if start.config.branch == "image" else Dip(start)


def check_low_rank(start: LearnerInputs, width: int) -> None:
    """Raise ConfigInvalid unless factors of this rank can be learned."""
    config = start.config
    faults = []
    if config.init_std == 0.0:
        faults.append("init_std is 0: both factors would stay zero for ever")
    if config.rank > min(start.n_ctx, width):
        faults.append(f"rank is {config.rank}; it may not exceed the {start.n_ctx} context vectors")
    if faults:
        raise ConfigInvalid("DIP cannot be learned with these settings:", faults)


METHOD = Method(
    name="dip",
    summary="A low-rank change of the template's words (DIP).",
    paper="DIP, arXiv 2312.10813, Alg. 3",
    learner=make,
    learning_rate=0.2,
    learning_rates=(0.1, 0.2, 0.5),
    settings=CODEBOOK_SETTINGS
    | {"rank", "dropout", "frozen_init", "depth", "branch", "class_position"},
    prompts_images=lambda config: config.branch == "image",
)
