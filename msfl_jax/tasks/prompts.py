"""Prompt sets of zero-shot classification: JSON files of positive and negative sentences per finding."""

import hashlib
import importlib.resources
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from input_pipeline.errors import UserError
from msfl_jax.config_build import nearest

SIDES = ("positive", "negative")
ABOUT, SYNONYMS, PLACE = "about", "synonyms", "{finding}"

# The set of each data set that has label names, or a use of words, of its own; by the name of its builds.
OWN_SETS = {
    "chexpert": "chexpert",
    "nih_chestxray14": "nih",
    "nih_boxes": "nih",
    "rsna_pneumonia": "rsna",
    "siim_acr": "siim",
}


@dataclass(frozen=True, init=False)
class Prompts:
    """Sentences that say that a finding is there, and sentences that say that it is not; at least one of each."""

    positive: tuple[str, ...]
    negative: tuple[str, ...]

    def __init__(self, positive: str | Iterable[str], negative: str | Iterable[str]) -> None:
        """Takes a sentence or several for each side.

        Raises:
          UserError: a side has none.
        """
        for name, side in (("positive", positive), ("negative", negative)):
            sentences = (side,) if isinstance(side, str) else tuple(side)
            if not sentences:
                raise UserError(f"prompts: found no {name} sentence; expected at least one")
            object.__setattr__(self, name, sentences)


def shipped_prompts() -> dict[str, Traversable]:
    """The prompt sets that come with the package, by bare name."""
    folder = importlib.resources.files("msfl_jax.tasks").joinpath("prompts")
    files = sorted(folder.iterdir(), key=lambda file: file.name) if folder.is_dir() else []
    return {file.name.removesuffix(".json"): file for file in files if file.name.endswith(".json")}


def load_prompts(name_or_path: str | Path) -> dict[str, Prompts]:
    """Reads a prompt set.

    Args:
      name_or_path: the bare name of a shipped set, or a JSON file `{finding: {"positive": [...], "negative": [...]}}`. A finding may have
        "synonyms": then each sentence with `{finding}` in it stands for one sentence per synonym (without synonyms: for one with the finding's name
        in lower case). The key "about" holds a remark.

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
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"prompts: {source} is no JSON file ({type(error).__name__}); see the shipped sets for an example"
        ) from error
    findings = {key: sides for key, sides in values.items() if key != ABOUT} if isinstance(values, Mapping) else {}
    if not findings:
        raise UserError(
            f"prompts: {source} holds no findings; expected {{finding: {{positive: [...], negative: [...]}}}}"
        )
    return {finding: _read_prompts(finding, sides, str(source)) for finding, sides in findings.items()}


def choose_set(own: str, build: str, labels: Sequence[str]) -> str:
    """The prompt set for a build where none is asked for: the run's own, unless it has no label of the build and the data set has a set of its own.

    Args:
      own: the run's set, by name or path.
      build: name in the build's manifest.
      labels: of the build.

    Raises:
      UserError: the run's set does not exist.
    """
    return own if load_prompts(own).keys() & set(labels) else OWN_SETS.get(build, own)


def prompts_hash(prompts: Mapping[str, Prompts]) -> str:
    """First 16 hex digits of the SHA-256 of all sentences: equal for sets that ask the same."""
    values = {finding: [list(sides.positive), list(sides.negative)] for finding, sides in prompts.items()}
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]


def _read_prompts(finding: str, sides: Any, source: str) -> Prompts:
    """The two lists of one finding, checked, with synonyms put in their places."""
    if not isinstance(sides, Mapping):
        raise UserError(
            f"prompts: {source}: '{finding}' is a {type(sides).__name__}; expected keys positive and negative"
        )
    known = (*SIDES, SYNONYMS)
    for key in sides:
        if key not in known:
            raise UserError(f"prompts: {source}: '{finding}' has unknown key '{key}'{nearest(str(key), known)}")
    for key in known:
        texts = sides.get(key, [finding.lower()] if key == SYNONYMS else None)
        if (
            not isinstance(texts, list)
            or not texts
            or not all(isinstance(text, str) and text.strip() for text in texts)
        ):
            expected = "words" if key == SYNONYMS else "sentences"
            raise UserError(f"prompts: {source}: '{finding}' has no usable '{key}'; expected a list of {expected}")
    synonyms = sides.get(SYNONYMS, [finding.lower()])
    positive, negative = (_spell_out(sides[side], synonyms) for side in SIDES)
    return Prompts(positive, negative)


def _spell_out(texts: Sequence[str], synonyms: Sequence[str]) -> tuple[str, ...]:
    """Each text once, or once per synonym where it has a place for one."""
    return tuple(text.replace(PLACE, word) for text in texts for word in (synonyms if PLACE in text else synonyms[:1]))
