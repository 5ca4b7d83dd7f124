"""Zero-shot classification with hand-written templates (CLIP, section 3.1): nothing is learned.

With several templates, the class features of each are averaged and scaled to unit length again
(CLIP, section 3.1.4): an ensemble in the embedding space, which costs nothing when serving.
"""

from prompt_serve.training.methods.base import Method
from prompt_serve.training.settings import MethodSettings

METHOD = Method(
    name="zero-shot",
    summary="Templates as they are; nothing is learned.",
    paper="CLIP, arXiv 2103.00020, section 3.1",
    settings=MethodSettings,
    learner=None,
)
