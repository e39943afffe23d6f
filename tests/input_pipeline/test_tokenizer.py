"""Token ids against transformers, sentence ids against per-sentence encoding, training against itself in other processes."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from input_pipeline import tokenizer as tokenizer_module
from input_pipeline.errors import CheckpointError, DataError, UserError
from input_pipeline.sections import report_sentences
from input_pipeline.tokenizer import SPECIAL_TOKENS, ReportTokenizer, train_tokenizer

CORPUS = [
    "The heart is normal in size.",
    "No pleural effusion or pneumothorax.",
    "There is a 5.3 cm opacity in the left lower lobe.",
    "Seen by Dr. [DEID] at 3 p.m.",
    "Mild pulmonary edema, slightly worse than on [DEID].",
    "No edema.",
]
SYLLABLES = [
    "pa",
    "ne",
    "um",
    "tho",
    "rax",
    "ef",
    "fu",
    "sion",
    "car",
    "dia",
    "lun",
    "op",
    "a",
    "ci",
    "ty",
    "le",
    "ft",
    "x",
]


def many_words():
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(SYLLABLES, rng.integers(2, 5))) for _ in range(1500)]
    return [" ".join(rng.choice(words, 8)) + "." for _ in range(800)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return train_tokenizer(CORPUS, tmp_path_factory.mktemp("words"))


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    """A tokenizer whose corpus has more words than fit."""
    return train_tokenizer(many_words(), tmp_path_factory.mktemp("pieces"), vocab_size=400)


def vocabulary(directory):
    return json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]


def test_special_tokens_come_first_and_pad_is_zero(tokenizer, pieces):
    for made in (tokenizer, pieces):
        ids = vocabulary(made.directory)
        assert [ids[token] for token in SPECIAL_TOKENS] == [0, 1, 2, 3, 4, 5]
        assert (made.pad_id, made.unknown_id, made.cls_id, made.sep_id, made.mask_id) == (0, 1, 2, 3, 4)
        assert sorted(ids.values()) == list(range(made.vocab_size))


def test_a_small_corpus_gives_its_words_and_characters_and_no_fragments(tokenizer):
    words = {
        word
        for text in CORPUS
        for word in text.lower().replace("[deid]", "").replace(",", " ").replace(".", " ").split()
    }
    learned = {token for token in vocabulary(tokenizer.directory) if len(token.removeprefix("##")) > 1}
    assert learned - set(SPECIAL_TOKENS) == {word for word in words if len(word) > 1}


def test_a_large_corpus_fills_the_vocabulary_and_leaves_no_word_unknown(pieces):
    assert pieces.vocab_size == 400
    token_ids, _ = pieces.encode_report(many_words()[:5], max_tokens=400, max_sentences=5)
    assert pieces.unknown_id not in token_ids
    assert (token_ids == pieces.sep_id).sum() == 1


@pytest.mark.parametrize("vocab_size", [400, 30_000])
def test_training_gives_the_same_bytes_in_any_process_and_order(tmp_path, vocab_size):
    corpus = many_words()
    code = (
        "import sys, json; from input_pipeline.tokenizer import train_tokenizer\n"
        "print(train_tokenizer(json.load(sys.stdin), sys.argv[1], vocab_size=int(sys.argv[2])).hash)"
    )
    root = Path(tokenizer_module.__file__).parents[1]
    hashes = {train_tokenizer(corpus, tmp_path / "here", vocab_size=vocab_size).hash}
    for run in range(3):
        corpus = corpus[::-1] if run else corpus
        command = [sys.executable, "-c", code, str(tmp_path / str(run)), str(vocab_size)]
        result = subprocess.run(command, input=json.dumps(corpus), capture_output=True, text=True, check=True, cwd=root)
        hashes.add(result.stdout.strip())
    assert len(hashes) == 1


@pytest.mark.parametrize("kind", ["tokenizer", "pieces"])
def test_transformers_loads_the_folder_and_gives_the_same_ids(kind, request):
    from transformers import PreTrainedTokenizerFast

    ours = request.getfixturevalue(kind)
    theirs = PreTrainedTokenizerFast.from_pretrained(ours.directory, local_files_only=True)
    assert theirs.pad_token_id == 0
    assert {theirs.cls_token_id, theirs.sep_token_id, theirs.mask_token_id} == {2, 3, 4}
    assert set(SPECIAL_TOKENS) == set(theirs.all_special_tokens)
    for text in [*CORPUS, *many_words()[:50], "Caf\u00e9 UNSEEN words: [DEID][DEID] (T12)?", "x" * 150]:
        token_ids, _ = ours.encode_report([text], max_tokens=300, max_sentences=1)
        assert theirs(text)["input_ids"] == token_ids[token_ids != 0].tolist()


def test_deidentified_names_are_one_token(tokenizer):
    token_ids, _ = tokenizer.encode_report(["seen by [DEID]."], max_tokens=16, max_sentences=1)
    assert (token_ids == 5).sum() == 1


def test_sentence_means_give_the_units_of_the_oracle(tmp_path):
    text = "x\n FINDINGS: no effusion. heart normal."
    doubled = "x\n FINDINGS: no effusion.. heart normal."
    trained = train_tokenizer(["no effusion.", "heart normal."], tmp_path)
    for report, expected in [(text, [0, 2.0, 5.0]), (doubled, [0, 2.5, 6.0])]:
        token_ids, sentence_ids = trained.encode_report(report_sentences(report), max_tokens=10, max_sentences=4)
        states = np.arange(10.0)
        units = [states[0]] + [states[sentence_ids == index].mean() for index in range(1, sentence_ids.max() + 1)]
        assert token_ids[0] == trained.cls_id
        assert units == expected


def test_a_sentence_that_does_not_fit_is_skipped_whole_and_a_shorter_one_still_enters(tokenizer):
    long, short = CORPUS[2], CORPUS[5]
    token_ids, sentence_ids = tokenizer.encode_report([short, long, short], max_tokens=10, max_sentences=9)
    alone = tokenizer.encode_report([short], max_tokens=5, max_sentences=1)[0][1:4]
    np.testing.assert_array_equal(token_ids, [2, *alone, *alone, 3, 0, 0])
    np.testing.assert_array_equal(sentence_ids, [0, 1, 1, 1, 2, 2, 2, 0, 0, 0])


def test_reports_without_a_sentence_that_fits_are_cls_and_sep(tokenizer):
    for sentences, max_tokens in [([], 4), (["   "], 4), ([CORPUS[2]], 6), ([CORPUS[5]], 2)]:
        token_ids, sentence_ids = tokenizer.encode_report(sentences, max_tokens=max_tokens, max_sentences=3)
        assert token_ids.tolist() == [2, 3] + [0] * (max_tokens - 2)
        assert not sentence_ids.any()


def test_no_more_than_max_sentences_are_kept(tokenizer):
    _, sentence_ids = tokenizer.encode_report(CORPUS, max_tokens=64, max_sentences=2)
    assert sentence_ids.max() == 2


TEXTS = st.one_of(st.sampled_from(CORPUS), st.text(max_size=30), st.text("ab .,5[]_DEIDPAD", max_size=20))


@settings(max_examples=300)
@given(st.lists(TEXTS, max_size=6), st.integers(2, 40), st.integers(1, 6))
def test_every_report_holds_whole_sentences_in_order_and_padding_only_at_its_end(
    shared, sentences, max_tokens, max_sentences
):
    token_ids, sentence_ids = shared.encode_report(sentences, max_tokens=max_tokens, max_sentences=max_sentences)
    assert token_ids.shape == sentence_ids.shape == (max_tokens,)
    assert token_ids.dtype == sentence_ids.dtype == np.int32
    length = int((token_ids != 0).sum())
    assert (token_ids[:length] != 0).all()
    assert token_ids[0] == shared.cls_id
    assert token_ids[length - 1] == shared.sep_id
    inner = sentence_ids[1 : length - 1]
    assert sentence_ids[0] == 0
    assert not sentence_ids[length - 1 :].any()
    assert (np.diff(np.concatenate([[0], inner])) >= 0).all()
    assert (np.diff(np.concatenate([[0], inner])) <= 1).all()
    assert (inner > 0).all()
    assert inner.max(initial=0) <= max_sentences
    alone = [shared.encode_report([text], max_tokens=400, max_sentences=1) for text in sentences]
    alone = [ids[parts == 1].tolist() for ids, parts in alone]
    # Each kept sentence is one of the given, whole, and they are in the given order.
    remaining = iter(alone)
    for index in range(1, inner.max(initial=0) + 1):
        assert token_ids[sentence_ids == index].tolist() in remaining


@pytest.fixture(scope="module")
def shared(tokenizer):
    return tokenizer


def test_special_tokens_that_a_report_spells_out_are_plain_text(tokenizer):
    token_ids, _ = tokenizer.encode_report(["no [PAD] edema [CLS] [MASK] [SEP] [UNK]"], max_tokens=64, max_sentences=1)
    length = int((token_ids != 0).sum())
    assert (token_ids[:length] != 0).all()
    assert [(token_ids == index).sum() for index in (2, 3, 4)] == [1, 1, 0]


def test_phrases_are_one_report_each_split_into_their_sentences(tokenizer):
    phrases = ["no edema", "No edema. The heart is normal", "seen by ___"]
    token_ids, sentence_ids = tokenizer.encode_phrases(phrases, max_tokens=12)
    assert token_ids.shape == sentence_ids.shape == (3, 12)
    assert sentence_ids.max(axis=1).tolist() == [1, 2, 1]
    np.testing.assert_array_equal(
        token_ids[1], tokenizer.encode_report(["No edema.", "The heart is normal"], max_tokens=12, max_sentences=2)[0]
    )
    assert 5 in token_ids[2]


def test_a_phrase_that_does_not_fit_is_cut_and_never_empty(tokenizer):
    token_ids, sentence_ids = tokenizer.encode_phrases([CORPUS[2]], max_tokens=6)
    whole, _ = tokenizer.encode_phrases([CORPUS[2]], max_tokens=40)
    assert token_ids[0].tolist() == [*whole[0, :5].tolist(), tokenizer.sep_id]
    assert sentence_ids[0].tolist() == [0, 1, 1, 1, 1, 0]


def test_no_phrases_give_no_rows(tokenizer):
    token_ids, sentence_ids = tokenizer.encode_phrases([], max_tokens=6)
    assert token_ids.shape == sentence_ids.shape == (0, 6)


def test_words_outside_the_vocabulary_are_named_once(tokenizer):
    assert tokenizer.words_unknown("Normal heart, kidney and [DEID] Kidney") == ["kidney", "and"]
    assert tokenizer.words_unknown(" ".join(CORPUS)) == []


def test_pickling_keeps_the_ids_and_opens_the_folder_again(tokenizer):
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy._backend is None
    assert copy.hash == tokenizer.hash
    first, second = (made.encode_report(CORPUS, max_tokens=32, max_sentences=9) for made in (tokenizer, copy))
    np.testing.assert_array_equal(first, second)
    assert len(pickle.dumps(tokenizer)) < 2000


def test_a_folder_that_changes_under_a_worker_is_refused(tmp_path):
    frozen = pickle.dumps(train_tokenizer(CORPUS, tmp_path))
    train_tokenizer(CORPUS[:2], tmp_path)
    with pytest.raises(CheckpointError, match="changed"):
        pickle.loads(frozen).encode_report(CORPUS, max_tokens=8, max_sentences=1)


def test_padding_that_another_library_stored_does_not_stick(tmp_path):
    trained = train_tokenizer(CORPUS, tmp_path)
    path = tmp_path / "tokenizer.json"
    stored = json.loads(path.read_text(encoding="utf-8"))
    stored["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    stored["padding"] = {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0}
    stored["padding"] |= {"pad_type_id": 0, "pad_token": "[PAD]"}
    expected = trained.encode_report(CORPUS, max_tokens=32, max_sentences=9)
    path.write_text(json.dumps(stored), encoding="utf-8")
    loaded = ReportTokenizer.load(tmp_path).encode_report(CORPUS, max_tokens=32, max_sentences=9)
    np.testing.assert_array_equal(expected, loaded)


def test_folders_that_are_no_tokenizer_are_refused_in_one_line(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        ReportTokenizer.load(tmp_path)
    train_tokenizer(CORPUS, tmp_path)
    path = tmp_path / "tokenizer.json"
    whole = path.read_text(encoding="utf-8")
    path.write_text(whole[: len(whole) // 2], encoding="utf-8")
    with pytest.raises(CheckpointError, match="damaged"):
        ReportTokenizer.load(tmp_path)
    path.write_text(whole.replace("[SEP]", "[END]"), encoding="utf-8")
    with pytest.raises(UserError, match=r"without \[SEP\]"):
        ReportTokenizer.load(tmp_path)


def test_folders_that_no_batch_could_be_made_with_are_refused_in_one_line(tmp_path):
    train_tokenizer(CORPUS, tmp_path)
    path = tmp_path / "tokenizer.json"
    whole = json.loads(path.read_text(encoding="utf-8"))

    def refuses(change, message):
        changed = json.loads(json.dumps(whole))
        change(changed, changed["model"]["vocab"])
        path.write_text(json.dumps(changed), encoding="utf-8")
        with pytest.raises(UserError, match=message) as refused:
            ReportTokenizer.load(tmp_path)
        assert "\n" not in str(refused.value)

    def without_deid(stored, vocabulary):
        stored["added_tokens"].pop()
        vocabulary["word"] = vocabulary.pop("[DEID]")

    def exchange(stored, vocabulary):
        vocabulary["[PAD]"], vocabulary["[UNK]"] = 1, 0

    refuses(without_deid, r"without \[DEID\]; .* or import this one")
    refuses(exchange, r"with \[PAD\] = 1")
    refuses(lambda stored, _: stored["added_tokens"].pop(), r"reads \[DEID\] as text")
    refuses(lambda stored, _: stored["added_tokens"][3].update(special=False), r"reads \[SEP\] as text")
    refuses(lambda _, vocabulary: vocabulary.update(late=len(vocabulary) + 1), "ids have gaps")


def test_a_corpus_without_words_and_a_vocabulary_without_room_are_refused(tmp_path):
    with pytest.raises(DataError, match="no words"):
        train_tokenizer(["", "[DEID]"], tmp_path)
    with pytest.raises(UserError, match="vocab_size 20"):
        train_tokenizer(CORPUS, tmp_path, vocab_size=20)
