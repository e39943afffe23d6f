"""Memory of local alignment at the batch sizes of a pod: compiled, never run."""

import jax
import jax.numpy as jnp
import pytest

from msfl_jax.losses import contrast, local_alignment

BATCH, SENTENCES, PATCHES, WIDTH = 4096, 8, 98, 768


def formed(regions, sentences, mask):
    """The loss with the context of every pair formed, as a line for each equation gives it."""
    similarity = jnp.einsum("ape,bse->absp", regions, sentences, preferred_element_type=jnp.float32)
    among_sentences = jax.nn.softmax(jnp.where(mask[None, :, :, None], similarity, -1e30), axis=2)
    weights = jax.nn.softmax(4.0 * among_sentences, axis=3)
    contexts = jnp.einsum("absp,ape->abse", weights, regions, preferred_element_type=jnp.float32)
    lengths = jnp.linalg.norm(contexts, axis=-1) * jnp.linalg.norm(sentences.astype(jnp.float32), axis=-1)
    cosines = jnp.einsum("abse,bse->abs", contexts, sentences, preferred_element_type=jnp.float32) / lengths
    return contrast(10.0 * jax.nn.logsumexp(jnp.where(mask, 5.0 * cosines, -1e30), axis=2), "symmetric")


def temporary_bytes(loss, dtype):
    """What loss and gradients hold beside their inputs and outputs, on one device."""
    arrays = [
        jax.ShapeDtypeStruct((BATCH, PATCHES, WIDTH), dtype),
        jax.ShapeDtypeStruct((BATCH, SENTENCES, WIDTH), dtype),
        jax.ShapeDtypeStruct((BATCH, SENTENCES), "bool"),
    ]
    compiled = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(*arrays).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_batch_of_4096_needs_at_most_6_gb_and_a_two_hundredth_of_what_formed_contexts_need(dtype):
    ours, naive = (temporary_bytes(loss, dtype) for loss in (local_alignment, formed))
    assert ours <= 6e9
    assert ours <= naive / 200
