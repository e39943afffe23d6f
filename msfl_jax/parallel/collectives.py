"""Scores of a device's images with the reports of all devices, and a log-sum-exp over devices; to be called inside `jax.shard_map`."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

# (regions [A, P, E], sentences [B, S, E], sentence_mask [B, S]) -> scores [A, B]
Scores = Callable[[Array, Array, Array], Array]


class Devices(NamedTuple):
    """The devices along some mesh axes, in teams of consecutive ones that exchange what they hold.

    Attributes:
      axes: of the mesh.
      count: devices along them.
      team: devices of a team; divides `count`.
    """

    axes: tuple[str, ...]
    count: int
    team: int

    @property
    def teams(self) -> list[list[int]] | None:
        """Their members, or None for one team of all."""
        if self.team == self.count:
            return None
        return [list(range(first, first + self.team)) for first in range(0, self.count, self.team)]

    def rank(self) -> Array:
        """This device's place in its team."""
        return jax.lax.axis_index(self.axes) % self.team

    def pass_on(self, value: Array) -> Array:
        """What the next device of the team holds."""
        ring = [(device, self._previous(device)) for device in range(self.count)]
        return jax.lax.ppermute(value, self.axes, ring)

    def logsumexp(self, logits: Float[Array, "b N"]) -> Float[Array, " N"]:
        """Of each column, over the rows of all devices of the team; some row of every column is finite."""
        highest = jax.lax.pmax(jax.lax.stop_gradient(logits).max(axis=0), self.axes, axis_index_groups=self.teams)
        total = jax.lax.psum(jnp.exp(logits - highest).sum(axis=0), self.axes, axis_index_groups=self.teams)
        return jnp.log(total) + highest

    def _previous(self, device: int) -> int:
        first = device - device % self.team
        return first + (device - first - 1) % self.team


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _gather(devices: Devices, rows: Array) -> Any:
    """The rows of the team, in order; backward, each device gets the sum of the gradients of its own, added up in float32 at least."""
    return jax.lax.all_gather(rows, devices.axes, tiled=True, axis_index_groups=devices.teams)


def _gather_forward(devices: Devices, rows: Array) -> tuple[Any, None]:
    return _gather(devices, rows), None


def _gather_backward(devices: Devices, _: None, cotangent: Array) -> tuple[Array]:
    exact = cotangent.astype(jnp.promote_types(cotangent.dtype, jnp.float32))
    summed = jax.lax.psum_scatter(exact, devices.axes, tiled=True, axis_index_groups=devices.teams)
    return (summed.astype(cotangent.dtype),)


_gather.defvjp(_gather_forward, _gather_backward)


def gathered_scores(
    scores: Scores,
    devices: Devices,
    regions: Float[Array, "b P E"],
    sentences: Float[Array, "b S E"],
    mask: Bool[Array, "b S"],
) -> Float[Array, "b N"]:
    """This device's images with the N reports of its team, whose sentences it holds all at once."""
    everyone = jax.lax.all_gather(mask, devices.axes, tiled=True, axis_index_groups=devices.teams)
    return scores(regions, _gather(devices, sentences), everyone)


def ring_scores(
    scores: Scores,
    devices: Devices,
    regions: Float[Array, "b P E"],
    sentences: Float[Array, "b S E"],
    mask: Bool[Array, "b S"],
) -> Float[Array, "b N"]:
    """As `gathered_scores`, holding the sentences of one device at a time.

    They go once around the ring in each pass; backward, the gradient of a shard travels with it and is complete when it is home again, so that
    nothing is kept between the passes but a device's own rows.
    """
    return _ring(scores, devices, regions, sentences, mask)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _ring(scores: Scores, devices: Devices, regions: Array, sentences: Array, mask: Array) -> Any:
    def visit(guests: tuple[Array, Array], _):
        found = scores(regions, *guests)
        return jax.tree.map(devices.pass_on, guests), found

    _, found = jax.lax.scan(visit, (sentences, mask), length=devices.team)
    in_order = jnp.roll(found, devices.rank(), axis=0)  # the k-th visitor is the k-th device from here on
    return jnp.moveaxis(in_order, 0, 1).reshape(len(regions), -1)


def _ring_forward(scores: Scores, devices: Devices, *inputs: Array) -> tuple[Array, tuple[Array, ...]]:
    return _ring(scores, devices, *inputs), inputs


def _ring_backward(scores: Scores, devices: Devices, inputs: tuple[Array, ...], cotangent: Array):
    regions, sentences, mask = inputs
    by_device = jnp.moveaxis(cotangent.reshape(len(regions), devices.team, -1), 1, 0)
    by_visit = jnp.roll(by_device, -devices.rank(), axis=0)
    summed = jnp.promote_types(sentences.dtype, jnp.float32)

    def visit(state: tuple[Array, tuple[Array, Array, Array]], weights: Array):
        d_regions, (guests, present, d_guests) = state
        backward = jax.vjp(lambda images, reports: scores(images, reports, present), regions, guests)[1]
        more_regions, more_guests = backward(weights)
        travelling = (guests, present, d_guests + more_guests)
        return (d_regions + more_regions, jax.tree.map(devices.pass_on, travelling)), None

    nothing = jnp.zeros(regions.shape, summed), (sentences, mask, jnp.zeros(sentences.shape, summed))
    (d_regions, (_, _, d_sentences)), _ = jax.lax.scan(visit, nothing, by_visit)
    return d_regions.astype(regions.dtype), d_sentences.astype(sentences.dtype), None


_ring.defvjp(_ring_forward, _ring_backward)
