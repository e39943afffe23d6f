"""Shapes of meshes, and what is refused before anything is computed."""

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AxisType, PartitionSpec

from input_pipeline.errors import UserError
from msfl_jax.config import MeshConfig
from msfl_jax.parallel.mesh import batch_sharding, check_batch_size, make_mesh


@pytest.mark.parametrize(
    ("asked", "shape"),
    [
        ((-1, 1, 1), (8, 1, 1)),
        ((-1, 2, 2), (2, 2, 2)),
        ((2, -1, 1), (2, 4, 1)),
        ((1, 2, -1), (1, 2, 4)),
        ((2, 2, 2), (2, 2, 2)),
    ],
)
def test_minus_one_takes_the_devices_that_are_left(asked, shape):
    mesh = make_mesh(MeshConfig(*asked))
    assert tuple(mesh.shape.values()) == shape
    assert mesh.axis_names == ("data", "fsdp", "tensor")
    assert set(mesh.axis_types) == {AxisType.Auto}


@given(st.tuples(*[st.integers(-2, 9)] * 3))
def test_every_other_shape_is_refused_in_one_line(sizes):
    fixed = [size for size in sizes if size != -1]
    product = 1
    for size in fixed:
        product *= size
    fits = min(fixed, default=1) >= 1 and sizes.count(-1) <= 1 and (product == 8 or (-1 in sizes and 8 % product == 0))
    if fits:
        assert make_mesh(MeshConfig(*sizes)).size == 8
    else:
        with pytest.raises(UserError, match=r"^config: 'mesh' is data .*; expected .*$"):
            make_mesh(MeshConfig(*sizes))


def test_a_batch_lies_over_data_and_fsdp(mesh_of):
    mesh = mesh_of(2, 2, 2)
    assert batch_sharding(mesh).spec == PartitionSpec(("data", "fsdp"))
    check_batch_size(12, mesh)
    with pytest.raises(UserError, match=r"'data\.batch_size' is 6; expected a multiple of 4"):
        check_batch_size(6, mesh)


def test_a_mesh_of_some_devices_leaves_the_others_alone():
    assert make_mesh(MeshConfig(-1, 1, 1), devices=jax.devices()[:2]).size == 2


def test_parameters_are_shared_by_neighbouring_devices_so_that_a_machine_can_be_a_group(mesh_of):
    replicas = [[device.id for device in replica.ravel()] for replica in mesh_of(2, 4).devices]
    assert replicas == [[0, 1, 2, 3], [4, 5, 6, 7]]
