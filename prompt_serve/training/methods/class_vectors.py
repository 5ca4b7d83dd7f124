"""Class vectors: the class features themselves, learned in closed form from image features.

``closed_form`` has the equations: linear discriminant analysis with a shrunk covariance, stored as
codes of a few bits. It takes about a second, uses the plain view of every image, and its file takes
no other class names. With ``text_prior`` the class names count as far as cross-validation says.
"""

from prompt_serve.closed_form.learn import LearnedClasses, learn_classes
from prompt_serve.training.methods.base import ClosedFormInputs, Method
from prompt_serve.training.methods.class_vector_settings import ClassVectorSettings


def learn(inputs: ClosedFormInputs, settings: ClassVectorSettings) -> LearnedClasses:
    """Learn class vectors from all images."""
    return learn_classes(
        inputs.features,
        inputs.labels,
        len(inputs.text_features),
        logit_scale=inputs.logit_scale,
        bits=settings.bits,
        seed=inputs.seed,
        text_features=inputs.text_features if settings.text_prior else None,
    )


METHOD = Method(
    name="class-vectors",
    summary="Class features from image features, in closed form; takes no new class names.",
    paper="linear discriminant analysis; Hastie et al. 2009, eq. 4.10",
    settings=ClassVectorSettings,
    learner=None,
    closed_form=learn,
)
