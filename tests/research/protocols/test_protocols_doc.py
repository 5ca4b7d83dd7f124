"""docs/protocols.md names what there is: every field of a line and every file."""

import dataclasses
import re
from pathlib import Path

from prompt_serve.research.protocols.results import Result
from prompt_serve.research.protocols.summary import harmonic_mean

TEXT = (Path(__file__).parents[3] / "docs" / "protocols.md").read_text(encoding="utf-8")


def test_every_field_of_a_line_is_explained() -> None:
    explained = set(re.findall(r"`(\w+)`", TEXT))
    fields = {field.name for field in dataclasses.fields(Result)} - {"format"}

    assert fields <= explained


def test_the_harmonic_mean_of_the_example() -> None:
    assert "80.32 and 74.73 give 77.42" in TEXT
    assert round(harmonic_mean(80.32, 74.73), 2) == 77.42
