"""Vocabularies of other models as tokenizer folders of our own, ids unchanged: a `vocab.txt`, a `tokenizer.json`, or a folder with either.

Nothing but those files and the JSON settings beside them is read: no code of a model folder is run and nothing is fetched. What our reports need
and the vocabulary lacks ([SEP], [MASK], [DEID]) gets new ids at its end, so that an imported word table only has to grow by rows at its end.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from input_pipeline.errors import DataError, UserError
from input_pipeline.sections import DEIDENTIFIED
from input_pipeline.tokenizer import (
    CLS,
    MASK,
    PAD,
    SEP,
    SPECIAL_TOKENS,
    UNKNOWN,
    ReportTokenizer,
    register_special_tokens,
    write_folder,
)

_MAX_BYTES = 64 * 2**20
# Key of the settings files, then names that other vocabularies use; "___" is how MIMIC-CXR's reports write what was removed.
_OTHER_NAMES = {
    PAD: ("pad_token", "<pad>"),
    UNKNOWN: ("unk_token", "<unk>"),
    CLS: ("cls_token", "<s>", "<cls>"),
    SEP: ("sep_token", "</s>", "<sep>"),
    MASK: ("mask_token", "<mask>"),
    DEIDENTIFIED: ("", "___"),
}
_SETTINGS = ("config.json", "special_tokens_map.json", "tokenizer_config.json")  # what comes later counts


class Imported(NamedTuple):
    """An imported tokenizer and what there is to say about it.

    Attributes:
      tokenizer: loaded from the new folder.
      lowercase: whether it lower-cases text.
      added: special tokens that the vocabulary lacked; their ids are its last ones.
      notes: one line each, for the user: tokens added and renamed, and the case where it is not what the files say.
    """

    tokenizer: ReportTokenizer
    lowercase: bool
    added: tuple[str, ...]
    notes: tuple[str, ...]


class _Foreign(NamedTuple):
    """The pipeline as `tokenizers` writes it, what the settings say, and whether text is to be lower-cased where anything says so."""

    pipeline: dict[str, Any]
    settings: Mapping[str, Any]
    lowercase: bool | None


def import_tokenizer(path: Path | str, directory: Path | str, *, lowercase: bool | None = None) -> Imported:
    """Makes a tokenizer folder from a WordPiece vocabulary of another model; every token keeps its id.

    Special tokens of other names are renamed to ours, in place: those that the settings name, `<s>`, `</s>` and the like, and `___` for [DEID].

    Args:
      path: a `vocab.txt`, a `tokenizer.json` (of any name that ends in .json), or a folder with one of them, the second preferred.
      directory: made if absent; a tokenizer in it is replaced.
      lowercase: None follows the files, or, where they do not say, the vocabulary: lower case unless it has tokens with capitals.

    Raises:
      UserError: no such file, no WordPiece vocabulary, padding that is not id 0, no unknown token, or `lowercase=False` for a vocabulary
        without capitals.
      DataError: a file is damaged, or its ids have gaps or repeat.
    """
    path, directory = Path(path), Path(directory)
    if directory.resolve() in (path.resolve(), path.resolve().parent):
        raise UserError(f"{directory}: is the folder to import from; expected another one for the result")
    pipeline, settings, declared = _open(path)
    vocabulary = _vocabulary(pipeline, path)
    notes = _rename_special_tokens(pipeline, vocabulary, settings, path)
    case, said = _choose_case(lowercase, declared, vocabulary, path)
    pipeline["normalizer"] = with_case(pipeline["normalizer"], case)
    backend = _finish(pipeline)
    if any(backend.token_to_id(token) != index for token, index in vocabulary.items()):
        raise DataError(f"{path}: the ids of added tokens do not follow those of the vocabulary; expected ids in order")
    added = tuple(token for token in SPECIAL_TOKENS if token not in vocabulary)
    if added:
        ids = ", ".join(f"{token} = {backend.token_to_id(token)}" for token in added)
        notes.append(f"added at the end: {ids}; a word table of {len(vocabulary)} rows needs {len(added)} more")
    write_folder(backend, directory)
    return Imported(ReportTokenizer.load(directory), case, added, (*notes, *said))


def lower_cases(normalizer: Mapping[str, Any] | None) -> bool:
    """Whether a normaliser, as `tokenizer.json` describes it, lower-cases text."""
    if normalizer is None:
        return False
    if normalizer["type"] == "Sequence":
        return any(lower_cases(part) for part in normalizer["normalizers"])
    return normalizer["type"] == "Lowercase" or bool(normalizer.get("lowercase"))


def with_case(normalizer: Mapping[str, Any] | None, lowercase: bool) -> dict[str, Any] | None:
    """The same normaliser, but with or without lower-casing."""
    if lower_cases(normalizer) == lowercase:
        return None if normalizer is None else dict(normalizer)
    if normalizer is None:
        return {"type": "Lowercase"}
    if normalizer["type"] == "BertNormalizer":
        return {**normalizer, "lowercase": lowercase}
    parts = normalizer["normalizers"] if normalizer["type"] == "Sequence" else [normalizer]
    if lowercase:
        return {"type": "Sequence", "normalizers": [*parts, {"type": "Lowercase"}]}
    kept = [with_case(part, False) for part in parts if part["type"] != "Lowercase"]
    return {"type": "Sequence", "normalizers": [part for part in kept if part is not None]}


def _open(path: Path) -> _Foreign:
    if path.is_file():
        return _from_json(path, {}) if path.suffix == ".json" else _from_lines(path, {}, {})
    if not path.is_dir():
        raise UserError(
            f"{path}: no such file or folder; expected a local vocab.txt, tokenizer.json or folder: nothing is fetched"
        )
    settings: dict[str, Any] = {}
    for name in _SETTINGS:
        if (path / name).is_file():
            settings |= _read_json(path / name)
    if (path / "tokenizer.json").is_file():
        return _from_json(path / "tokenizer.json", settings)
    if (path / "vocab.txt").is_file():
        added = path / "added_tokens.json"
        return _from_lines(path / "vocab.txt", settings, _read_json(added) if added.is_file() else {})
    raise UserError(
        f"{path}: neither vocab.txt nor tokenizer.json is in it; expected a WordPiece tokenizer (code of the folder is never run)"
    )


def _from_json(path: Path, settings: Mapping[str, Any]) -> _Foreign:
    """Reads a `tokenizer.json`; `do_lower_case` of the settings counts more than its normaliser, as in transformers."""
    text = _read_text(path)
    try:
        backend = Tokenizer.from_str(text)
        pipeline = json.loads(backend.to_str())  # the present format, whatever version the file has
    except Exception as error:  # the only type that `tokenizers` raises
        raise DataError(
            f"{path} is damaged or no file of `tokenizers`; expected a tokenizer.json; fetch it again"
        ) from error
    if pipeline["model"]["type"] != "WordPiece":
        kind = pipeline["model"]["type"]
        raise UserError(f"{path}: found a tokenizer of type {kind}; expected WordPiece, as BERT models have")
    if pipeline["pre_tokenizer"] is None:
        raise UserError(f"{path}: found a tokenizer that does not split text into words; expected a pre_tokenizer")
    return _Foreign(pipeline, settings, _declared_case(settings, lower_cases(pipeline["normalizer"])))


def _from_lines(path: Path, settings: Mapping[str, Any], more: Mapping[str, Any]) -> _Foreign:
    """Reads one token per line into BERT's pipeline; `more` are added tokens and their ids."""
    lines = _read_text(path).removesuffix("\n").split("\n")
    vocabulary = {token: index for index, token in enumerate(lines)}
    if len(vocabulary) < len(lines):
        repeated = next(number for number, token in enumerate(lines) if vocabulary[token] != number)
        raise DataError(f"{path}: line {repeated + 1} is repeated further down; expected each token once")
    unknown = _declared_name(settings, "unk_token")
    model = models.WordPiece(vocabulary, unk_token=unknown or UNKNOWN, max_input_chars_per_word=100)
    backend = Tokenizer(model)
    backend.normalizer = normalizers.BertNormalizer(
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True) is not False,
        strip_accents=_flag(settings, "strip_accents"),
        lowercase=True,
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    pipeline = json.loads(backend.to_str())
    pipeline["added_tokens"] = [_added(*item) for item in more.items()]
    return _Foreign(pipeline, settings, _declared_case(settings, None))


def _added(token: str, index: Any) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    return {"id": index if isinstance(index, int) else -1, "content": token, **flags}


def _vocabulary(pipeline: Mapping[str, Any], path: Path) -> dict[str, int]:
    """Returns all tokens with their ids, added ones included."""
    vocabulary: dict[str, int] = dict(pipeline["model"]["vocab"])
    vocabulary |= {added["content"]: added["id"] for added in pipeline["added_tokens"]}
    if sorted(vocabulary.values()) != list(range(len(vocabulary))):
        last = max(vocabulary.values(), default=-1)
        raise DataError(
            f"{path}: found {len(vocabulary)} tokens with ids up to {last}; expected ids from 0 without gaps"
        )
    return vocabulary


def _rename_special_tokens(
    pipeline: dict[str, Any], vocabulary: dict[str, int], settings: Mapping[str, Any], path: Path
) -> list[str]:
    """Gives special tokens our names, in place; returns notes.

    Raises:
      UserError: there is no unknown token, or padding is not id 0: batches are padded with 0, and other ids belong to other rows of word tables.
    """
    notes = []
    for token in SPECIAL_TOKENS:
        name = _find_special(token, vocabulary, settings, pipeline["model"]["unk_token"])
        if name in (None, token):
            continue
        if token in vocabulary:
            raise UserError(
                f"{path}: both {token} and '{name}' are in the vocabulary as {_OTHER_NAMES[token][0]}; remove one"
            )
        vocabulary[token] = vocabulary.pop(name)
        notes.append(f"'{name}' (id {vocabulary[token]}) is now {token}")
        _rename(pipeline, name, token)
    pipeline["model"]["unk_token"] = UNKNOWN
    if vocabulary.get(PAD) != 0:
        found = f"id {vocabulary[PAD]}" if PAD in vocabulary else "no such token"
        raise UserError(f"{path}: found {found} for padding; expected {PAD} with id 0, as BERT vocabularies have it")
    if UNKNOWN not in pipeline["model"]["vocab"]:  # as an added token it would not stand for unknown words
        raise UserError(f"{path}: found no token for unknown words; expected {UNKNOWN}")
    return notes


def _find_special(token: str, vocabulary: Mapping[str, int], settings: Mapping[str, Any], unknown: str) -> str | None:
    """Returns the name under which the vocabulary holds a special token: what the files say, ours, or one that is usual elsewhere."""
    key, *usual = _OTHER_NAMES[token]
    candidates = [_declared_name(settings, key), unknown if token == UNKNOWN else None, token, *usual]
    taken = set(SPECIAL_TOKENS) - {token}
    return next((name for name in candidates if name in vocabulary and name not in taken), None)


def _rename(pipeline: dict[str, Any], name: str, token: str) -> None:
    words = pipeline["model"]["vocab"]
    if name in words:
        words[token] = words.pop(name)
    for added in pipeline["added_tokens"]:
        if added["content"] == name:
            added["content"] = token


def _choose_case(
    lowercase: bool | None, declared: bool | None, vocabulary: Mapping[str, int], path: Path
) -> tuple[bool, list[str]]:
    """Whether to lower-case, and what to say about it."""
    cased = _has_capitals(vocabulary)
    if lowercase is False and not cased:
        raise UserError(
            f"{path}: the vocabulary has no capitals, so each word with one would become {UNKNOWN}; leave lowercase out"
        )
    wanted = lowercase if lowercase is not None else declared
    if wanted is None:
        return not cased, [
            f"lower-cases: {_say(not cased)}, because the vocabulary has {'' if cased else 'no '}capitals"
        ]
    if not wanted and not cased:
        return True, ["lower-cases: yes, although the files say no: the vocabulary has no capitals"]
    if wanted and cased:
        return True, [
            "lower-cases: yes, so that tokens with capitals are never used; give lowercase=False if that is wrong"
        ]
    return wanted, []


def _say(yes: bool) -> str:
    return "yes" if yes else "no"


def _has_capitals(vocabulary: Mapping[str, int]) -> bool:
    """Whether at least one token in 100 has a capital letter; names such as [unused7] and <s> do not count."""
    words = [token for token in vocabulary if not (token[:1] in "[<" and token[-1:] in "]>")]
    return sum(token != token.lower() for token in words) * 100 >= max(1, len(words))


def _finish(pipeline: dict[str, Any]) -> Tokenizer:
    """Returns the backend of a renamed pipeline, with our special tokens and no padding or truncation of its own."""
    for added in pipeline["added_tokens"]:
        if added["content"] in SPECIAL_TOKENS:
            added |= {"special": True, "normalized": False, "single_word": False, "lstrip": False, "rstrip": False}
    pipeline |= {"post_processor": None, "padding": None, "truncation": None}
    backend = Tokenizer.from_str(json.dumps(pipeline))
    register_special_tokens(backend)
    return backend


def _declared_case(settings: Mapping[str, Any], otherwise: bool | None) -> bool | None:
    declared = _flag(settings, "do_lower_case")
    return otherwise if declared is None else declared


def _flag(settings: Mapping[str, Any], key: str) -> bool | None:
    value = settings.get(key)
    return value if isinstance(value, bool) else None


def _declared_name(settings: Mapping[str, Any], key: str) -> str | None:
    """Name of a special token in the settings: a string, or an object with `content`."""
    value = settings.get(key)
    value = value.get("content") if isinstance(value, Mapping) else value
    return value if isinstance(value, str) else None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(_read_text(path))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is damaged; expected JSON; fetch it again") from error
    if not isinstance(values, dict):
        raise DataError(f"{path}: found a {type(values).__name__}; expected a JSON object")
    return values


def _read_text(path: Path) -> str:
    size = path.stat().st_size
    if size > _MAX_BYTES:
        raise DataError(f"{path}: found {size} bytes; expected a vocabulary of at most {_MAX_BYTES}")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start} is not UTF-8; expected a text file; fetch it again") from error
