"""NEFTune noise against its formula."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from conftest import learnable_pairs, store_pairs
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from data import PairData, open_pairs, training_batches
from model import EncoderConfig
from training import trainer
from training.recipe import LossTerm, Phase, Recipe
from training.trainer import Trainer, add_noise


@given(
    lengths=st.lists(st.integers(0, 7), min_size=1, max_size=5),
    dim=st.integers(1, 40),
    alpha=st.floats(0.01, 100),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_noise_stays_within_alpha_over_root_of_length_times_width_and_off_the_padding(lengths, dim, alpha, seed):
    torch.manual_seed(seed)
    tokens = torch.zeros(len(lengths), max(1, *lengths), dim, dtype=torch.float64)
    for sentence, length in zip(tokens, lengths, strict=True):
        sentence[:length] = torch.randn(length, dim)
    noisy = add_noise(tokens, torch.tensor(lengths), alpha)
    for before, after, length in zip(tokens, noisy, lengths, strict=True):
        assert torch.equal(after[length:], torch.zeros_like(after[length:]))
        if length:
            noise = (after - before)[:length]
            assert noise.abs().max() <= alpha / math.sqrt(length * dim) * (1 + 1e-5)
            assert noise.abs().max() > 0


@pytest.mark.parametrize(("length", "dim", "alpha"), [(1, 384, 0.5), (9, 768, 5.0), (20, 32, 1.0)])
def test_noise_is_uniform(length, dim, alpha):
    torch.manual_seed(0)
    tokens = torch.ones(20, 24, dim, dtype=torch.float64)
    noise = (add_noise(tokens, torch.full((20,), length), alpha) - tokens)[:, :length]
    bound = alpha / math.sqrt(length * dim)
    assert stats.kstest(noise.flatten().numpy(), stats.uniform(-bound, 2 * bound).cdf).pvalue > 0.01
    of_sentence = noise.square().sum((1, 2)).mean().sqrt().item()
    assert of_sentence == pytest.approx(alpha / math.sqrt(3), rel=0.05)


def test_no_alpha_no_noise():
    tokens = torch.randn(3, 4, 8)
    assert add_noise(tokens, torch.tensor([4, 2, 1]), 0.0) is tokens


@pytest.fixture
def sides(tmp_path) -> tuple[PairData, PairData]:
    rng = np.random.default_rng(0)
    return tuple(open_pairs([store_pairs(tmp_path / f"{name}.store", *learnable_pairs(rng, 60))]) for name in ("train", "dev"))


def recipe(**changes) -> Recipe:
    encoder = EncoderConfig(output_dim=8, heads=4, hidden_dim=8, dropout=0.0)
    phases = {"graded": Phase(epochs=2, losses={"cosent": LossTerm(), "distillation": LossTerm(guide="baseline")})}
    return Recipe(**{"encoder": encoder, "phases": phases, "batch_size": 16, "learning_rate": 1e-3} | changes)


@pytest.mark.parametrize("architecture", ["hybrid", "published", "gated", "twin"])
def test_noise_is_for_training_of_every_encoder_and_not_for_evaluation_or_guides(sides, monkeypatch, architecture):
    calls = []

    def counted(tokens, lengths, alpha):
        calls.append((len(tokens), alpha))
        return add_noise(tokens, lengths, alpha)

    monkeypatch.setattr(trainer, "add_noise", counted)
    encoder = EncoderConfig(architecture, output_dim=8, heads=4, hidden_dim=8)
    Trainer(recipe(encoder=encoder, start="random", noise_alpha=2.0), *sides).run()
    assert {alpha for _, alpha in calls} == {2.0}
    assert sum(n for n, _ in calls) == 2 * 2 * len(sides[0])  # two epochs, both sides of each pair, nothing else


def test_noise_changes_what_is_learned_and_the_start_is_measured_without_it(sides):
    plain, noisy = (Trainer(recipe(noise_alpha=alpha), *sides).run() for alpha in (0.0, 5.0))
    assert plain.history[0].validation_score == noisy.history[0].validation_score
    assert plain.history[0].validation_loss == noisy.history[0].validation_loss
    assert plain.history[1].loss != noisy.history[1].loss


def test_a_batch_in_parts_sees_the_same_noise_in_both_passes(sides, monkeypatch):
    """Without that, the vectors of the second pass are not those that the loss was taken of."""
    trainer = Trainer(recipe(noise_alpha=3.0, sentences_at_a_time=6), *sides)
    seen = []
    encode = trainer.encoder.forward
    monkeypatch.setattr(trainer.encoder, "forward", lambda *batch: (seen.append(batch[0].clone()), encode(*batch))[1])
    batch = next(training_batches(sides[0], 16, np.random.default_rng(0), bucket_size=6))
    trainer._backward(trainer.phases["graded"], batch, 1)
    n = len(batch.buckets)
    assert len(seen) == 2 * n
    assert all(torch.equal(first, second) for first, second in zip(seen[:n], seen[n:], strict=True))
    assert not any(torch.equal(noisy, tokens) for noisy, (tokens, _) in zip(seen, batch.buckets, strict=False))
