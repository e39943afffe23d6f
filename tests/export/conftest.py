"""What the tests of weights in and out share."""

import pytest

from .models import make, random_params


@pytest.fixture(scope="session")
def wide():
    """A model of B/16's width."""
    return make()


@pytest.fixture(scope="session")
def params(wide):
    """Its weights; not to be changed."""
    return random_params(wide)
