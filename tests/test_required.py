"""A test that CI must run is not skipped there."""

from pathlib import Path

import pytest

from tests.required import VARIABLE, program_missing

CI = Path(__file__).parents[1] / ".ci" / "run"


def test_a_missing_program_is_a_skip_or_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(pytest.skip.Exception, match="no browser"):
        program_missing("no browser")

    monkeypatch.setenv(VARIABLE, "1")
    with pytest.raises(pytest.fail.Exception, match="no browser"):
        program_missing("no browser")


def test_ci_requires_the_programs() -> None:
    assert f"export {VARIABLE}=1" in CI.read_text()
