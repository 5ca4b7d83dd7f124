"""Programs that some tests need: skipped without them, except where they have to be there."""

import os
from typing import NoReturn

import pytest

VARIABLE = "REQUIRE_PROGRAMS"  # set by .ci/run, which installs them


def program_missing(reason: str) -> NoReturn:
    """Skip the test; fail it if ``REQUIRE_PROGRAMS`` is set, so that CI cannot leave it out."""
    if os.environ.get(VARIABLE):
        pytest.fail(f"{reason} ({VARIABLE} is set)", pytrace=False)
    pytest.skip(reason)
