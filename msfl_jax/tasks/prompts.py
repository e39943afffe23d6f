"""Prompt sets of zero-shot classification: JSON files of positive and negative sentences per finding."""

import importlib.resources
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from input_pipeline.errors import UserError
from msfl_jax.config import nearest

SIDES = ("positive", "negative")


@dataclass(frozen=True)
class Prompts:
    """Sentences that say that a finding is there, and sentences that say that it is not; at least one of each."""

    positive: tuple[str, ...]
    negative: tuple[str, ...]


def shipped_prompts() -> dict[str, Traversable]:
    """The prompt sets that come with the package, by bare name."""
    folder = importlib.resources.files("msfl_jax.tasks").joinpath("prompts")
    files = sorted(folder.iterdir(), key=lambda file: file.name) if folder.is_dir() else []
    return {file.name.removesuffix(".json"): file for file in files if file.name.endswith(".json")}


def load_prompts(name_or_path: str | Path) -> dict[str, Prompts]:
    """Reads a prompt set.

    Args:
      name_or_path: the bare name of a shipped set, or a JSON file `{finding: {"positive": [...], "negative": [...]}}`.

    Returns:
      Prompts by finding, in the file's order. Findings are named like the labels of a build.

    Raises:
      UserError: there is no such set or file, or it holds something else.
    """
    known = shipped_prompts()
    source = known.get(str(name_or_path)) or Path(name_or_path)
    try:
        values = json.loads(source.read_text(encoding="utf-8"))
    except OSError as error:
        hint = nearest(str(name_or_path), known)
        raise UserError(
            f"prompts: no set '{name_or_path}'{hint}; expected a JSON file or one of {', '.join(known)}"
        ) from error
    except ValueError as error:
        raise UserError(
            f"prompts: {source} is no JSON file ({type(error).__name__}); see the shipped sets for an example"
        ) from error
    if not isinstance(values, Mapping) or not values:
        raise UserError(
            f"prompts: {source} holds no findings; expected {{finding: {{positive: [...], negative: [...]}}}}"
        )
    return {finding: _read_prompts(finding, sides, str(source)) for finding, sides in values.items()}


def _read_prompts(finding: str, sides: Any, source: str) -> Prompts:
    """The two lists of one finding, checked."""
    if not isinstance(sides, Mapping):
        raise UserError(
            f"prompts: {source}: '{finding}' is a {type(sides).__name__}; expected keys positive and negative"
        )
    for key in sides:
        if key not in SIDES:
            raise UserError(f"prompts: {source}: '{finding}' has unknown key '{key}'{nearest(str(key), SIDES)}")
    for side in SIDES:
        texts = sides.get(side)
        if (
            not isinstance(texts, list)
            or not texts
            or not all(isinstance(text, str) and text.strip() for text in texts)
        ):
            raise UserError(f"prompts: {source}: '{finding}' has no usable '{side}'; expected a list of sentences")
    return Prompts(tuple(sides["positive"]), tuple(sides["negative"]))
