"""Imported vocabularies against transformers on the same files; missing, renamed and damaged parts; planted code that must not run."""

import contextlib
import json
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import BertTokenizer, PreTrainedTokenizerFast

from input_pipeline.errors import DataError, UserError
from input_pipeline.sections import clean_sentence
from input_pipeline.tokenizer import SPECIAL_TOKENS, ReportTokenizer
from input_pipeline.tokenizer_import import import_tokenizer

UNUSED = [f"[unused{index}]" for index in range(3)]
PLACED = ["[PAD]", *UNUSED, "[UNK]", "[CLS]", "[SEP]", "[MASK]"]  # as in BERT, words from id 8
WORDS = [
    "no",
    "pleural",
    "effusion",
    "heart",
    "##s",
    "##ia",
    "pneumon",
    "5",
    "3",
    "t",
    "##12",
    ".",
    ",",
    "-",
    "cafe",
    "s",
]
CAPITALS = ["No", "The", "Heart", "T", "P", "##NE", "CT", "caf\u00e9"]
LETTERS = [chr(code) for code in range(ord("a"), ord("z") + 1)]
UNCASED = [
    *PLACED,
    *WORDS,
    *(letter for letter in LETTERS if letter not in WORDS),
    *(f"##{x}" for x in LETTERS if x != "s"),
]
CASED = [*UNCASED, *CAPITALS]
SENTENCES = [
    "No pleural effusions, T12 5.3 - Heart.",
    "Caf\u00e9 pneumonia, QRX",
    "",
    "\u4e2d\u6587 x\u0301 \ufffd \u00a0y",
]
TEXTS = st.one_of(
    st.sampled_from(SENTENCES),
    st.text(max_size=30).map(lambda text: text.replace("[", "(")),
    st.text("abNHT .,5-\u00e9", max_size=20),
)


def write_vocabulary(path, tokens):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8")
    return path


def write_folder(folder, tokens, **files):
    """A model folder: vocab.txt, and one JSON file per keyword."""
    write_vocabulary(folder / "vocab.txt", tokens)
    for name, values in files.items():
        (folder / f"{name}.json").write_text(json.dumps(values))
    return folder


def word_piece(vocabulary, unknown="[UNK]"):
    """A pipeline such as MaCo's: other normaliser and pre-tokeniser than BERT's, no post-processor."""
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token=unknown))
    steps = [normalizers.Lowercase(), normalizers.NFKD(), normalizers.StripAccents()]
    backend.normalizer = normalizers.Sequence(steps)
    splits = [pre_tokenizers.Whitespace(), pre_tokenizers.Digits(individual_digits=True)]
    backend.pre_tokenizer = pre_tokenizers.Sequence(splits)
    backend.decoder = decoders.WordPiece()
    return backend


def numbered(tokens):
    return {token: index for index, token in enumerate(tokens)}


def ids(tokenizer, text):
    """Ids of a text between [CLS] and [SEP], padding removed."""
    token_ids, sentence_ids = tokenizer.encode_report([text], max_tokens=400, max_sentences=1)
    assert (sentence_ids > 0).sum() == max(0, (token_ids != 0).sum() - 2)
    return token_ids[token_ids != 0].tolist()


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Per case: ours and transformers' tokenizer of the same vocab.txt."""
    made = {}
    for name, tokens, lowercase in [("uncased", UNCASED, True), ("cased", CASED, False), ("mixed", CASED, True)]:
        folder = tmp_path_factory.mktemp(name)
        path = write_vocabulary(folder / "vocab.txt", tokens)
        ours = import_tokenizer(path, folder / "ours", lowercase=lowercase).tokenizer
        made[name] = ours, BertTokenizer.from_pretrained(folder, do_lower_case=lowercase, local_files_only=True)
    return made


@pytest.mark.parametrize("name", ["uncased", "cased", "mixed"])
@settings(max_examples=150)
@given(text=TEXTS)
def test_a_vocabulary_file_gives_the_ids_of_transformers(pairs, name, text):
    ours, theirs = pairs[name]
    assert ids(ours, text) == theirs(text)["input_ids"]


def test_every_token_keeps_its_id_and_what_is_missing_comes_last(pairs):
    for name, tokens in [("uncased", UNCASED), ("cased", CASED)]:
        ours, _ = pairs[name]
        assert ours.open_backend().get_vocab() == numbered([*tokens, "[DEID]"])
        assert ours.vocab_size == len(tokens) + 1
        assert (ours.pad_id, ours.unknown_id, ours.cls_id, ours.sep_id, ours.mask_id) == (0, 4, 5, 6, 7)
        assert ours.special_ids == (0, 4, 5, 6, 7, len(tokens))


@pytest.mark.parametrize("name", ["uncased", "cased"])
def test_transformers_loads_the_new_folder_with_the_same_ids(pairs, name):
    ours, theirs = pairs[name]
    again = PreTrainedTokenizerFast.from_pretrained(ours.directory, local_files_only=True)
    assert set(again.all_special_tokens) == set(SPECIAL_TOKENS)
    assert [again.pad_token_id, again.cls_token_id, again.sep_token_id, again.mask_token_id] == [0, 5, 6, 7]
    for text in SENTENCES:
        assert again(text)["input_ids"] == theirs(text)["input_ids"]
    assert again("seen by [DEID].")["input_ids"] == ids(ours, "seen by [DEID].")


def test_deidentified_names_are_one_token(pairs):
    ours, _ = pairs["uncased"]
    token_ids, _ = ours.encode_phrases(["no ___ effusion"], max_tokens=10)
    vocabulary = numbered(UNCASED)
    assert token_ids[0].tolist() == [5, vocabulary["no"], len(UNCASED), vocabulary["effusion"], 6, 0, 0, 0, 0, 0]


def test_reports_are_assembled_with_the_ids_of_the_file(pairs):
    ours, _ = pairs["uncased"]
    vocabulary = numbered(UNCASED)
    token_ids, sentence_ids = ours.encode_report(["no effusion", "heart", "."], max_tokens=8, max_sentences=2)
    words = [vocabulary[word] for word in ("no", "effusion", "heart")]
    np.testing.assert_array_equal(token_ids, [5, *words, 6, 0, 0, 0])
    np.testing.assert_array_equal(sentence_ids, [0, 1, 1, 2, 0, 0, 0, 0])


def test_what_was_added_is_said_with_its_ids(tmp_path):
    made = import_tokenizer(write_vocabulary(tmp_path / "vocab.txt", UNCASED), tmp_path / "out")
    assert made.added == ("[DEID]",)
    assert made.lowercase
    assert f"[DEID] = {len(UNCASED)}" in made.notes[0]
    assert f"{len(UNCASED)} rows needs 1 more" in made.notes[0]
    assert all("\n" not in note for note in made.notes)


@pytest.mark.parametrize("setting", ["tokenizer_config", "config"])
def test_a_bert_folder_follows_its_settings(tmp_path, setting):
    folder = write_folder(tmp_path / "bert", CASED, **{setting: {"do_lower_case": True, "model_type": "bert"}})
    made = import_tokenizer(folder, tmp_path / "out")
    theirs = BertTokenizer.from_pretrained(folder, do_lower_case=True, local_files_only=True)
    assert made.lowercase
    assert "never used" in made.notes[-1]
    assert ids(made.tokenizer, SENTENCES[0]) == theirs(SENTENCES[0])["input_ids"]


def test_accents_and_chinese_characters_follow_the_settings(tmp_path):
    options = {"do_lower_case": False, "strip_accents": True, "tokenize_chinese_chars": False}
    folder = write_folder(tmp_path / "bert", CASED, tokenizer_config=options)
    ours = import_tokenizer(folder, tmp_path / "out").tokenizer
    theirs = BertTokenizer.from_pretrained(folder, local_files_only=True)
    for text in ["caf\u00e9", "\u4e2dno", *SENTENCES]:
        assert ids(ours, text) == theirs(text)["input_ids"]


def test_added_tokens_of_a_slow_tokenizer_keep_their_ids(tmp_path):
    extra = {"[DEID]": len(UNCASED), "pneumothorax": len(UNCASED) + 1}
    folder = write_folder(tmp_path / "bert", UNCASED, tokenizer_config={}, added_tokens=extra)
    made = import_tokenizer(folder, tmp_path / "out")
    assert made.added == ()
    assert ids(made.tokenizer, "no pneumothorax [DEID]")[2:] == [len(UNCASED) + 1, len(UNCASED), 6]
    write_folder(tmp_path / "bert", UNCASED, tokenizer_config={}, added_tokens={"pneumothorax": len(UNCASED) + 1})
    with pytest.raises(DataError, match="gaps"):
        import_tokenizer(tmp_path / "bert", tmp_path / "out")


def test_the_case_is_read_from_the_vocabulary_where_nothing_says_it(tmp_path):
    for name, tokens, expected in [("uncased", UNCASED, True), ("cased", CASED, False)]:
        made = import_tokenizer(write_vocabulary(tmp_path / name / "vocab.txt", tokens), tmp_path / name / "out")
        assert made.lowercase is expected
        assert "because the vocabulary" in made.notes[-1]


def test_an_uncased_vocabulary_lower_cases_even_where_its_settings_say_no(tmp_path):
    folder = write_folder(tmp_path / "bert", UNCASED, tokenizer_config={"do_lower_case": False})
    wrong = BertTokenizer.from_pretrained(folder, local_files_only=True)
    assert wrong.unk_token_id in wrong("No effusion")["input_ids"]
    made = import_tokenizer(folder, tmp_path / "out")
    assert made.lowercase
    assert "although the files say no" in made.notes[-1]
    assert made.tokenizer.unknown_id not in ids(made.tokenizer, "No effusion")
    with pytest.raises(UserError, match="has no capitals"):
        import_tokenizer(folder, tmp_path / "other", lowercase=False)
    assert not (tmp_path / "other").exists()


def test_a_folder_that_transformers_wrote_gives_the_same_ids(tmp_path):
    path = write_vocabulary(tmp_path / "vocab.txt", CASED)
    theirs = BertTokenizer.from_pretrained(path.parent, do_lower_case=False, local_files_only=True)
    theirs.add_tokens(["pneumothorax", AddedToken("lobe", single_word=True)])
    theirs("no", padding="max_length", max_length=9, truncation=True)  # sticks to what is saved
    theirs.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "tokenizer.json").is_file()
    made = import_tokenizer(tmp_path / "saved", tmp_path / "out")
    for text in [*SENTENCES, "pneumothorax lobe lobes. No lobe " * 5]:
        assert ids(made.tokenizer, text) == theirs(text, padding=False, truncation=False)["input_ids"]
    assert not made.lowercase
    assert made.added == ("[DEID]",)


def test_a_folder_of_our_own_is_imported_as_it_is(tmp_path, pairs):
    ours, _ = pairs["uncased"]
    made = import_tokenizer(ours.directory, tmp_path / "out")
    assert (made.added, made.notes, made.tokenizer.hash) == ((), (), ours.hash)


PLANTED = "import pathlib\npathlib.Path(__file__).with_name('ran').touch()\nclass CXRBertTokenizer: pass\n"


def test_code_of_a_folder_is_never_run_and_nothing_is_asked(tmp_path, monkeypatch):
    auto_map = {"AutoTokenizer": ["configuration_cxrbert.CXRBertTokenizer", None]}
    settings = {"do_lower_case": True, "tokenizer_class": "CXRBertTokenizer", "auto_map": auto_map}
    model = {"model_type": "cxr-bert", "auto_map": {"AutoConfig": "configuration_cxrbert.CXRBertConfig"}}
    folder = write_folder(tmp_path / "cxr-bert", UNCASED, tokenizer_config=settings, config=model)
    (folder / "configuration_cxrbert.py").write_text(PLANTED)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on stdin"))
    monkeypatch.syspath_prepend(str(folder))
    made = import_tokenizer(folder, tmp_path / "out")
    theirs = BertTokenizer(vocab=numbered(UNCASED), do_lower_case=True)
    assert ids(made.tokenizer, SENTENCES[0]) == theirs(SENTENCES[0])["input_ids"]
    assert not (folder / "ran").exists()
    assert "configuration_cxrbert" not in sys.modules
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


MACO = ["[PAD]", "[UNK]", "[CLS]", "[MASK]", "no", "effusion", "___", "5", ".", "t", "1", "2"]


def test_a_vocabulary_without_sep_gets_one_at_its_end(tmp_path):
    backend = word_piece(numbered(MACO))
    backend.save(str(tmp_path / "mimic_wordpiece.json"))
    made = import_tokenizer(tmp_path / "mimic_wordpiece.json", tmp_path / "out")
    assert made.added == ("[SEP]",)
    assert made.notes == (
        "'___' (id 6) is now [DEID]",
        "added at the end: [SEP] = 12; a word table of 12 rows needs 1 more",
    )
    assert made.tokenizer.special_ids == (0, 1, 2, 3, 6, 12)
    for text in ["No effusion 5.5", "T12 \u00e9ffusion"]:
        assert ids(made.tokenizer, text) == [2, *backend.encode(text).ids, 12]
    # What these models saw for a removed name is what they see now.
    assert ids(made.tokenizer, clean_sentence("no ___.")) == [2, *backend.encode("no ___.").ids, 12]


def test_special_tokens_of_other_names_keep_their_ids(tmp_path):
    tokens = ["<pad>", "<s>", "</s>", "<unk>", "<mask>", "no", "effusion"]
    backend = word_piece(numbered(tokens), "<unk>")
    backend.add_special_tokens(tokens[:5])
    backend.save(str(tmp_path / "tokenizer.json"))
    made = import_tokenizer(tmp_path / "tokenizer.json", tmp_path / "out")
    assert made.tokenizer.open_backend().get_vocab() == numbered(
        ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]", "no", "effusion", "[DEID]"]
    )
    assert "'<s>' (id 1) is now [CLS]" in made.notes
    assert ids(made.tokenizer, "no effusion heart <s>") == [1, 5, 6, 3, 3, 3, 3, 2]


def test_names_that_the_settings_give_count_before_usual_ones(tmp_path):
    tokens = ["!pad", "!unk", "!start", "!end", "no", "<s>"]
    roles = {"pad_token": "!pad", "unk_token": {"content": "!unk"}, "cls_token": "!start", "sep_token": "!end"}
    folder = write_folder(tmp_path / "bert", tokens, special_tokens_map=roles)
    made = import_tokenizer(folder, tmp_path / "out")
    assert made.added == ("[MASK]", "[DEID]")
    assert (made.tokenizer.unknown_id, made.tokenizer.cls_id, made.tokenizer.sep_id) == (1, 2, 3)
    (folder / "special_tokens_map.json").write_text(json.dumps({**roles, "sep_token": "[SEP]"}))
    assert import_tokenizer(folder, tmp_path / "out").added == ("[SEP]", "[MASK]", "[DEID]")


def test_two_tokens_for_one_purpose_are_refused(tmp_path):
    folder = write_folder(tmp_path / "bert", [*UNCASED, "<start>"], special_tokens_map={"cls_token": "<start>"})
    with pytest.raises(UserError, match=r"both \[CLS\] and '<start>'"):
        import_tokenizer(folder, tmp_path / "out")


@pytest.mark.parametrize(
    "tokens, message",
    [
        (["[UNK]", "[PAD]", "no"], "id 1 for padding"),
        (["[UNK]", "[CLS]", "no"], "no such token for padding"),
        (["[PAD]", "[CLS]", "no"], "no token for unknown words"),
        (["[PAD]", "[UNK]", "no", "effusion", "no"], "line 3 is repeated"),
        (["The heart is normal.", "No effusion."], "no such token for padding"),
        ([], "no such token for padding"),
    ],
)
def test_vocabularies_that_no_batch_could_be_made_with_are_refused_in_one_line(tmp_path, tokens, message):
    with pytest.raises((UserError, DataError), match=message) as refused:
        import_tokenizer(write_vocabulary(tmp_path / "vocab.txt", tokens), tmp_path / "out")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_a_roberta_like_tokenizer_is_refused(tmp_path):
    backend = Tokenizer(models.BPE({"<s>": 0, "<pad>": 1, "</s>": 2, "a": 3, "<unk>": 4}, [], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel()
    backend.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match="type BPE; expected WordPiece"):
        import_tokenizer(tmp_path, tmp_path / "out")


def test_gaps_between_ids_and_a_missing_pre_tokenizer_are_refused(tmp_path):
    word_piece({"[PAD]": 0, "[UNK]": 1, "no": 3}).save(str(tmp_path / "gap.json"))
    with pytest.raises(DataError, match="3 tokens with ids up to 3"):
        import_tokenizer(tmp_path / "gap.json", tmp_path / "out")
    Tokenizer(models.WordPiece({"[PAD]": 0, "[UNK]": 1}, unk_token="[UNK]")).save(str(tmp_path / "bare.json"))
    with pytest.raises(UserError, match="does not split"):
        import_tokenizer(tmp_path / "bare.json", tmp_path / "out")


def test_places_without_a_tokenizer_are_refused_and_the_hub_is_not_asked(tmp_path):
    with pytest.raises(UserError, match="nothing is fetched"):
        import_tokenizer("bert-base-uncased", tmp_path / "out")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "tokenization_custom.py").write_text(PLANTED)
    with pytest.raises(UserError, match="never run"):
        import_tokenizer(tmp_path / "folder", tmp_path / "out")
    path = write_vocabulary(tmp_path / "bert" / "vocab.txt", UNCASED)
    for source in (path, path.parent):
        with pytest.raises(UserError, match="another one for the result"):
            import_tokenizer(source, path.parent)


def test_damaged_files_are_refused(tmp_path, pairs):
    ours, _ = pairs["uncased"]
    whole = (ours.directory / "tokenizer.json").read_bytes()
    broken = tmp_path / "tokenizer.json"
    for data in (whole[: len(whole) // 2], b"", b"[]", b"null", b'{"model": 3}', b"\xff\xfe\x00", b"[" * 10**5):
        broken.write_bytes(data)
        with pytest.raises(DataError, match=r"damaged|not UTF-8"):
            import_tokenizer(broken, tmp_path / "out")
    for text in ("[", "[1]", "3"):
        folder = write_folder(tmp_path / "bert", UNCASED)
        (folder / "tokenizer_config.json").write_text(text)
        with pytest.raises(DataError, match="expected"):
            import_tokenizer(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@settings(max_examples=200)
@given(st.data())
def test_a_tokenizer_file_with_one_part_changed_is_loaded_or_refused(pairs, tmp_path_factory, data):
    """No other exception, and what is loaded can encode."""
    ours, _ = pairs["uncased"]
    pipeline = json.loads((ours.directory / "tokenizer.json").read_text(encoding="utf-8"))
    paths = [(key,) for key in pipeline] + [("model", key) for key in pipeline["model"]]
    paths += [("added_tokens", 0, key) for key in pipeline["added_tokens"][0]] + [("normalizer", "lowercase")]
    *parents, last = data.draw(st.sampled_from(paths))
    part = pipeline
    for key in parents:
        part = part[key]
    values = [None, 0, -1, 7, 10**9, "", "x", "[PAD]", [], {}, True, {"type": "Lowercase"}, {"type": "Whitespace"}]
    part[last] = data.draw(st.sampled_from(values))
    folder = tmp_path_factory.mktemp("changed")
    (folder / "tokenizer.json").write_text(json.dumps(pipeline))
    with contextlib.suppress(UserError, DataError):
        made = import_tokenizer(folder, folder / "out").tokenizer
        assert ids(made, "no effusion [DEID]")[0] == made.cls_id


def test_the_result_is_replaced_whole_and_can_be_loaded_alone(tmp_path):
    for tokens in (CASED, UNCASED):
        made = import_tokenizer(write_vocabulary(tmp_path / "vocab.txt", tokens), tmp_path / "out")
        assert ReportTokenizer.load(tmp_path / "out").hash == made.tokenizer.hash
    assert made.tokenizer.vocab_size == len(UNCASED) + 1
