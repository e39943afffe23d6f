"""What chips have to tell each other in one step, by formula, before any compiler is asked."""

import dataclasses
import math

from msfl_jax.config import Config
from msfl_jax.planner.traffic import KINDS

FLOAT32, HALF = 4.0, 2.0


@dataclasses.dataclass(frozen=True)
class Parameters:
    """How many there are: all of them, and those that are split over the mesh's axis fsdp."""

    count: int
    split: int


def sent_by_formula(config: Config, mesh: tuple[int, int, int], parameters: Parameters) -> dict[str, float] | None:
    """Bytes that each chip has to send in a step, by kind of exchange; None where the mesh splits heads, for which there is no formula here.

    Gradients are summed over all copies of a parameter, in float32. Parameters split over fsdp are gathered forward and backward, and their gradients
    come back in parts. Local alignment gathers sentences, in the dtype of its products, and gets their gradients back in parts, in float32, or passes
    them around a ring; global alignment and matching gather both embeddings and get their gradients back, in float32.

    Args:
      config: of the run; the batch is the global one.
      mesh: devices along data, fsdp and tensor, multiplied out.
      parameters: of the model on this mesh.
    """
    data, fsdp, tensor = mesh
    if tensor > 1:
        return None
    sent: dict[str, float] = {kind: 0.0 for kind in KINDS}  # noqa: C420 (keys are any text)
    whole, split = FLOAT32 * (parameters.count - parameters.split), FLOAT32 * parameters.split
    sent["all-reduce"] += 2.0 * whole * _others(data * fsdp) + 2.0 * split / fsdp * _others(data)
    sent["all-gather"] += 2.0 * split * _others(fsdp)
    sent["reduce-scatter"] += split * _others(fsdp)
    _add_embeddings(sent, config, data * fsdp)
    if config.objective.lambda_local:
        _add_sentences(sent, config, data * fsdp)
    return sent


def _add_embeddings(sent: dict[str, float], config: Config, chips: int) -> None:
    """Those of images and reports, to everyone, and their gradients back."""
    embeddings = 2.0 * FLOAT32 * config.data.batch_size * config.model.embedding_width
    sent["all-gather"] += embeddings * _others(chips)
    sent["reduce-scatter"] += embeddings * _others(chips)


def _add_sentences(sent: dict[str, float], config: Config, chips: int) -> None:
    """Sentences of a group of negatives, with the mask that says which exist, and a maximum and a sum of each column of scores."""
    local, batch = config.objective.local_alignment, config.data.batch_size
    group = local.group or batch
    team = math.ceil(group * chips / batch)
    units = group * (config.text.max_sentences + local.include_cls)
    values, item = units * config.model.region_width, HALF if config.model.compute_dtype == "bfloat16" else FLOAT32
    if team == 1:
        return
    sent["all-reduce"] += 2.0 * 2.0 * FLOAT32 * group * _others(team)
    if local.exchange == "ring":
        # Everything goes once around, backward with the gradients that are being summed.
        sent["collective-permute"] += 2.0 * (values * item + units) + values * FLOAT32
        return
    sent["all-gather"] += (values * item + units) * _others(team)
    sent["reduce-scatter"] += values * FLOAT32 * _others(team)


def _others(chips: int) -> float:
    """The share of a ring's data that each of its chips passes on."""
    return (chips - 1) / chips
