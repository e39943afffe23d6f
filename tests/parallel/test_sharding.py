"""Where parameters and moments lie, and that each device holds only its share."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from msfl_jax.parallel.distributed import data_share, device_batches, global_batch
from msfl_jax.parallel.sharding import partition, path_name, shardings


@pytest.mark.parametrize(
    ("name", "shape", "spec"),
    [
        ("vision/blocks_0/attn/query/kernel", (32, 32), ("fsdp", "tensor")),
        ("vision/blocks_0/attn/value/bias", (32,), ("tensor",)),
        ("vision/blocks_0/attn/out/kernel", (32, 32), ("tensor", "fsdp")),
        ("vision/blocks_0/attn/out/bias", (32,), ("fsdp",)),
        ("text/blocks_1/fc1/kernel", (32, 128), ("fsdp", "tensor")),
        ("text/blocks_1/fc2/kernel", (128, 32), ("tensor", "fsdp")),
        ("text/blocks/attn/key/kernel", (12, 32, 32), (None, "fsdp", "tensor")),
        ("text/blocks/fc2/kernel", (12, 128, 32), (None, "tensor", "fsdp")),
        ("text/blocks/fc1/bias", (12, 128), ("fsdp", "tensor")),
        ("text/word_embeddings/embedding", (61, 32), (None, "fsdp")),
        ("vision/blocks_0/attn/query/kernel", (7, 9), (None, None)),
        ("vision/cls_token", (1, 1, 7), (None, None, None)),
        ("temperature/log_scale", (), ()),
    ],
)
def test_rules_give_each_parameter_its_axes(mesh_of, name, shape, spec):
    mesh = mesh_of(2, 2, 2)
    assert partition(name, shape, mesh, threshold=1) == PartitionSpec(*spec)
    assert partition(f"opt_state/1/0/mu/{name}", shape, mesh, threshold=1) == PartitionSpec(*spec)


def test_small_tensors_are_not_sharded_over_fsdp(mesh_of):
    assert partition("heads/pooler/kernel", (32, 32), mesh_of(2, 4, 1), threshold=1025) == PartitionSpec(None, None)
    assert partition("heads/pooler/kernel", (32, 32), mesh_of(2, 4, 1), threshold=1024) == PartitionSpec("fsdp", None)


def test_a_mesh_of_replicas_shards_no_parameter(mesh_of):
    assert partition("vision/blocks_0/attn/query/kernel", (32, 32), mesh_of(8), threshold=1) == PartitionSpec(
        None, None
    )


@pytest.mark.parametrize(
    ("shape", "name", "size", "spec"),
    [
        ((8, 1, 1), "text/word_embeddings/embedding", (61, 32), (None, "data")),
        ((2, 4, 1), "text/blocks_1/mlp/kernel", (32, 128), ("data", "fsdp")),
        ((2, 2, 2), "text/blocks/attn/key/kernel", (12, 32, 32), ("data", "fsdp", "tensor")),
        ((2, 4, 1), "text/blocks_1/mlp/bias", (128,), ("fsdp",)),  # one axis: data would find nothing left
        ((8, 1, 1), "text/odd/kernel", (7, 9), (None, None)),
    ],
)
def test_moments_are_split_over_replicas_on_request_and_parameters_never(mesh_of, shape, name, size, spec):
    mesh = mesh_of(*shape)
    moment = partition(f"opt_state/0/mu/{name}", size, mesh, threshold=1, shard_moments=True)
    assert moment == PartitionSpec(*spec)
    parameter = partition(f"params/{name}", size, mesh, threshold=1, shard_moments=True)
    assert parameter == partition(f"params/{name}", size, mesh, threshold=1)
    assert "data" not in parameter


def test_every_leaf_is_placed_and_moments_lie_with_their_parameter(mesh_of):
    params = {"vision": {"blocks_0": {"fc1": {"kernel": jnp.zeros((16, 64)), "bias": jnp.zeros(64)}}}}
    state = optax.adamw(optax.cosine_decay_schedule(1.0, 9)).init(params)
    placed = jax.device_put((params, state), shardings((params, state), mesh_of(2, 2, 2), threshold=1))
    by_name = {path_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(placed)[0]}
    kernels = [leaf for name, leaf in by_name.items() if name.endswith("fc1/kernel")]
    assert len(kernels) == 3
    assert {leaf.sharding.spec for leaf in kernels} == {PartitionSpec("fsdp", "tensor")}
    assert all(shard.data.shape == (8, 32) for leaf in kernels for shard in leaf.addressable_shards)
    counts = [leaf for name, leaf in by_name.items() if name.endswith("count")]
    assert all(leaf.sharding.is_fully_replicated and len(leaf.sharding.device_set) == 8 for leaf in counts)


def test_a_global_batch_keeps_the_order_of_its_rows(mesh_of):
    mesh = mesh_of(2, 2, 2)
    rows = {"study_key": np.arange(8, dtype=np.uint32)}
    batch = global_batch(rows, mesh)["study_key"]
    assert data_share(mesh, 8) == (0, 1)
    np.testing.assert_array_equal(batch, rows["study_key"])
    assert {shard.data.shape for shard in batch.addressable_shards} == {(2,)}


@pytest.mark.parametrize("ahead", [0, 1, 2, 5])
def test_batches_on_their_way_come_in_order_and_none_is_lost(mesh_of, ahead):
    taken = []

    def source():
        for number in range(4):
            taken.append(number)
            yield {"study_key": np.full(8, number, np.uint32)}

    batches = device_batches(source(), mesh_of(8), ahead=ahead)
    first = next(batches)
    assert len(taken) == min(ahead + 1, 4)
    assert [int(batch["study_key"][0]) for batch in [first, *batches]] == [0, 1, 2, 3]
