"""Pretrains, evaluates and ships a chest-radiograph vision-language foundation model in JAX.

`load` opens a trained model, `Prompts` are what `LoadedModel.zero_shot` asks for.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from msfl_jax.library import LoadedModel, Prompts, load

__all__ = ["LoadedModel", "Prompts", "load"]


def __getattr__(name: str) -> Any:
    """The public names, imported when one is asked for: with them comes JAX, which a program that reads `msfl_jax` for its files can do without."""
    if name in __all__:
        return getattr(importlib.import_module("msfl_jax.library"), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


def __dir__() -> list[str]:
    return __all__
