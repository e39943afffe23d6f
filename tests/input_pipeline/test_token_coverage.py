"""Coverage of sentences by a vocabulary, against counts made by hand and by encoding."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from input_pipeline.errors import DataError
from input_pipeline.token_coverage import Coverage, check_coverage, coverage
from input_pipeline.tokenizer import train_tokenizer
from input_pipeline.tokenizer_import import import_tokenizer, lower_cases, with_case

TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "no", "heart", "effus", "##ion", "."]


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """The words above lower-cased, and with "No" as it is written."""
    folder = tmp_path_factory.mktemp("imported")
    made = {}
    for name, tokens, lowercase in [("lower", TOKENS, True), ("kept", [*TOKENS, "Heart"], False)]:
        (folder / f"{name}.txt").write_text("".join(f"{token}\n" for token in tokens))
        made[name] = import_tokenizer(folder / f"{name}.txt", folder / name, lowercase=lowercase).tokenizer
    return made


def test_coverage_counted_by_hand(imported):
    sentences = ["No effusion.", "No effusion.", "Heart edema [DEID]."]
    # lower: twice "no effus ##ion .", once "heart [UNK] ."
    assert coverage(imported["lower"], sentences) == Coverage(3, 9, 11, 1, 1 + 3)
    # kept: twice "[UNK] effus ##ion .", once "Heart [UNK] ."
    assert coverage(imported["kept"], sentences) == Coverage(3, 9, 11, 3, 1)


def test_shares_are_per_word():
    found = Coverage(3, 8, 12, 2, 1)
    assert (found.unknown_share, found.pieces_per_word, found.other_case_unknown_share) == (0.25, 1.5, 0.125)
    assert Coverage(0, 0, 0, 0, 0).unknown_share == 0


@given(st.lists(st.text("noheartfusi .E", max_size=20), max_size=5))
def test_pieces_and_unknown_words_are_those_of_the_encoding(imported, sentences):
    for tokenizer in imported.values():
        found = coverage(tokenizer, sentences)
        encoded = [tokenizer.encode_report([text], max_tokens=200, max_sentences=1)[0] for text in sentences]
        assert found.pieces == sum(int((ids != 0).sum()) - 2 for ids in encoded)
        assert found.unknown == sum(int((ids == tokenizer.unknown_id).sum()) for ids in encoded)
        assert found.unknown <= found.words <= found.pieces


def test_a_tokenizer_covers_what_it_was_trained_on(tmp_path):
    sentences = ["No pleural effusion.", "Heart size is normal, T12."]
    found = coverage(train_tokenizer(sentences, tmp_path), sentences)
    assert (found.unknown, found.words, found.pieces) == (0, 11, 11)
    assert check_coverage(found) == ""


def test_few_unknown_words_are_silent_some_warn_and_many_are_refused():
    assert check_coverage(Coverage(1, 1000, 1000, 10, 10)) == ""
    warning = check_coverage(Coverage(1, 1000, 1000, 11, 11))
    assert warning.startswith("1.1% of 1000 words are unknown")
    assert "train one" in warning
    assert check_coverage(Coverage(1, 1000, 1000, 100, 100)).startswith("10.0%")
    with pytest.raises(DataError, match=r"10\.1% of 1000 words .* train one"):
        check_coverage(Coverage(1, 1000, 1000, 101, 101))


def test_the_other_case_is_advised_where_it_knows_more():
    with pytest.raises(DataError, match=r"2\.0% with the other case"):
        check_coverage(Coverage(1, 1000, 1000, 400, 20))


def test_sentences_without_words_are_refused():
    with pytest.raises(DataError, match="no words in 2 sentences"):
        check_coverage(Coverage(2, 0, 0, 0, 0))


NORMALIZERS = st.recursive(
    st.sampled_from([{"type": "Lowercase"}, {"type": "NFKD"}, {"type": "StripAccents"}])
    | st.booleans().map(
        lambda lowercase: {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": lowercase,
        }
    ),
    lambda parts: st.lists(parts, max_size=3).map(lambda chosen: {"type": "Sequence", "normalizers": chosen}),
    max_leaves=5,
)


@given(st.none() | NORMALIZERS, st.booleans())
def test_the_case_of_a_normaliser_can_be_set_whatever_it_is_made_of(normalizer, lowercase):
    changed = with_case(normalizer, lowercase)
    assert lower_cases(changed) is lowercase
    backend = Tokenizer(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]"))
    backend = Tokenizer.from_str(json.dumps(json.loads(backend.to_str()) | {"normalizer": changed}))
    text = backend.normalizer.normalize_str("No CT") if backend.normalizer else "No CT"
    assert text == ("no ct" if lowercase else "No CT")
