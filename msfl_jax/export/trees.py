"""Nested parameters as arrays by path and back, blocks apart even where a model has them stacked."""

from collections.abc import Iterable, Mapping
from itertools import takewhile
from typing import Any

import numpy as np


def flatten(tree: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Arrays by path ("vision/blocks_0/fc1/kernel"); stacked blocks are cut into their layers."""
    return _apart({path: np.asarray(leaf) for path, leaf in leaves(tree)})


def shapes(tree: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """As `flatten`, of arrays that hold no memory: only their shapes and dtypes are the tree's."""
    return _apart({path: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape) for path, leaf in leaves(tree)})


def unflatten(flat: Mapping[str, np.ndarray], like: Mapping[str, Any]) -> dict[str, Any]:
    """A nested dictionary of the arrays that there are.

    Args:
      flat: by path, blocks apart.
      like: arrays or shapes; where it has blocks stacked they are stacked, up to the first layer that is not there.
    """
    tree: dict[str, Any] = {}
    for path, leaf in leaves(like):
        layers = [path]
        if _stacked(path):
            layers = [path.replace("blocks/", f"blocks_{i}/", 1) for i in range(leaf.shape[0])]
        found = [flat[layer] for layer in takewhile(flat.__contains__, layers)]
        if found:
            _put(tree, path, np.stack(found) if _stacked(path) else found[0])
    return tree


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Path and leaf of a nested dictionary, in its order."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{name}/")
        else:
            yield prefix + name, value


def _stacked(path: str) -> bool:
    return "/blocks/" in f"/{path}"


def _apart(flat: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    result: dict[str, np.ndarray] = {}
    for path, array in flat.items():
        names = [path.replace("blocks/", f"blocks_{i}/", 1) for i in range(len(array))] if _stacked(path) else [path]
        result |= dict(zip(names, array if _stacked(path) else [array], strict=True))
    return result


def _put(tree: dict[str, Any], path: str, array: np.ndarray) -> None:
    *sections, leaf = path.split("/")
    for section in sections:
        tree = tree.setdefault(section, {})
    tree[leaf] = array
