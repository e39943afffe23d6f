"""How well a tokenizer's vocabulary covers a data set's sentences: unknown words, and pieces per word."""

import json
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from tokenizers import Tokenizer

from input_pipeline.errors import DataError
from input_pipeline.tokenizer import UNKNOWN, ReportTokenizer, split_words
from input_pipeline.tokenizer_import import lower_cases, with_case

WARN_ABOVE, REFUSE_ABOVE = 0.01, 0.10  # share of words that are unknown


class Coverage(NamedTuple):
    """What became of the words of some sentences; a punctuation mark or number is a word, [DEID] is none.

    Attributes:
      sentences: how many were looked at.
      words: how many, repetitions included.
      pieces: tokens that the words became.
      unknown: words that became [UNK].
      other_case_unknown: words that would, if text were lower-cased where the tokenizer does not, and not where it does.
    """

    sentences: int
    words: int
    pieces: int
    unknown: int
    other_case_unknown: int

    @property
    def unknown_share(self) -> float:
        """Share of the words that are [UNK]."""
        return self.unknown / max(1, self.words)

    @property
    def other_case_unknown_share(self) -> float:
        """Share that would be [UNK] with the other case."""
        return self.other_case_unknown / max(1, self.words)

    @property
    def pieces_per_word(self) -> float:
        """1 where every word is a token of its own, or unknown."""
        return self.pieces / max(1, self.words)


def coverage(tokenizer: ReportTokenizer, sentences: Iterable[str]) -> Coverage:
    """Counts the words of cleaned sentences (a sample of a build will do) that a tokenizer does not know."""
    corpus = Counter(sentences)
    backend = tokenizer.open_backend()
    words, pieces, unknown = _count(backend, corpus)
    _, _, other = _count(_other_case(backend), corpus)
    return Coverage(corpus.total(), words, pieces, unknown, other)


def check_coverage(found: Coverage) -> str:
    """Returns a line that warns of more than 1 % unknown words, "" where there are fewer.

    Raises:
      DataError: more than 10 % are unknown, or there is no word at all.
    """
    if not found.words:
        raise DataError(f"found no words in {found.sentences} sentences; expected report sentences; check the build")
    if found.unknown_share <= WARN_ABOVE:
        return ""
    message = f"{found.unknown_share:.1%} of {found.words} words are unknown to the tokenizer; expected at most {WARN_ABOVE:.0%}"
    if found.other_case_unknown_share < found.unknown_share / 2:
        advice = f"{found.other_case_unknown_share:.1%} with the other case: import it again with the other `lowercase`"
    else:
        advice = "use a vocabulary made for radiology reports, or train one"
    if found.unknown_share > REFUSE_ABOVE:
        raise DataError(f"{message}; {advice}")
    return f"{message}; {advice}"


def _count(backend: Tokenizer, corpus: Counter[str]) -> tuple[int, int, int]:
    """Returns words, pieces and unknown words, with repetitions; each distinct word is looked up once."""
    counts: Counter[str] = Counter()
    for sentence, times in corpus.items():
        for word in split_words(backend, sentence):
            counts[word] += times
    pieces = {word: [token.value for token in backend.model.tokenize(word)] for word in counts}
    unknown = sum(times for word, times in counts.items() if UNKNOWN in pieces[word])
    return counts.total(), sum(times * len(pieces[word]) for word, times in counts.items()), unknown


def _other_case(backend: Tokenizer) -> Tokenizer:
    pipeline = json.loads(backend.to_str())
    pipeline["normalizer"] = with_case(pipeline["normalizer"], not lower_cases(pipeline["normalizer"]))
    return Tokenizer.from_str(json.dumps(pipeline))
