"""Fixtures shared with the tests of training."""

from tests.training.conftest import colors as colors
