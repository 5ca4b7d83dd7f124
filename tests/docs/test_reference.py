"""docs/reference.md is what ``python -m tools.reference`` makes of the code."""

from prompt_serve.service.settings import Settings
from tests.service.process import ROOT
from tools.reference import reference, table


def test_the_page_is_up_to_date() -> None:
    page = (ROOT / "docs" / "reference.md").read_text()

    assert page == reference(), "run: python -m tools.reference > docs/reference.md"


def test_every_setting_has_a_description() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_a_table_is_markdown() -> None:
    assert table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"
