"""The TPU kernels of local alignment, compiled for real TPUs by the compiler that these use; nothing is run, and no TPU is needed."""

from importlib.util import find_spec

import jax
import pytest
from jax.experimental import topologies

from msfl_jax.config import MeshConfig
from msfl_jax.parallel.local_alignment import local_alignment
from msfl_jax.parallel.mesh import batch_sharding, make_mesh

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not find_spec("libtpu"), reason="libtpu is not installed: pip install -e '.[tpu]'"),
]


def compiled(chips, batch, sentences, patches, width, dtype="bfloat16", **options):
    """Loss and gradients of a batch over the chips, by kernels."""
    devices = topologies.get_topology_desc(chips, platform="tpu").devices
    mesh = make_mesh(MeshConfig(-1, 1, 1), devices=devices)

    def loss(regions, sentences, mask):
        return local_alignment(regions, sentences, mask, kernel="pallas", **options)

    with jax.set_mesh(mesh):
        arrays = [
            jax.ShapeDtypeStruct(shape, dtype, sharding=batch_sharding(mesh))
            for shape, dtype in [
                ((batch, patches, width), dtype),
                ((batch, sentences, width), dtype),
                ((batch, sentences), "bool"),
            ]
        ]
        traced = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).trace(*arrays)
        return traced.lower(lowering_platforms=("tpu",)).compile()


@pytest.mark.parametrize("chips", ["v5e:2x2", "v5p:2x2x1"])
@pytest.mark.parametrize("width", [128, 768])
@pytest.mark.parametrize("patches", [98, 196])
@pytest.mark.parametrize("attention, aggregate", [("gloria", "sum"), ("regions", "mean")])
def test_all_three_kernels_compile_over_four_chips(chips, patches, width, attention, aggregate):
    text = compiled(chips, 512, 8, patches, width, attention=attention, aggregate=aggregate).as_text()
    for kernel in ("scores_kernel", "regions_kernel", "sentences_kernel"):
        assert f"local_alignment_{kernel}" in text
