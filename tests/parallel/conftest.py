"""Meshes over the eight virtual devices."""

import jax
import pytest

from msfl_jax.config import MeshConfig
from msfl_jax.parallel.mesh import make_mesh


@pytest.fixture(scope="session")
def mesh_of():
    """A mesh of the given shape over as many devices as it needs."""

    def make(data: int, fsdp: int = 1, tensor: int = 1):
        return make_mesh(MeshConfig(data, fsdp, tensor), devices=jax.devices()[: data * fsdp * tensor])

    return make
