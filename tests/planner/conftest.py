"""A configuration whose step compiles in seconds."""

import dataclasses

import pytest

from msfl_jax.config_files import load_config

from ..small import OVERRIDES


@pytest.fixture(scope="session")
def config():
    """The demo's model at the size of `small.OVERRIDES`, 32 studies a step."""
    return load_config("demo", OVERRIDES)


@pytest.fixture(scope="session")
def with_batch():
    """A configuration with another batch."""

    def make(config, batch):
        return dataclasses.replace(config, data=dataclasses.replace(config.data, batch_size=batch))

    return make
