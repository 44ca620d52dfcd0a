"""Text in, sentence vectors out: on the packaged backbone, and on tiny ones like BERT and Qwen2 made in the test."""

from __future__ import annotations

import sys
import warnings

import numpy as np
import pytest
import torch
from conftest import ROOT, SENTENCES, last_line, run_script

import text
from common.errors import InputError
from evaluation.checkpoint import save_encoder
from model import EncoderConfig, SentenceEncoder
from text import TextEncoder
from tokens.backbone import Backbone
from tokens.text_pairs import read_text_pairs

STARTER = read_text_pairs(ROOT / "data" / "starter" / "dev.tsv")


@torch.inference_mode()
def by_hand(encoder: TextEncoder, sentence: str, **tokenizer) -> np.ndarray:
    """One sentence alone, by transformers and the head."""
    backbone = encoder.backbone
    batch = backbone.tokenizer(sentence, return_tensors="pt", **tokenizer)
    states = backbone.model(batch["input_ids"], output_hidden_states=True).hidden_states
    return encoder.head(torch.cat([states[int(layer)] for layer in backbone.layers.split(",")], dim=2))[0].numpy()


def test_vectors_are_those_of_each_sentence_alone_in_the_order_given(text_encoder):
    sentences = [*STARTER.first[:9], "Short.", STARTER.first[9] * 5, STARTER.first[0]]
    expected = np.stack([by_hand(text_encoder, sentence) for sentence in sentences])
    for batch_size in (1, 5, 100):
        vectors = text_encoder.encode(sentences, batch_size=batch_size)
        np.testing.assert_allclose(vectors, expected, atol=1e-5)
    assert vectors.dtype == np.float32 and vectors.shape == (12, 256)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_one_string_gives_one_vector_and_any_iterable_will_do(text_encoder):
    expected = text_encoder.encode(["a cat", "a dog"])
    assert text_encoder.encode("a cat").shape == (256,)
    assert text_encoder.encode([]).shape == (0, 256)
    for other in (("a cat", "a dog"), (name for name in ("a cat", "a dog")), np.array(["a cat", "a dog"])):
        assert np.array_equal(text_encoder.encode(other), expected)


def test_similarity_is_the_cosine_of_each_with_each(text_encoder):
    from sentence_transformers.util import cos_sim

    first, second = STARTER.first[:3], STARTER.second[:4]
    expected = cos_sim(text_encoder.encode(first), text_encoder.encode(second)).numpy()
    np.testing.assert_allclose(text_encoder.similarity(first, second), expected, atol=1e-5)
    np.testing.assert_allclose(text_encoder.similarity(first[1], second), expected[1], atol=1e-5)
    np.testing.assert_allclose(text_encoder.similarity(first, second[2]), expected[:, 2], atol=1e-5)
    assert float(text_encoder.similarity(first[0], second[0])) == pytest.approx(expected[0, 0], abs=1e-5)
    assert text_encoder.similarity(first[0], first[0]) <= 1


def test_ranking_puts_the_most_similar_first_and_equals_in_their_order(text_encoder):
    documents = [*STARTER.first[:6], STARTER.first[2]]
    matches = text_encoder.rank(STARTER.second[2], documents)
    similarity = [*text_encoder.similarity(STARTER.second[2], documents[:6]).tolist(), matches[0].similarity]
    np.testing.assert_allclose([match.similarity for match in matches], sorted(similarity, reverse=True), atol=1e-6)
    assert [match.document for match in matches] == [documents[match.index] for match in matches]
    assert (matches[0].document, matches[0].index, matches[1].index) == (documents[2], 2, 6)
    assert text_encoder.rank("a cat", documents, top_k=2) == text_encoder.rank("a cat", documents)[:2]


@pytest.mark.parametrize("kind", ["tiny_bert", "tiny_qwen"])
def test_any_backbone_with_mean_pooling_is_what_sentence_transformers_gives(kind, request):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    folder = str(request.getfixturevalue(kind))
    ours = TextEncoder(backbone=folder, device="cpu")
    assert (ours.backbone.width, ours.output_dim) == (16, 16)
    transformer = Transformer(folder)
    transformer.tokenizer.pad_token = transformer.tokenizer.pad_token or transformer.tokenizer.eos_token
    theirs = SentenceTransformer(modules=[transformer, Pooling(16, "mean")], device="cpu")
    np.testing.assert_allclose(ours.encode(SENTENCES), theirs.encode(SENTENCES, normalize_embeddings=True), atol=1e-5)


def test_what_a_backbone_does_not_take_is_dropped(tiny_qwen):
    backbone = Backbone(str(tiny_qwen))
    assert "token_type_ids" in backbone.tokenizer("cat")
    assert set(backbone.pad(backbone.tokenize(["cat", "a dog"])[0])) == {"input_ids", "attention_mask"}


def test_a_sentence_without_tokens_gives_a_unit_vector_and_disturbs_no_other(tiny_qwen, text_encoder):
    encoder = TextEncoder(backbone=str(tiny_qwen), output_dim=8, device="cpu")
    assert encoder.backbone.tokenize([""])[0] == [[]]
    vectors = encoder.encode(["", "cat", ""])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(vectors[1], encoder.encode("cat"), atol=1e-6)
    assert np.array_equal(vectors[0], encoder.encode(""))
    np.testing.assert_allclose(text_encoder.encode(""), by_hand(text_encoder, ""), atol=1e-5)  # its special tokens


@pytest.mark.parametrize("output_dim", [4, 16, 40])
def test_a_projection_starts_orthogonal(tiny_bert, output_dim):
    encoder = TextEncoder(backbone=str(tiny_bert), output_dim=output_dim, device="cpu")
    weight = encoder.head.head.weight.detach()
    gram = weight @ weight.T if output_dim <= 16 else weight.T @ weight
    torch.testing.assert_close(gram, torch.eye(len(gram)), atol=1e-5, rtol=0)
    if output_dim >= 16:  # all directions are kept, and so is every cosine of mean pooling
        expected = TextEncoder(backbone=str(tiny_bert), device="cpu").similarity(SENTENCES, SENTENCES)
        np.testing.assert_allclose(encoder.similarity(SENTENCES, SENTENCES), expected, atol=1e-5)


def test_half_precision_is_the_backbones(tiny_bert):
    whole = TextEncoder(backbone=str(tiny_bert), device="cpu").encode(SENTENCES)
    half = TextEncoder(backbone=str(tiny_bert), device="cpu", dtype=torch.bfloat16)
    assert next(half.backbone.model.parameters()).dtype == torch.bfloat16
    assert half.encode(SENTENCES).dtype == np.float32
    assert 0 < abs(half.encode(SENTENCES) - whole).max() < 0.05


def test_a_long_text_is_cut_and_it_is_said(text_encoder, tiny_bert):
    book = "word " * 10_000
    with pytest.warns(UserWarning, match=r"1 sentence was truncated to 256 tokens \(max_length\)"):
        vectors = text_encoder.encode(["a cat", book])
    np.testing.assert_allclose(vectors[1], by_hand(text_encoder, book, truncation=True, max_length=256), atol=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text_encoder.encode(STARTER.first[:5])
    assert Backbone(str(tiny_bert), max_length=10_000).max_length == 512  # it has no more places


@pytest.mark.parametrize(
    ("sentences", "message"),
    [
        (["a", None], "sentence 2 of 2 is NoneType, expected a string"),
        ([b"a"], "sentence 1 of 1 is bytes, expected a string"),
        (None, "sentences are NoneType, expected a string or a list of strings"),
        (7, "sentences are int, expected a string or a list of strings"),
    ],
)
def test_what_is_no_text_is_one_clear_line(text_encoder, sentences, message):
    with pytest.raises(InputError, match=message):
        text_encoder.encode(sentences)


def test_half_a_character_and_a_mapping_are_one_clear_line(text_encoder):
    with pytest.raises(InputError, match=r"sentence 2 of 2 has \\ud800, which is half a character"):
        text_encoder.encode(["a cat", "a \ud800 dog"])
    with pytest.raises(InputError, match="sentence 1 of 1 has"):
        text_encoder.similarity("a cat", "\udcff")
    with pytest.raises(InputError, match="the query has"):
        text_encoder.rank("\udcff", ["a cat"])
    with pytest.raises(InputError, match="sentences are dict, expected a string or a list of strings"):
        text_encoder.encode({"a cat": 1})


def test_heads_and_backbones_that_do_not_fit_are_one_clear_line(text_encoder, tiny_bert, tmp_path):
    known, unknown = SentenceEncoder(EncoderConfig(input_dim=32, heads=4)), SentenceEncoder(EncoderConfig())
    known.tokens_from = {"backbone": str(tiny_bert), "layers": "0,-1"}
    save_encoder(tmp_path / "model.bin", known)
    bert = str(tiny_bert)
    cases = {
        "nothing to encode with": {},
        "no such file": {"head": "nowhere.bin"},
        "cannot load backbone '/no/where'": {"backbone": "/no/where"},
        "does not say which backbone its tokens came from": {"head": unknown},
        "takes token embeddings 768 wide, this backbone gives 16": {"head": unknown, "backbone": bert},
        "trained on tokens of layers 0,-1, this backbone gives layers 1,-1": {"head": tmp_path / "model.bin", "layers": "1,-1"},
        "takes token embeddings 32 wide, this backbone gives 384": {"head": known, "backbone": Backbone(layers="-1")},
        "output_dim is 9, but the head's is 256": {"head": known, "output_dim": 9},
        "output_dim is 0, expected 1 or more": {"backbone": bert, "output_dim": 0},
        "--device nowhere is not available": {"backbone": bert, "device": "nowhere"},
    }
    for message, arguments in cases.items():
        with pytest.raises(InputError, match=message):
            TextEncoder(**arguments)
    assert TextEncoder(tmp_path / "model.bin", device="cpu").encode("cat").shape == (256,)
    with pytest.raises(InputError, match="batch_size is 0"):
        text_encoder.encode("cat", batch_size=0)
    with pytest.raises(InputError, match="the query is list"):
        text_encoder.rank(["cat"], ["dog"])
    for top_k in (-1, 0):
        with pytest.raises(InputError, match=f"top_k is {top_k}, expected 1 or more"):
            text_encoder.rank("cat", ["cat", "dog"], top_k=top_k)


def test_a_head_of_another_backbone_of_the_same_width_is_refused(tiny_bert, tiny_qwen):
    head = SentenceEncoder(EncoderConfig("projection", input_dim=16, output_dim=8))
    head.tokens_from = {"backbone": str(tiny_qwen), "layers": "-1"}
    with pytest.raises(InputError, match=r"trained on tokens of backbone .*qwen.*, this backbone gives backbone .*bert"):
        TextEncoder(head, backbone=str(tiny_bert), device="cpu")


def test_the_command_prints_the_similarity_and_draws_the_explanation(text_encoder, tmp_path, monkeypatch, capsys):
    arguments = ["a cat", "a dog", "--model", str(ROOT / "model.bin"), "--explain", str(tmp_path / "shares.png"), "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["text.py", *arguments])
    text.main()
    assert float(capsys.readouterr().out.split()[0]) == pytest.approx(float(text_encoder.similarity("a cat", "a dog")), abs=1e-4)
    assert (tmp_path / "shares.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_the_default_checkpoint_is_beside_the_program_in_any_folder(text_encoder, tmp_path, monkeypatch, run_here):
    monkeypatch.chdir(tmp_path)
    result = run_here("text.py", "a cat", "a dog", "--device", "cpu")
    assert float(result.stdout) == pytest.approx(float(text_encoder.similarity("a cat", "a dog")), abs=1e-4)
    for command in ("text.py", "evaluate.py", "visualize_tsne.py", "export.py"):
        shown = run_here(command, "--help").stdout
        assert "model.bin beside the program" in shown and str(ROOT) not in shown


def test_a_missing_checkpoint_ends_the_command_in_one_line(tmp_path):
    assert "no such file" in last_line(run_script("text.py", "a", "b", "--model", tmp_path / "none.bin"))
