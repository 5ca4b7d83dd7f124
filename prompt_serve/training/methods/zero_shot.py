"""Zero-shot classification with hand-written templates (CLIP, section 3.1): nothing is learned.

With several templates, the class features of each are averaged and scaled to unit length again
(CLIP, section 3.1.4): an ensemble in the embedding space, which costs nothing when serving.
"""

from prompt_serve.training.methods.base import Method

METHOD = Method(
    name="zero-shot",
    summary="Templates as they are; nothing is learned.",
    learner=None,
)
