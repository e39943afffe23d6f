"""WordPiece over report sentences: training, loading, and reports as token ids with the sentence of each token.

A tokenizer is a folder of `tokenizer.json`, `tokenizer_config.json` and `special_tokens_map.json`, which
`transformers.PreTrainedTokenizerFast.from_pretrained` also loads; here only `tokenizers` is needed.
"""

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from input_pipeline.errors import CheckpointError, DataError, UserError
from input_pipeline.sections import DEIDENTIFIED, clean_sentence, split_sentences

PAD, UNKNOWN, CLS, SEP, MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"
SPECIAL_TOKENS = (PAD, UNKNOWN, CLS, SEP, MASK, DEIDENTIFIED)  # ids 0 to 5

_FILE = "tokenizer.json"
_ROLES = {"pad_token": PAD, "unk_token": UNKNOWN, "cls_token": CLS, "sep_token": SEP, "mask_token": MASK}
_RESERVED = re.compile(r"\[(?:PAD|UNK|CLS|SEP|MASK)\]")
_MAX_WORD_CHARACTERS = 100


class ReportTokenizer:
    """A trained tokenizer; pickles as its folder and hash, and opens the folder once in each process that uses it.

    Attributes:
      directory: the folder.
      hash: SHA-256 of `tokenizer.json`, 64 hex digits; what a run's config records.
      vocab_size: number of tokens, special ones included.
      pad_id, unknown_id, cls_id, sep_id, mask_id: ids of the special tokens; `pad_id` is 0.
      special_ids: those and the id of [DEID], ascending; 0 to 5 where the tokenizer was trained here.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = Path(directory)
        self.hash = hashlib.sha256(_read_file(self.directory)).hexdigest()
        self._backend: Tokenizer | None = None
        backend = self.open_backend()
        self.vocab_size = backend.get_vocab_size()
        ids = _special_ids(backend, self.directory)
        self.pad_id, self.unknown_id, self.cls_id, self.sep_id, self.mask_id, _ = ids
        self.special_ids = tuple(sorted(ids))

    @classmethod
    def load(cls, directory: Path | str) -> "ReportTokenizer":
        """Loads a tokenizer folder.

        Raises:
          UserError: no `tokenizer.json` there, special tokens are missing or are read as text, padding is not 0, or ids have gaps.
          CheckpointError: the file is damaged.
        """
        return cls(Path(directory))

    def encode_report(
        self, sentences: Sequence[str], *, max_tokens: int, max_sentences: int
    ) -> tuple[Int32[np.ndarray, "T"], Int32[np.ndarray, "T"]]:
        """Encodes a report as [CLS] sentence 1 ... sentence S [SEP] and padding.

        Only whole sentences enter: one that does not fit into what is left is skipped, and later, shorter ones may still fit.
        Sentences without a token are skipped too. The report may end up as [CLS] [SEP].

        Args:
          sentences: cleaned sentences, in the order wanted.
          max_tokens: T, at least 2.
          max_sentences: largest number of sentences kept.

        Returns:
          Token ids, 0 where there is padding, and the sentence of each token: 1..S, and 0 for special tokens and padding.
        """
        return self._assemble(self._encode(sentences), max_tokens, max_sentences)

    def encode_phrases(
        self, phrases: Sequence[str], *, max_tokens: int, max_sentences: int | None = None
    ) -> tuple[Int32[np.ndarray, "N T"], Int32[np.ndarray, "N T"]]:
        """Encodes each phrase as a report of its own, split into sentences where it holds several; see `encode_report`.

        Unlike a report, a phrase of which no sentence fits is cut to `max_tokens`: a query must not become empty.
        """
        rows = []
        for phrase in phrases:
            encoded = self._encode([clean_sentence(phrase[start:end]) for start, end in split_sentences(phrase)])
            if encoded and min(map(len, encoded)) > max_tokens - 2:
                encoded = [encoded[0][: max_tokens - 2]]
            rows.append(self._assemble(encoded, max_tokens, max_sentences or max_tokens))
        token_ids, sentence_ids = (np.array([row[part] for row in rows], np.int32) for part in (0, 1))
        return token_ids.reshape(len(rows), max_tokens), sentence_ids.reshape(len(rows), max_tokens)

    def words_unknown(self, text: str) -> list[str]:
        """Returns the words of the text that are no token of the vocabulary, so are spelled from pieces or become [UNK]."""
        words = dict.fromkeys(split_words(self.open_backend(), text))
        return [word for word in words if self.open_backend().token_to_id(word) is None]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_backend": None}

    def open_backend(self) -> Tokenizer:
        """Returns the tokenizer of the `tokenizers` library behind this one, opened once per process."""
        if self._backend is None:
            # Reports are short: threads of the backend cost more than they gain, and do not survive a fork.
            os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
            data = _read_file(self.directory)
            if hashlib.sha256(data).hexdigest() != self.hash:
                raise CheckpointError(f"{self.directory / _FILE} has changed since it was loaded; start the run again")
            try:
                backend = Tokenizer.from_buffer(data)
            except Exception as error:  # the only type that `tokenizers` raises
                raise CheckpointError(
                    f"{self.directory / _FILE} is damaged; expected a file of `tokenizers`"
                ) from error
            # Both are stored in the file when a transformers call had set them.
            backend.no_padding()
            backend.no_truncation()
            self._backend = backend
        return self._backend

    def _encode(self, sentences: Sequence[str]) -> list[list[int]]:
        encodings = self.open_backend().encode_batch_fast(
            [_readable(text) for text in sentences], add_special_tokens=False
        )
        return [encoding.ids for encoding in encodings if encoding.ids]

    def _assemble(
        self, encoded: list[list[int]], max_tokens: int, max_sentences: int
    ) -> tuple[Int32[np.ndarray, "T"], Int32[np.ndarray, "T"]]:
        if max_tokens < 2:
            raise UserError(f"found max_tokens {max_tokens}; expected at least 2, for {CLS} and {SEP}")
        token_ids = np.full(max_tokens, self.pad_id, np.int32)
        sentence_ids = np.zeros(max_tokens, np.int32)
        token_ids[0] = self.cls_id
        end, kept = 1, 0
        for ids in encoded:
            if kept < max_sentences and end + len(ids) < max_tokens:
                kept += 1
                token_ids[end : end + len(ids)] = ids
                sentence_ids[end : end + len(ids)] = kept
                end += len(ids)
        token_ids[end] = self.sep_id
        return token_ids, sentence_ids


def train_tokenizer(sentences: Iterable[str], directory: Path | str, *, vocab_size: int = 30000) -> ReportTokenizer:
    """Trains a lower-casing WordPiece vocabulary and writes its folder; the same sentences give the same bytes.

    If all words of the corpus fit, the vocabulary is those words and their characters: the trainer would add every fragment on
    the way to a word, tokens that no sentence ever contains. Otherwise `tokenizers` trains it (Schuster and Nakajima 2012, by
    pair merging).

    Args:
      sentences: cleaned sentences; order does not matter.
      directory: made if absent; a tokenizer in it is replaced.
      vocab_size: largest number of tokens, special ones included.

    Raises:
      DataError: no words at all.
      UserError: `vocab_size` has no room for the characters of the corpus.
    """
    corpus = Counter(_readable(sentence).replace(DEIDENTIFIED, " ") for sentence in sentences)
    words = _count_words(corpus)
    if not words:
        raise DataError("found no words to train a tokenizer on; expected report sentences; check the records")
    base = [*SPECIAL_TOKENS, *_character_pieces(words)]
    if len(base) > vocab_size:
        raise UserError(f"found vocab_size {vocab_size}; expected at least {len(base)}, the characters of the corpus")
    # Characters are in the base already, and WordPiece looks up no word that is longer.
    candidates = [word for word in words if 1 < len(word) <= _MAX_WORD_CHARACTERS]
    whole = sorted(candidates, key=lambda word: (-words[word], word))
    fits = len(base) + len(whole) <= vocab_size
    tokens = base + whole if fits else _train_pieces(corpus, base, vocab_size)
    directory = Path(directory)
    write_folder(_build_backend({token: index for index, token in enumerate(tokens)}), directory)
    return ReportTokenizer.load(directory)


def _special_ids(backend: Tokenizer, directory: Path) -> list[int]:
    """Returns the ids of SPECIAL_TOKENS, in their order, or refuses a tokenizer that batches could not be made with."""
    ids = [index for token in SPECIAL_TOKENS if (index := backend.token_to_id(token)) is not None]
    registered = {added.content for added in backend.get_added_tokens_decoder().values() if added.special}
    missing = [token for token in SPECIAL_TOKENS if backend.token_to_id(token) is None]
    read_as_text = [token for token in SPECIAL_TOKENS if token not in registered]
    if missing:
        found = f"without {', '.join(missing)}"
    elif ids[0] != 0:
        found = f"with {PAD} = {ids[0]}"
    elif read_as_text:
        found = f"that reads {', '.join(read_as_text)} as text"
    elif max(backend.get_vocab().values()) >= backend.get_vocab_size():
        found = f"of {backend.get_vocab_size()} tokens whose ids have gaps"
    else:
        return ids
    expected = f"{' '.join(SPECIAL_TOKENS)} as special tokens, {PAD} = 0, and ids without gaps"
    raise UserError(f"{directory}: found a tokenizer {found}; expected {expected}; train one, or import this one")


def _count_words(corpus: Counter[str]) -> Counter[str]:
    backend = _build_backend({})
    words: Counter[str] = Counter()
    for sentence, count in corpus.items():
        for word in split_words(backend, sentence):
            words[word] += count
    return words


def _character_pieces(words: Iterable[str]) -> list[str]:
    """Returns all characters, then those of words of several characters as continuations, each in sorted order."""
    characters = sorted({character for word in words for character in word})
    inner = sorted({character for word in words if len(word) > 1 for character in word})
    return characters + [f"##{character}" for character in inner]


def _train_pieces(corpus: Counter[str], base: list[str], vocab_size: int) -> list[str]:
    """Trains with `tokenizers`; returns the tokens in the order of their ids.

    The trainer numbers continuation characters in the order of a hash table, and breaks ties between merges by number, so
    that two runs differ. Given as special tokens, in order, they have fixed numbers, and so has everything after them.
    """
    backend = _build_backend({})
    trainer = trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=base, show_progress=False)
    backend.train_from_iterator(_repeat(corpus), trainer)
    ids = backend.get_vocab()
    return sorted(ids, key=ids.__getitem__)


def _repeat(corpus: Counter[str]) -> Iterator[str]:
    for sentence, count in corpus.items():
        yield from [sentence] * count


def _build_backend(vocabulary: dict[str, int]) -> Tokenizer:
    """Returns BERT's uncased pipeline around the vocabulary, special tokens registered where it holds them."""
    model = models.WordPiece(vocabulary, unk_token=UNKNOWN, max_input_chars_per_word=_MAX_WORD_CHARACTERS)
    backend = Tokenizer(model)
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    if vocabulary:
        register_special_tokens(backend)
    return backend


def register_special_tokens(backend: Tokenizer) -> None:
    """Makes SPECIAL_TOKENS special, those that the vocabulary lacks with new ids at its end, and reports begin and end with them."""
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    template = f"{CLS} $A {SEP}"
    backend.post_processor = processors.TemplateProcessing(
        single=template,
        pair=f"{template} $B:1 {SEP}:1",
        special_tokens=[(token, backend.token_to_id(token)) for token in (CLS, SEP)],
    )


def write_folder(backend: Tokenizer, directory: Path) -> None:
    """Writes the folder that `ReportTokenizer.load` reads; `tokenizer.json` comes last, so that a folder that has it is whole."""
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **_ROLES}
    roles = {**_ROLES, "additional_special_tokens": [DEIDENTIFIED]}
    directory.mkdir(parents=True, exist_ok=True)
    texts = {
        "tokenizer_config.json": json.dumps(config, indent=2) + "\n",
        "special_tokens_map.json": json.dumps(roles, indent=2) + "\n",
        _FILE: backend.to_str(pretty=True) + "\n",
    }
    for name, text in texts.items():
        partial = directory / f"{name}.partial"
        partial.write_text(text, encoding="utf-8")
        partial.replace(directory / name)


def split_words(backend: Tokenizer, text: str) -> list[str]:
    """Returns the words that the vocabulary is asked for, normalised, punctuation marks among them; [DEID] is no word."""
    plain = _readable(text).replace(DEIDENTIFIED, " ")
    normalised = backend.normalizer.normalize_str(plain) if backend.normalizer else plain
    return [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(normalised)]


def _readable(text: str) -> str:
    """Makes text safe to encode: lone surrogates become "?", and special tokens that are spelled out lose their meaning."""
    if not text.isascii():
        text = text.encode("utf-8", "replace").decode("utf-8")
    return _RESERVED.sub(lambda match: match[0].lower(), text) if "[" in text else text


def _read_file(directory: Path) -> bytes:
    path = directory / _FILE
    if not path.is_file():
        raise UserError(f"{path} does not exist; expected the folder of a trained tokenizer")
    return path.read_bytes()
