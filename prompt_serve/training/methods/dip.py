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
"""

import torch
from torch import Tensor, nn

from prompt_serve.encodings import Base, LowRank
from prompt_serve.errors import ConfigInvalid
from prompt_serve.training.methods.base import Method, PromptLearner, Start, half


class Dip(PromptLearner):
    """R (M + D) numbers."""

    p_init: Tensor

    def __init__(self, start: Start) -> None:
        super().__init__()
        _check(start)
        config = start.config
        self.p_a = nn.Parameter(start.normal(start.n_ctx, config.rank))
        self.p_b = nn.Parameter(start.normal(config.rank, start.width))
        words = start.words if config.frozen_init else torch.zeros(start.n_ctx, start.width)
        self.register_buffer("p_init", words.clone(), persistent=False)
        self._frozen_init = config.frozen_init
        self._dropout = config.dropout
        self._generator = start.generator

    def context(self) -> Tensor:
        return self.p_init + self._drop(self.p_a @ self.p_b)

    def encoding(self) -> LowRank:
        base: Base = "template" if self._frozen_init else "none"
        return LowRank(p_a=half(self.p_a), p_b=half(self.p_b), base=base)

    def _drop(self, product: Tensor) -> Tensor:
        if not self.training or self._dropout == 0.0:
            return product
        # Drawn on the CPU whatever the device, so that a seed means the same everywhere.
        kept = torch.rand(product.shape, generator=self._generator) >= self._dropout
        return product * kept.to(product.device) / (1.0 - self._dropout)


def _check(start: Start) -> None:
    config = start.config
    faults = []
    if config.class_specific:
        faults.append("class_specific is for method 'coop'; DIP shares one context")
    if config.init_std == 0.0:
        faults.append("init_std is 0: both factors would stay zero for ever")
    if config.rank > min(start.n_ctx, start.width):
        faults.append(f"rank is {config.rank}; it may not exceed the {start.n_ctx} context vectors")
    if config.frozen_init and start.n_ctx != start.words.shape[0]:
        faults.append(
            f"n_ctx is {start.n_ctx}, but the template {config.template!r} has "
            f"{start.words.shape[0]} tokens before the class name; leave n_ctx out, "
            f"or learn without the template's words (frozen_init = false)"
        )
    if faults:
        raise ConfigInvalid("DIP cannot be learned with these settings:", faults)


METHOD = Method(
    name="dip",
    summary="A low-rank change of the template's words (DIP).",
    learner=Dip,
    learning_rate=0.2,
    learning_rates=(0.1, 0.2, 0.5),
)
