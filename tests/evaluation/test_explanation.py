"""Shares of a similarity sum to it, for every architecture; where the encoder is linear they are what a sum by hand gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import InputError
from evaluation.token_parts import token_parts
from model import EncoderConfig, SentenceEncoder
from text import TextEncoder

CONFIGS = {
    "hybrid": EncoderConfig(input_dim=16, output_dim=6, heads=4, hidden_dim=8),
    "hybrid without MLP": EncoderConfig(input_dim=16, output_dim=6, heads=4, hidden_dim=0),
    "hybrid with context": EncoderConfig(input_dim=16, output_dim=6, heads=4, hidden_dim=8, context_layers=2, context_dim=64),
    "published": EncoderConfig("published", input_dim=16, output_dim=6),
    "gated": EncoderConfig("gated", input_dim=16, output_dim=6, heads=4, hidden_dim=8),
    "projection": EncoderConfig("projection", input_dim=16, output_dim=6),
    "twin": EncoderConfig("twin", input_dim=16, output_dim=6),
    "mean": EncoderConfig("mean", input_dim=16, output_dim=16),
}


def random_encoder(name: str, seed: int) -> SentenceEncoder:
    """An encoder with random weights everywhere."""
    torch.manual_seed(seed)
    encoder = SentenceEncoder(CONFIGS[name]).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return encoder


@pytest.mark.parametrize("name", CONFIGS)
@settings(max_examples=15, deadline=None)
@given(length=st.integers(1, 30), seed=st.integers(0, 99))
def test_the_parts_sum_to_the_vector(name, length, seed):
    encoder = random_encoder(name, seed)
    tokens = torch.randn(length, 16)
    parts, weights = token_parts(encoder, tokens)
    assert parts.shape == (length, encoder.config.output_dim)
    torch.testing.assert_close(parts.sum(0), encoder(tokens[None])[0].detach(), atol=1e-5, rtol=0)
    assert weights.shape == (length,) and weights.min() >= 0
    assert float(weights.sum()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("part", ["pooling", "head"])
def test_a_part_that_it_does_not_know_is_not_explained_as_another(part):
    encoder = random_encoder("mean", 0)
    setattr(encoder, part, torch.nn.Tanh())
    with pytest.raises(TypeError, match="cannot explain a Tanh"):
        token_parts(encoder, torch.randn(3, 16))


def test_a_linear_encoder_by_hand():
    """Head by head, token by token: weight times dimensions, then the projection."""
    encoder = random_encoder("hybrid without MLP", 0)
    encoder.head.projection.bias.data.zero_()
    tokens = torch.randn(5, 16)
    weights = encoder.pooling.token_weights(tokens[None], torch.tensor([5]))[0]
    parts = np.zeros((5, 6))
    for token in range(5):
        for head in range(4):
            columns = slice(4 * head, 4 * head + 4)
            piece = weights[head, token] * tokens[token, columns]
            parts[token] += (encoder.head.projection.weight[:, columns] @ piece).detach().numpy()
    parts /= np.linalg.norm(parts.sum(0))
    np.testing.assert_allclose(token_parts(encoder, tokens)[0], parts, atol=1e-5)


def test_equal_tokens_have_equal_parts_and_the_order_makes_no_difference():
    encoder, tokens = random_encoder("hybrid", 1), torch.randn(4, 16)
    parts, _ = token_parts(encoder, torch.cat([tokens, tokens[:1]]))
    torch.testing.assert_close(parts[0], parts[4])
    torch.testing.assert_close(token_parts(encoder, tokens.flip(0))[0].flip(0), token_parts(encoder, tokens)[0], atol=1e-6, rtol=0)


def test_a_share_of_a_similarity(text_encoder):
    first, second = "A man plays a guitar.", "Somebody plays music."
    explanation = text_encoder.explain(first, second)
    assert explanation.first == ["[CLS]", "a", "man", "plays", "a", "guitar", ".", "[SEP]"]
    assert explanation.shares.shape == (8, len(explanation.second))
    similarity = float(text_encoder.similarity(first, second))
    assert explanation.similarity == pytest.approx(similarity, abs=1e-5)
    assert explanation.shares.sum() == pytest.approx(similarity, abs=1e-5)
    np.testing.assert_allclose(explanation.first_shares, explanation.shares.sum(1))
    np.testing.assert_allclose(explanation.second_shares, explanation.shares.sum(0))
    np.testing.assert_allclose(text_encoder.explain(second, first).shares, explanation.shares.T, atol=1e-6)
    row = explanation.first.index("guitar")
    assert explanation.second[explanation.shares[row].argmax()] == "music"


def test_without_tokens_there_is_nothing_to_explain(tiny_qwen):
    with pytest.raises(InputError, match="sentence 2 has no tokens"):
        TextEncoder(backbone=str(tiny_qwen), device="cpu").explain("cat", "")
