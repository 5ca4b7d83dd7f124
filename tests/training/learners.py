"""Learners without a backbone: settings as users write them, and the geometry of the towers."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from prompt_serve.training.config import TrainConfig, make_config
from prompt_serve.training.methods import METHODS
from prompt_serve.training.methods.base import LearnerInputs, PromptLearner


def inputs_of(config: TrainConfig, words: Tensor, **geometry: Any) -> LearnerInputs:
    """What a run would hand to the learner; ``geometry`` are further fields of LearnerInputs."""
    return LearnerInputs(
        method=config.method,
        words=words,
        generator=torch.Generator().manual_seed(config.seed),
        template=config.template,
        given_n_ctx=config.n_vectors,
        init_std=config.init_std,
        **{"n_classes": 3, **geometry},
    )


def learner_of(settings: Mapping[str, Any], words: Tensor, **geometry: Any) -> PromptLearner:
    config = make_config(settings)
    make = METHODS[config.method].learner
    assert make is not None
    return make(inputs_of(config, words, **geometry), config.settings)
