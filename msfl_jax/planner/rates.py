"""How fast this CPU multiplies and copies, measured; runs in the process that compiles."""

import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from msfl_jax.planner.products import Product
from msfl_jax.planner.protocol import Rates

_SECONDS = 0.15  # for each product and each copy
_LEAST = 5  # calls, however long they take
_POOL = 2**27  # bytes of arrays that are copied, more than caches hold
_DTYPES = {"f32": jnp.float32, "bf16": jnp.bfloat16, "f16": jnp.float16, "f64": jnp.float64}


def measure_rates(products: Sequence[Product], copies: Sequence[int]) -> Rates:
    """Times products of these shapes, copies that add 1, `copies` bytes read and written in main memory, and filling new memory.

    On one core time is that of the process, so that neighbours on the machine do not count; on several it is that of the wall.

    Args:
      products: as they stand in a compiled step.
      copies: bytes read plus bytes written.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    clock = time.process_time if cores == 1 else time.perf_counter
    call = _seconds(jax.jit(lambda x: x + 1), (jnp.zeros(()),), clock)
    return Rates(
        tuple(one.flops / max(_of_product(one, clock) - call, 1e-9) for one in products),
        tuple(size / max(_of_copy(size, clock, call), 1e-9) for size in copies),
        _POOL / max(_seconds(jax.jit(lambda: jnp.zeros(_POOL // 4)), (), clock) - call, 1e-9),
        cores,
    )


def _of_product(product: Product, clock: Callable[[], float]) -> float:
    """Seconds of one product of noise."""
    rng, dtype = np.random.default_rng(0), _DTYPES.get(product.dtype, jnp.float32)
    arrays = tuple(jnp.asarray(rng.standard_normal(shape), dtype) for shape in (product.lhs, product.rhs))
    summed, batch = (product.lhs_contracting, product.rhs_contracting), (product.lhs_batch, product.rhs_batch)
    return _seconds(jax.jit(lambda a, b: jax.lax.dot_general(a, b, (summed, batch))), arrays, clock)


def _of_copy(size: int, clock: Callable[[], float], call: float) -> float:
    """Seconds of reading an array of half of `size` bytes and writing another.

    One call goes over many such pairs, one after the other, which no cache holds: so a step finds its own.
    """
    rows = max(1, 2 * _POOL // size)
    run = jax.jit(
        lambda source, into: jax.lax.fori_loop(0, rows, lambda i, into: into.at[i].set(source[i] + 1), into),
        donate_argnums=1,
    )
    source = jnp.zeros((rows, max(1, size // 8)), jnp.float32)
    arrays = [jnp.zeros_like(source)]

    def passes() -> jax.Array:
        arrays[0] = run(source, arrays[0])  # its memory is used again
        return arrays[0]

    return (_seconds(passes, (), clock) - call) / rows


def _seconds(function: Callable[..., Any], arguments: tuple[Any, ...], clock: Callable[[], float]) -> float:
    """The median of some calls after a first one, which compiles."""
    jax.block_until_ready(function(*arguments))
    taken: list[float] = []
    end = time.perf_counter() + _SECONDS
    while len(taken) < _LEAST or (time.perf_counter() < end and len(taken) < 1000):
        begin = clock()
        jax.block_until_ready(function(*arguments))
        taken.append(clock() - begin)
    return statistics.median(taken)
