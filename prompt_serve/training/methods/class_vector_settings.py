"""Settings of class vectors; they need no torch, as learning them does not."""

from dataclasses import dataclass

from prompt_serve.training.settings import MethodSettings, choice, switch


@dataclass(frozen=True, kw_only=True)
class ClassVectorSettings(MethodSettings):
    """Settings of class vectors."""

    bits: int = choice(4, (1, 2, 4, 8, 16), "Bits per number of the class vectors.")
    text_prior: bool = switch(
        True, "Let the class names count as far as cross-validation says that they help."
    )
