"""Which parameters lie where: a short list of (pattern, rule) over their names, and FSDP for what is large."""

import math
import re
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

# A tensor of fewer elements costs more to gather than it saves: 2^18 float32 are 1 MiB.
FSDP_THRESHOLD = 2**18

MOMENTS = re.compile(r"(^|/)opt_state/")

# The axis that goes over `tensor`, counted from the end, so that layers stacked by a scan, which have one axis more in front, need no rule of their
# own. Heads and hidden units are split where they are made and joined where they are consumed: one sum over devices per block (Megatron-LM).
TENSOR_RULES: tuple[tuple[str, int], ...] = (
    (r"/attn/(query|key|value)/(kernel|bias)$", -1),
    (r"/attn/out/kernel$", -2),
    (r"/fc1/(kernel|bias)$", -1),
    (r"/fc2/kernel$", -2),
)


def shardings(tree: Any, mesh: Mesh, *, threshold: int = FSDP_THRESHOLD, shard_moments: bool = False) -> Any:
    """A NamedSharding for every leaf, scalars and moments included.

    Moments end in the name of their parameter, so the same patterns find them. A leaf without a sharding would lie on one device and stop the first
    step after a restore.

    Args:
      tree: arrays or shapes: parameters, or a state that holds them.
      mesh: has the axes `fsdp` and `tensor`.
      threshold: elements from which a tensor is sharded over fsdp.
      shard_moments: shards what lies below `opt_state` over data as well (ZeRO, stage 1): each replica then updates its own part of a parameter.
    """
    options = {"threshold": threshold, "shard_moments": shard_moments}
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(mesh, partition(path_name(path), leaf.shape, mesh, **options)), tree
    )


def sharded_shapes(tree: Any, mesh: Mesh, *, threshold: int = FSDP_THRESHOLD, shard_moments: bool = False) -> Any:
    """The shapes and dtypes of a tree with the `shardings` of its leaves: what a checkpoint is restored into."""
    placed = shardings(tree, mesh, threshold=threshold, shard_moments=shard_moments)
    return jax.tree.map(lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at), tree, placed)


def partition(
    name: str, shape: tuple[int, ...], mesh: Mesh, *, threshold: int = FSDP_THRESHOLD, shard_moments: bool = False
) -> PartitionSpec:
    """Mesh axes of one parameter or moment: `tensor` where a rule matches its name, then `fsdp` on the largest axis that is free and divides evenly.

    With `shard_moments`, a moment has `data` on the largest axis that is still free.
    """
    axes: list[str | None] = [None] * len(shape)
    for pattern, axis in TENSOR_RULES:
        if re.search(pattern, name) and _fits(shape[axis], mesh, "tensor"):
            axes[axis] = "tensor"
    split = ("fsdp", "data") if shard_moments and MOMENTS.search(name) else ("fsdp",)
    for mesh_axis in split if math.prod(shape) >= threshold else ():
        free = [axis for axis, size in enumerate(shape) if axes[axis] is None and _fits(size, mesh, mesh_axis)]
        if free:
            axes[max(free, key=lambda axis: shape[axis])] = mesh_axis
    return PartitionSpec(*axes)


def path_name(path: tuple[Any, ...]) -> str:
    """A leaf's path as "vision/blocks_0/attn/query/kernel"; fields of a state and positions in a tuple are parts of it too."""
    return "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)


def _fits(size: int, mesh: Mesh, axis: str) -> bool:
    return mesh.shape[axis] > 1 and size % mesh.shape[axis] == 0
