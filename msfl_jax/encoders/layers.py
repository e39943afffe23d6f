"""Transformer blocks for images (pre-norm, as ViT) and for reports (post-norm, as BERT), unrolled or scanned.

Parameter paths, below the encoder that calls `apply_blocks`: `blocks_<i>/{norm1, attn/{query, key, value, out}, norm2, fc1, fc2}`, or, where the
blocks are scanned, the same below `blocks` with a leading axis of layers.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Key

from msfl_jax.encoders import initializers
from msfl_jax.encoders.layer_norm import LayerNorm
from msfl_jax.encoders.recompute import keep, kept

BLOCK = re.compile(r"blocks_(\d+)")
ALL_BLOCKS = 1 << 30  # more than any stack has


@dataclass(frozen=True)
class BlockSpec:
    """A stack of equal transformer blocks.

    Attributes:
      kind: "vit" normalises before attention and MLP (epsilon 1e-6), "bert" after them (1e-12).
      hidden: width inside the MLP.
      dtype: of matrix products and of the tokens between blocks; norms and softmax are float32, and so are parameters where `cast_products`
        has not cast kernels already.
      scan_layers: compiles one block and loops over stacked parameters.
      remat: what the backward pass recomputes: nothing, all but matrix products and fused attention, or all of a block. On GPUs "dots"
        is faster than "none": norms and GELU are computed again in less time than their intermediate values are written and read.
      flat_products: multiplies all tokens of a batch as one matrix (see `flat_product`).
      attention: "xla", or "cudnn", cuDNN's fused kernel, for bfloat16 on NVIDIA GPUs (see `attend`).
      drop_path: how often the last block's branches are left out of an image while an rng "drop_path" is given; less in those before it, and
        never in the first (see `drop_path`). It adds no parameters.
    """

    kind: Literal["vit", "bert"]
    depth: int
    width: int
    heads: int
    hidden: int
    dtype: str = "float32"
    scan_layers: bool = False
    remat: Literal["none", "dots", "full"] = "none"
    flat_products: bool = False
    attention: Literal["xla", "cudnn"] = "xla"
    drop_path: float = 0.0


def gelu(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Exact GELU through erf (as PyTorch; JAX's own goes through erfc), computed in float32 at least and returned as the dtype of `x`.

    bfloat16 would be rounded after each of a dozen operations, which costs GPUs more than it saves.
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (wide * (0.5 + 0.5 * jax.lax.erf(wide * 0.5**0.5))).astype(x.dtype)


def flat_product(left: Array, right: Array, dimension_numbers: Any, **options: Any) -> Array:
    """`lax.dot_general` of tokens [..., D] with a kernel [D, F], as one product of two matrices.

    XLA's CPU backend multiplies stacks of matrices more slowly, above all for the kernel's gradient, which sums over two axes. Elsewhere the reshape
    may cost a copy, and the gradient of a kernel that narrows is copied. Of `options` it takes `precision`, all that Flax gives.
    """
    product: Any = _matrix_product(options.get("precision"), left.reshape(-1, left.shape[-1]), right)
    return product.reshape(*left.shape[:-1], right.shape[-1])


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _matrix_product(precision: Any, left: Float[Array, "N D"], right: Float[Array, "D F"]) -> Float[Array, "N F"]:
    """`left @ right`, whose gradient by a kernel that narrows is found turned over.

    That gradient multiplies columns by columns, which takes a CPU a fifth longer where the result has more rows than columns.
    """
    return jnp.matmul(left, right, precision=precision)


def _product_forward(precision: Any, left: Array, right: Array) -> tuple[Array, tuple[Array, Array]]:
    return _matrix_product(precision, left, right), (left, right)


def _product_backward(precision: Any, inputs: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    left, right = inputs
    times = partial(jnp.matmul, precision=precision)
    if right.shape[0] <= right.shape[1]:
        return times(cotangent, right.T), times(left.T, cotangent)
    turned = jax.lax.optimization_barrier(times(cotangent.T, left))  # else XLA would undo it
    return times(cotangent, right.T), turned.T


_matrix_product.defvjp(_product_forward, _product_backward)


def dense(spec: BlockSpec, features: int, name: str, *, fused_third: bool = False) -> nn.Dense:
    """A dense layer with the initialiser of its kind; `fused_third` for query, key and value."""
    vit = initializers.third_of_fused if fused_third else initializers.xavier
    init = vit if spec.kind == "vit" else initializers.normal
    product = flat_product if spec.flat_products else None
    return nn.Dense(features, dtype=jnp.dtype(spec.dtype), kernel_init=init, dot_general=product, name=name)


def layer_norm(kind: Literal["vit", "bert"], dtype: str, name: str | None = None) -> LayerNorm:
    """LayerNorm with the epsilon of its kind."""
    return LayerNorm(1e-6 if kind == "vit" else 1e-12, dtype, name=name)


def attend(
    query: Float[Array, "B Q H d"],
    key: Float[Array, "B N H d"],
    value: Float[Array, "B N H d"],
    mask: Bool[Array, "#B #Q N"] | None,
    implementation: Literal["xla", "cudnn"] = "xla",
) -> Float[Array, "B Q H d"]:
    """Softmax attention; the softmax is float32, the products have the inputs' dtype.

    Args:
      query, key, value: by head; `d` is the width of a head.
      mask: True where a query sees a key. A query that sees no key gets their mean: finite, in value and gradient.
      implementation: "cudnn" takes cuDNN's fused kernel, which never writes the weights to memory. A mask [B, 1, N] must then be
        True up to the length of a report and False behind it: cuDNN is given lengths, since its backward pass has had faults
        with dense masks. Other masks, odd lengths, which JAX does not train with, and float32, which cuDNN does not know, take
        "xla" all the same.
    """
    if implementation == "cudnn" and _cudnn_knows(query.dtype, mask) and query.shape[1] % 2 == 0:
        lengths = None if mask is None else jnp.maximum(mask[:, 0].sum(axis=-1, dtype=jnp.int32), 1)
        lengths = None if lengths is None else jnp.broadcast_to(lengths, len(query))
        return jax.nn.dot_product_attention(query, key, value, key_value_seq_lengths=lengths, implementation="cudnn")
    logits = jnp.einsum("bqhd,bnhd->bhqn", query, key, preferred_element_type=jnp.float32) * query.shape[-1] ** -0.5
    if mask is not None:
        logits = jnp.where(mask[:, None], logits, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
    return keep(jnp.einsum("bhqn,bnhd->bqhd", weights, value))


def _cudnn_knows(dtype: Any, mask: Array | None) -> bool:
    return dtype == jnp.bfloat16 and (mask is None or mask.shape[1] == 1)


def drop_path(
    branch: Float[Array, "B N D"], key: Key[Array, ""], rate: Float[Array, ""] | float
) -> Float[Array, "B N D"]:
    """Stochastic depth (Huang et al. 2016, as timm has it): each row becomes 0 with probability `rate`, else is divided by 1 - rate."""
    kept = jax.random.bernoulli(key, 1.0 - rate, (len(branch), 1, 1))
    return branch * (kept / (1.0 - rate)).astype(branch.dtype)


class Attention(nn.Module):
    """Multi-head self-attention."""

    spec: BlockSpec

    @nn.compact
    def __call__(self, tokens: Float[Array, "B N D"], mask: Bool[Array, "#B #N N"] | None) -> Float[Array, "B N D"]:
        """Mixes tokens; `mask` as in `attend`."""
        spec = self.spec
        by_head = (*tokens.shape[:2], spec.heads, spec.width // spec.heads)
        query, key, value = (
            keep(dense(spec, spec.width, name, fused_third=True)(tokens)).reshape(by_head)
            for name in ("query", "key", "value")
        )
        return dense(spec, spec.width, "out")(attend(query, key, value, mask, spec.attention).reshape(tokens.shape))


class Block(nn.Module):
    """Attention and an MLP with exact GELU, each with a residual connection and a norm."""

    spec: BlockSpec

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "B N D"], mask: Bool[Array, "#B #N N"] | None, drop: Array | float = 0.0
    ) -> Float[Array, "B N D"]:
        """One block; tokens keep their dtype. `drop` is its rate of `drop_path`, for "vit" alone."""
        spec = self.spec
        drops = spec.drop_path > 0 and self.has_rng("drop_path")
        norm1, norm2 = (layer_norm(spec.kind, spec.dtype, name) for name in ("norm1", "norm2"))
        attention = Attention(spec, name="attn")
        fc1, fc2 = dense(spec, spec.hidden, "fc1"), dense(spec, spec.width, "fc2")

        def mlp(x: Array) -> Array:
            return fc2(gelu(keep(fc1(x))))

        def thinned(branch: Array) -> Array:
            return drop_path(branch, self.make_rng("drop_path"), drop) if drops else branch

        if spec.kind == "vit":
            tokens = keep(tokens + thinned(attention(norm1(tokens), mask)))
            return tokens + thinned(mlp(norm2(tokens)))
        tokens = norm1(keep(tokens + attention(tokens, mask)))
        return norm2(keep(tokens + mlp(tokens)))


class Stream(NamedTuple):
    """Tokens on their way through a stack of blocks.

    Attributes:
      tokens: Float [B, N, D] of any float dtype; computed as the stack's.
      mask: Bool [#B, #N, N], True where a token (second axis) sees another (third axis); None where all see all.
      masked_blocks: how many blocks, from the first, obey the mask.
    """

    tokens: Float[Array, "B N D"]
    mask: Bool[Array, "#B #N N"] | None = None
    masked_blocks: int = ALL_BLOCKS


class Layers(NamedTuple):
    """Float [B, N, D] after the last block, and after each of the blocks that were asked for, raw as they go into the next one."""

    tokens: Float[Array, "B N D"]
    tapped: tuple[Float[Array, "B N D"], ...]


def apply_blocks(spec: BlockSpec, *streams: Stream, taps: tuple[int, ...] = ()) -> tuple[Layers, ...]:
    """Runs the stack; called inside a compact method, whose module owns the parameters.

    Args:
      spec: the blocks.
      streams: tokens, of any batch and length each. Several go through each block one after the other: as if the stack were run for each (only
        `drop_path` draws other numbers), but where blocks are scanned there is one loop, which sums what all of them say of a block's gradient.
      taps: blocks, counted from 1, behind which tokens are handed out as well; in any order, also several times.

    Returns:
      For each stream, in the order given, tokens of its own length.

    Raises:
      ValueError: a tap is no block.
    """
    if any(not 1 <= tap <= spec.depth for tap in taps):
        raise ValueError(f"taps are {taps}; expected blocks 1 to {spec.depth}")
    run = _scanned if spec.scan_layers else _unrolled
    found = run(spec, tuple(_prepared(spec, stream) for stream in streams), taps)
    lengths = [stream.tokens.shape[1] for stream in streams]
    return tuple(
        Layers(layers.tokens[:, :length], tuple(layer[:, :length] for layer in layers.tapped))
        for layers, length in zip(found, lengths, strict=True)
    )


def _prepared(spec: BlockSpec, stream: Stream) -> Stream:
    """In the dtype of the blocks, and of even length where cuDNN needs that.

    One token more, which none sees, is added once for all blocks, since each would else copy queries, keys and values to add it.
    """
    stream = stream._replace(tokens=stream.tokens.astype(spec.dtype))
    tokens, mask, masked = stream
    odd = tokens.shape[1] % 2 and (mask is None or masked >= spec.depth)
    if not (spec.attention == "cudnn" and odd and _cudnn_knows(tokens.dtype, mask)):
        return stream
    mask = jnp.ones((1, 1, tokens.shape[1]), bool) if mask is None else mask
    return Stream(jnp.pad(tokens, ((0, 0), (0, 1), (0, 0))), jnp.pad(mask, ((0, 0), (0, 0), (0, 1))))


def _unrolled(spec: BlockSpec, streams: tuple[Stream, ...], taps: tuple[int, ...]) -> list[Layers]:
    outputs = [[stream.tokens] for stream in streams]
    for layer in range(spec.depth):
        block = _block_type(spec)(spec, name=f"blocks_{layer}")
        for stream, layers in zip(streams, outputs, strict=True):
            seen = stream.mask if layer < stream.masked_blocks else None
            layers.append(block(layers[-1], seen, *_drop_rate(spec, layer)))
    return [Layers(layers[-1], tuple(layers[tap] for tap in taps)) for layers in outputs]


def _scanned(spec: BlockSpec, streams: tuple[Stream, ...], taps: tuple[int, ...]) -> list[Layers]:
    """One compiled body: later blocks see through the mask, and tapped tokens travel with the carry instead of being stacked for all layers."""
    kept = sorted({tap for tap in taps if tap < spec.depth})  # the last block's tokens are there anyway

    def through(block: nn.Module, stream: Stream, carried: Layers, layer: Array) -> Layers:
        seen = stream.mask
        if seen is not None and stream.masked_blocks < spec.depth:
            seen = seen | (layer > stream.masked_blocks)
        tokens = block(carried.tokens, seen, *_drop_rate(spec, layer - 1))
        passed = zip(kept, carried.tapped, strict=True)
        return Layers(tokens, tuple(jnp.where(layer == tap, tokens, old) for tap, old in passed))

    def body(block: nn.Module, carry: tuple[Layers, ...], layer: Array) -> tuple[tuple[Layers, ...], None]:
        pairs = zip(streams, carry, strict=True)
        return tuple(through(block, stream, carried, layer) for stream, carried in pairs), None

    rngs: dict[Any, bool] = {"params": True, "drop_path": True}
    scan = nn.scan(body, variable_axes={"params": 0}, split_rngs=rngs, length=spec.depth)
    begin = tuple(Layers(stream.tokens, (stream.tokens,) * len(kept)) for stream in streams)
    ends, _ = scan(_block_type(spec)(spec, name="blocks"), begin, jnp.arange(1, spec.depth + 1))
    found = [dict(zip(kept, end.tapped, strict=True)) | {spec.depth: end.tokens} for end in ends]
    return [Layers(layers[spec.depth], tuple(layers[tap] for tap in taps)) for layers in found]


def _drop_rate(spec: BlockSpec, layer: Array | int) -> tuple[Array | float, ...]:
    """The rate of a block, counted from 0, which rises linearly to that of the last; nothing where none are dropped."""
    return (spec.drop_path * layer / max(spec.depth - 1, 1),) if spec.drop_path else ()


def _block_type(spec: BlockSpec) -> Callable[..., Block]:
    if spec.remat == "none":
        return Block
    policy = kept if spec.remat == "dots" else None
    # A loop keeps the recomputation apart by itself; unrolled code needs the barrier that prevent_cse sets.
    return nn.remat(Block, prevent_cse=not spec.scan_layers, policy=policy)


def cast_products(params: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """Parameters with kernels, and the biases beside them, in the dtype of products, at any depth of the tree; the rest as it is.

    Dense layers would cast them anyhow, in each pass by itself. Cast once, as bfloat16, they are read in half their bytes, and their gradients, which
    each pass has found in that dtype, are summed in it, over passes and over devices.
    """
    found = {name: cast_products(value, dtype) for name, value in params.items() if isinstance(value, Mapping)}
    if "kernel" not in params:
        return {**params, **found}
    return found | {name: value.astype(dtype) for name, value in params.items() if name not in found}


def unstack_layers(params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of scanned blocks (`blocks`, leading axis of layers) as those of unrolled ones (`blocks_0`, ...), at any depth of the tree."""
    result: dict[str, Any] = {}
    for name, value in params.items():
        if name == "blocks":
            depth = len(jax.tree.leaves(value)[0])
            result |= {f"blocks_{i}": jax.tree.map(lambda leaf, i=i: leaf[i], value) for i in range(depth)}
        else:
            result[name] = unstack_layers(value) if isinstance(value, Mapping) else value
    return result


def stack_layers(params: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `unstack_layers`."""
    layers = {int(match[1]): params[name] for name in params if (match := BLOCK.fullmatch(name))}
    result = {
        name: stack_layers(value) if isinstance(value, Mapping) else value
        for name, value in params.items()
        if not BLOCK.fullmatch(name)
    }
    if layers:
        result["blocks"] = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(layers[i] for i in range(len(layers))))
    return result
