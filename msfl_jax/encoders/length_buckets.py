"""Reports read in groups of about their own length, so that less padding is computed; the numbers are those of reading all at full length."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

# (tokens, share): of the rows that are left, shortest first, this share of all rows is cut to so many tokens.
Buckets = Sequence[tuple[int, float]]


def read_by_length(
    encode: Callable[[Int[Array, "N T"]], Float[Array, "N T D"]],
    token_ids: Int[Array, "B T"],
    *,
    buckets: Buckets,
    parts: int = 1,
    copies: int = 1,
) -> Float[Array, "B T D"]:
    """Token states of reports of which the shortest are read at a shorter length.

    Rows are sorted by length within each part and cut into groups of fixed size, so that shapes are known to the compiler. Where a group has a longer
    report than it has room for, all rows are read at full length: the states of real tokens are the same either way, up to rounding.

    Args:
      encode: states of each report by itself, blind to padding (id 0), which stands at the end.
      token_ids: 0 is padding.
      buckets: lengths below T in rising order, with shares that add up to less than 1; the other rows have all T tokens. Empty reads all at once.
      parts: consecutive rows that must not be mixed with others, those of one device, come in so many equal parts.
      copies: so many consecutive rows are one report, of one length, and groups are those of the reports.

    Returns:
      States, 0 or anything where there is padding.
    """
    if not buckets:
        return encode(token_ids)
    rows = token_ids.reshape(parts, -1, token_ids.shape[1])
    order = jnp.argsort(_lengths(rows), axis=1)

    def in_groups(rows: Array) -> Array:
        ordered = jnp.take_along_axis(rows, order[..., None], axis=1)
        states = [_read(encode, ordered[:, first:last, :tokens], rows.shape[2]) for first, last, tokens in groups]
        found = jnp.take_along_axis(
            jnp.concatenate(states, axis=1), jnp.argsort(order, axis=1)[..., None, None], axis=1
        )
        return found.reshape(*token_ids.shape, -1)

    of_reports = _groups(rows.shape[1] // copies, rows.shape[2], buckets)
    groups = [(copies * first, copies * last, tokens) for first, last, tokens in of_reports]
    return jax.lax.cond(_fit(rows, groups), in_groups, lambda _: encode(token_ids), rows)


def read_both(
    encode: Callable[[Int[Array, "N T"]], Float[Array, "N T D"]],
    token_ids: Int[Array, "B T"],
    masked: Int[Array, "B T"],
    *,
    buckets: Buckets,
    parts: int = 1,
) -> tuple[Float[Array, "B T D"], Float[Array, "B T D"]]:
    """`read_by_length` of reports and of the same reports masked, each beside its masked self, on the same device.

    One loop over layers is compiled instead of two, and devices exchange one gradient of it.
    """
    both = jnp.stack([token_ids, masked], axis=1)
    rows = both.reshape(-1, both.shape[2])
    states = read_by_length(encode, rows, buckets=buckets, parts=parts, copies=2).reshape(*both.shape, -1)
    return states[:, 0], states[:, 1]


def useful_tokens(
    token_ids: Int[Array, "B T"], *, buckets: Buckets, parts: int = 1
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Tokens of reports, and tokens that `read_by_length` computes for them, padding included."""
    rows = token_ids.reshape(parts, -1, token_ids.shape[1])
    groups = _groups(rows.shape[1], rows.shape[2], buckets)
    grouped = parts * sum((last - first) * tokens for first, last, tokens in groups)
    computed = jnp.where(_fit(rows, groups), grouped, token_ids.size)
    return (token_ids != 0).sum().astype(jnp.float32), computed.astype(jnp.float32)


def _groups(rows: int, tokens: int, buckets: Buckets) -> list[tuple[int, int, int]]:
    """(first row, one behind the last, tokens) of each group that has rows, shortest first."""
    groups, first = [], 0
    for length, share in (*buckets, (tokens, 1.0)):
        last = min(first + int(rows * share), rows)
        if last > first:
            groups.append((first, last, length))
        first = last
    return groups


def _fit(rows: Int[Array, "parts b T"], groups: Sequence[tuple[int, int, int]]) -> Bool[Array, ""]:
    """Whether no report is longer than its group."""
    ordered = jnp.sort(_lengths(rows), axis=1)
    return jnp.stack([(ordered[:, last - 1] <= tokens).all() for _, last, tokens in groups]).all()


def _lengths(rows: Int[Array, "parts b T"]) -> Int[Array, "parts b"]:
    return (rows != 0).sum(axis=2)


def _read(encode: Callable[[Array], Array], rows: Int[Array, "parts n t"], tokens: int) -> Float[Array, "parts n T D"]:
    """States of one group, with zeros up to `tokens`."""
    states = encode(rows.reshape(-1, rows.shape[2]))
    states = states.reshape(*rows.shape, states.shape[-1])
    return jnp.pad(states, ((0, 0), (0, 0), (0, tokens - rows.shape[2]), (0, 0)))
