"""Fewer layers and fewer words leave the rest as it was."""

from __future__ import annotations

import copy
from itertools import product

import numpy as np
import pytest
import torch
from conftest import SENTENCES
from transformers import DistilBertConfig, DistilBertModel

from common.errors import InputError
from shrinking.layers import keep_layers, narrow_layers, parse_layers, use_relu
from shrinking.vocabulary import choose_tokens, cut_vocabulary
from tokens.backbone import Backbone
from training.whole_encoder import WholeEncoder


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_first_layers_give_the_hidden_states_of_the_whole_backbone(tiny_bert, count):
    whole = Backbone(str(tiny_bert), str(count))
    expected = [
        tokens.mean(0) for _, tokens in sorted(whole.token_embeddings(whole.tokenize(SENTENCES)[0]), key=lambda own: own[0])
    ]
    cut = Backbone(str(tiny_bert))
    keep_layers(cut, range(count))
    embeddings = WholeEncoder(cut).encode(SENTENCES).numpy()
    np.testing.assert_allclose(embeddings, [mean / np.linalg.norm(mean) for mean in expected], atol=1e-5)
    assert cut.model.config.num_hidden_layers == count


def test_other_layers_are_put_one_on_the_other(tiny_bert):
    cut, by_hand = Backbone(str(tiny_bert)), Backbone(str(tiny_bert))
    keep_layers(cut, [2, 0])
    by_hand.model.encoder.layer[0], by_hand.model.encoder.layer[1] = by_hand.model.encoder.layer[2], by_hand.model.encoder.layer[0]
    del by_hand.model.encoder.layer[2]
    assert torch.equal(WholeEncoder(cut).encode(SENTENCES), WholeEncoder(by_hand).encode(SENTENCES))


def test_without_layers_an_embedding_is_the_mean_of_its_tokens_in_any_order(tiny_bert):
    backbone = Backbone(str(tiny_bert))
    keep_layers(backbone, [])
    encoder, table = WholeEncoder(backbone, train_words=True), backbone.model.get_input_embeddings().weight.detach()
    assert not table[backbone.tokenizer.all_special_ids].any() and table.abs().sum(1).gt(0).sum() == len(table) - 5
    ids = backbone.tokenize(["the dog sat"])[0][0]
    mean = table[ids].mean(0)
    torch.testing.assert_close(encoder.encode(["the dog sat"])[0], mean / mean.norm())
    torch.testing.assert_close(*encoder.encode(["the dog sat", "sat dog the"]))


def test_inner_dimensions_without_weight_are_cut_first_and_change_nothing(tiny_bert):
    whole, cut = Backbone(str(tiny_bert)), Backbone(str(tiny_bert))
    for backbone in (whole, cut):
        for number, block in enumerate(backbone.model.encoder.layer):
            block.output.dense.weight.data[:, number::4] = 0
    narrow_layers(cut, 24)
    assert cut.model.config.intermediate_size == 24
    assert {block.intermediate.dense.weight.shape for block in cut.model.encoder.layer} == {(24, 16)}
    torch.testing.assert_close(WholeEncoder(cut).encode(SENTENCES), WholeEncoder(whole).encode(SENTENCES))


def test_another_activation_and_fewer_inner_dimensions_are_saved_with_the_backbone(tiny_bert, tmp_path):
    cut = Backbone(str(tiny_bert))
    narrow_layers(cut, 20)
    use_relu(cut)
    cut.model.save_pretrained(tmp_path)
    cut.tokenizer.save_pretrained(tmp_path)
    loaded = Backbone(str(tmp_path))
    assert torch.equal(WholeEncoder(loaded).encode(SENTENCES), WholeEncoder(cut).encode(SENTENCES))
    tokens = torch.randn(5, 16)
    block = loaded.model.encoder.layer[0].intermediate
    assert torch.equal(block(tokens), block.dense(tokens).clamp(min=0))
    assert not torch.equal(WholeEncoder(Backbone(str(tiny_bert))).encode(SENTENCES), WholeEncoder(cut).encode(SENTENCES))


def test_blocks_that_cannot_be_cut_are_one_clear_line(tiny_bert, tiny_qwen, tmp_path):
    with pytest.raises(InputError, match="--intermediate_size is 33, expected at most the 32 of "):
        narrow_layers(Backbone(str(tiny_bert)), 33)
    distilbert = DistilBertModel(DistilBertConfig(vocab_size=19, dim=16, n_layers=2, n_heads=2, hidden_dim=32))
    distilbert.save_pretrained(tmp_path)
    Backbone(str(tiny_bert)).tokenizer.save_pretrained(tmp_path)
    for folder, change in product((tiny_qwen, tmp_path), (use_relu, lambda backbone: narrow_layers(backbone, 8))):
        with pytest.raises(InputError, match=r"cannot tell the feed-forward blocks of .*, expected a BERT-like encoder"):
            change(Backbone(str(folder)))


@pytest.mark.parametrize(
    ("text", "expected"), [("all", [0, 1, 2, 3, 4, 5]), ("none", []), ("0,2,4", [0, 2, 4]), ("5, 1", [5, 1]), ("0", [0])]
)
def test_layers_are_named(text, expected):
    assert parse_layers(text, 6) == expected


@pytest.mark.parametrize("text", ["6", "-1", "0,0", "", "first", "0,,1", "1.5"])
def test_other_names_of_layers_are_one_clear_line(text):
    with pytest.raises(InputError, match=r"--layers is .*expected all, none, or different numbers of 0 to 5"):
        parse_layers(text, 6)


def test_words_that_are_kept_give_the_same_embeddings(tiny_bert):
    whole, cut = Backbone(str(tiny_bert)), Backbone(str(tiny_bert))
    kept = choose_tokens(cut, ["a dog sat", "dog"], 5 + 1 + 2)
    names = {token: name for name, token in whole.tokenizer.get_vocab().items()}
    assert {names[token] for token in kept} == {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "sat"}
    cut_vocabulary(cut, kept)
    assert len(cut.tokenizer) == cut.model.get_input_embeddings().num_embeddings == cut.model.config.vocab_size == 8
    for sentence in ("a dog sat", "sat sat a", ""):
        assert torch.equal(WholeEncoder(cut).encode([sentence]), WholeEncoder(whole).encode([sentence]))
        ids = cut.tokenize([sentence])[0][0]
        assert cut.tokenizer.convert_ids_to_tokens(ids) == whole.tokenizer.convert_ids_to_tokens(whole.tokenize([sentence])[0][0])
    assert cut.tokenizer.convert_ids_to_tokens(cut.tokenize(["the dog"])[0][0]) == ["[CLS]", "[UNK]", "dog", "[SEP]"]


def test_a_long_word_that_is_left_out_falls_into_pieces():
    whole = Backbone()
    cut = copy.copy(whole)
    kept = choose_tokens(whole, ["the cat sat on the mat"], 23_000)
    cut.model, cut.tokenizer = copy.deepcopy(whole.model), copy.deepcopy(whole.tokenizer)
    cut_vocabulary(cut, kept)
    text = "Quick brown foxes, naïve café owners & 3.14 jumped over the dog's fence!"
    assert cut.tokenizer.tokenize(text) == whole.tokenizer.tokenize(text)
    left_out = set(whole.tokenizer.get_vocab()) - set(cut.tokenizer.get_vocab())
    word = next(word for word in sorted(left_out) if word.isascii() and word.isalpha() and len(word) > 5)
    pieces = cut.tokenizer.tokenize(f"the {word}")
    assert pieces[0] == "the" and len(pieces) > 2 and "".join(piece.removeprefix("##") for piece in pieces[1:]) == word


def test_what_cannot_be_cut_is_one_clear_line(tiny_bert, tiny_qwen):
    with pytest.raises(InputError, match="--vocabulary is 5, expected at least the 6 special tokens and single characters"):
        choose_tokens(Backbone(str(tiny_bert)), SENTENCES, 5)
    backbone = Backbone(str(tiny_qwen))
    with pytest.raises(InputError, match="is not WordPiece, its vocabulary cannot be cut"):
        cut_vocabulary(backbone, [0, 1])
