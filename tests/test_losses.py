"""Losses against independent implementations and slow obvious code."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning.losses import NTXentLoss
from scipy import stats
from sentence_transformers.sentence_transformer.losses import CoSENTLoss, MultipleNegativesRankingLoss
from sklearn.metrics import mean_squared_error

from losses import LOSSES, cosent, cosine_mse, distillation, hard_negative_margin, imitation, nt_xent, pearson, ranking


@pytest.fixture(params=[2, 5, 64])
def batch(request) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(request.param)
    first, second = (F.normalize(torch.randn(request.param, 24, generator=generator, dtype=torch.float64), dim=1) for _ in "ab")
    labels = torch.randint(0, 11, (request.param,), generator=generator).double() / 2
    return first, second, labels


def guide_of(first: torch.Tensor) -> torch.Tensor:
    """Another encoder's embeddings of the 2B sentences of a batch."""
    generator = torch.Generator().manual_seed(len(first))
    return F.normalize(torch.randn(2 * len(first), 7, generator=generator, dtype=torch.float64), dim=1)


@pytest.mark.parametrize("temperature", [0.05, 0.5])
def test_nt_xent_agrees_with_pytorch_metric_learning(batch, temperature):
    first, second, _ = batch
    pairs = torch.arange(len(first)).repeat(2)
    expected = NTXentLoss(temperature=temperature)(torch.cat([first, second]), pairs)
    torch.testing.assert_close(nt_xent(first, second, temperature=temperature), expected, atol=1e-6, rtol=0)


def test_nt_xent_with_a_guide_agrees_with_slow_obvious_code(batch):
    first, second, _ = batch
    n, sentences, guide, total = len(first), torch.cat([first, second]), guide_of(first), 0.0
    for i in range(2 * n):
        j = (i + n) % (2 * n)
        kept = [k for k in range(2 * n) if k == j or (k != i and not guide[i] @ guide[k] > guide[i] @ guide[j])]
        total -= math.log(
            math.exp(sentences[i] @ sentences[j] / 0.1) / sum(math.exp(sentences[i] @ sentences[k] / 0.1) for k in kept)
        )
    assert nt_xent(first, second, guide=guide, temperature=0.1).item() == pytest.approx(total / (2 * n), abs=1e-9)


def test_nt_xent_of_equal_sentences_is_its_stated_value():
    alike = torch.ones(4, 3) / math.sqrt(3)
    assert nt_xent(alike, alike).item() == pytest.approx(math.log(7), abs=1e-6)


@pytest.mark.parametrize("scale", [20.0, 5.0])
def test_cosent_agrees_with_sentence_transformers(batch, scale):
    first, second, labels = batch
    theirs = CoSENTLoss(model=None, scale=scale)
    expected = theirs.compute_loss_from_embeddings([first, second], labels)
    torch.testing.assert_close(cosent(first, second, labels, scale=scale), expected, atol=1e-6, rtol=0)


def test_cosent_of_equal_labels_is_zero_with_zero_gradient():
    first = F.normalize(torch.randn(6, 4), dim=1).requires_grad_()
    loss = cosent(first, F.normalize(torch.randn(6, 4), dim=1), torch.full((6,), 3.0))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(first.grad, torch.zeros_like(first))


def test_cosine_mse_agrees_with_its_formula(batch):
    first, second, labels = batch
    errors = [((float(a @ b) + 1) / 2 - float(y) / 5) ** 2 for a, b, y in zip(first, second, labels, strict=True)]
    assert cosine_mse(first, second, labels).item() == pytest.approx(sum(errors) / len(errors), abs=1e-9)


def test_cosine_mse_of_the_plain_cosine_agrees_with_scikit_learn(batch):
    first, second, labels = batch
    cosine = [float(a @ b) for a, b in zip(first, second, strict=True)]
    assert cosine_mse(first, second, labels, lowest=0).item() == pytest.approx(mean_squared_error(labels / 5, cosine), abs=1e-9)
    same = torch.eye(2, dtype=torch.float64)  # a cosine of 1 is label 5, a cosine of 0 is label 0
    assert cosine_mse(same, same, torch.full((2,), 5.0), lowest=0).item() == pytest.approx(0, abs=1e-12)
    assert cosine_mse(same, same.flip(0), torch.zeros(2), lowest=0).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("margin", [0.0, 0.2, 1.0])
def test_hard_negative_margin_agrees_with_slow_obvious_code(batch, margin):
    first, second, labels = batch
    n, sentences, total = len(first), [*first, *second], 0.0
    for i in range(2 * n):
        hardest = max(float(sentences[i] @ sentences[j]) for j in range(2 * n) if j % n != i % n)
        total += max(0.0, margin + hardest - float(first[i % n] @ second[i % n]))
    assert hard_negative_margin(first, second, labels, margin=margin).item() == pytest.approx(total / (2 * n), abs=1e-9)


def test_pearson_agrees_with_scipy(batch):
    first, second, labels = batch
    expected = 1 - stats.pearsonr((first * second).sum(1), labels).statistic
    assert pearson(first, second, labels).item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pearson_of_equal_labels_or_equal_cosines_is_finite(dtype):
    vectors = F.normalize(torch.randn(6, 4, dtype=dtype), dim=1)
    for second, labels in ((vectors.roll(1, 0), torch.full((6,), 3.0)), (vectors * 0, torch.arange(6.0))):
        first = vectors.clone().requires_grad_()
        loss = pearson(first, second, labels.to(dtype))
        loss.backward()
        assert loss.item() == pytest.approx(1)
        assert torch.isfinite(first.grad).all()
    assert torch.equal(first.grad, torch.zeros_like(first))


def test_distillation_agrees_with_slow_obvious_code(batch):
    first, second, labels = batch
    sentences, guide = torch.cat([first, second]), guide_of(first)
    errors = [
        float(a @ b - c @ d) ** 2 for a, c in zip(sentences, guide, strict=True) for b, d in zip(sentences, guide, strict=True)
    ]
    assert distillation(first, second, labels, guide).item() == pytest.approx(sum(errors) / len(errors), abs=1e-9)


def test_distillation_of_the_teacher_itself_is_zero(batch):
    first, second, labels = batch
    assert distillation(first, second, labels, torch.cat([first, second])).item() == 0


@pytest.mark.parametrize("width", [5, 24, 30])
def test_imitation_agrees_with_slow_obvious_code(batch, width):
    first, second, labels = batch
    guide = F.normalize(torch.randn(2 * len(first), width, generator=torch.Generator().manual_seed(1), dtype=torch.float64), dim=1)
    total = 0.0
    for own, theirs in zip([*first, *second], guide, strict=True):
        if width < 24:
            own = own[:width]
        elif width > 24:
            theirs = theirs[:24] / theirs[:24].norm()
        total += 1 - float(own @ theirs)
    assert imitation(first, second, labels, guide).item() == pytest.approx(total / (2 * len(first)), abs=1e-9)


def test_imitation_is_half_the_squared_distance_and_zero_for_the_teacher_itself(batch):
    first, second, labels = batch
    sentences = torch.cat([first, second])
    guide = F.normalize(sentences + 0.1, dim=1)
    squared = (sentences - guide).square().sum(1).mean().item()
    assert imitation(first, second, labels, guide).item() == pytest.approx(squared / 2, abs=1e-9)
    assert imitation(first, second, labels, sentences).item() == pytest.approx(0, abs=1e-9)


def negatives_of(first: torch.Tensor, n: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(n)
    return F.normalize(torch.randn(len(first), n, first.shape[1], generator=generator, dtype=torch.float64), dim=2)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("n_negatives", [0, 1, 3])
def test_ranking_agrees_with_sentence_transformers(batch, n_negatives, symmetric):
    first, second, _ = batch
    negatives = negatives_of(first, n_negatives) if n_negatives else None
    directions = ("query_to_doc", "doc_to_query") if symmetric else ("query_to_doc",)
    theirs = MultipleNegativesRankingLoss(model=None, scale=20.0, directions=directions, partition_mode="per_direction")
    columns = [first, second, *(negatives.unbind(1) if n_negatives else ())]
    expected = theirs.compute_loss_from_embeddings(columns, None)
    torch.testing.assert_close(ranking(first, second, negatives=negatives, symmetric=symmetric), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("guided_negatives", [0, 2])
def test_ranking_with_a_guide_and_labels_agrees_with_slow_obvious_code(batch, guided_negatives, symmetric):
    """The guide has embedded the negatives, or none of them."""
    first, second, labels = batch
    negatives = negatives_of(first, 2)
    n, documents = len(first), torch.cat([second, *negatives])
    guide = F.normalize(torch.randn((2 + guided_negatives) * n, 7, dtype=torch.float64), dim=1)
    losses = []
    for queries, others, mine, theirs in (
        (first, documents, guide[:n], guide[n:]),
        (second, first, guide[n : 2 * n], guide[:n]),
    )[: 1 + symmetric]:
        for i in range(n):
            if labels[i] >= 2:
                kept = [j for j in range(len(others)) if j >= len(theirs) or not mine[i] @ theirs[j] > mine[i] @ theirs[i]]
                total = sum(math.exp(10 * queries[i] @ others[j]) for j in kept)
                losses.append(math.log(total) - 10 * float(queries[i] @ others[i]))
    loss = ranking(first, second, labels, guide, negatives=negatives, scale=10, min_label=2, symmetric=symmetric)
    assert loss.item() == pytest.approx(sum(losses) / max(1, len(losses)), abs=1e-9)


def test_ranking_without_positives_is_zero():
    first = F.normalize(torch.randn(3, 4), dim=1).requires_grad_()
    loss = ranking(first, first.roll(1, 0), torch.zeros(3), min_label=1)
    loss.backward()
    assert loss.item() == 0 and torch.equal(first.grad, torch.zeros_like(first))


def test_hard_negative_margin_of_one_pair_is_zero():
    one = F.normalize(torch.randn(1, 4), dim=1)
    assert hard_negative_margin(one, -one).item() == 0


@pytest.mark.parametrize("name", LOSSES)
def test_losses_do_not_depend_on_the_order_of_pairs(batch, name):
    first, second, labels = batch
    guide = guide_of(first)
    order = torch.randperm(len(first), generator=torch.Generator().manual_seed(0))
    shuffled = LOSSES[name](first[order], second[order], labels[order], guide[torch.cat([order, order + len(order)])])
    torch.testing.assert_close(shuffled, LOSSES[name](first, second, labels, guide))


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "ranking"])  # its sides are queries and documents
def test_losses_do_not_depend_on_which_sentence_is_first(batch, name):
    first, second, labels = batch
    guide = guide_of(first)
    swapped = LOSSES[name](second, first, labels, guide.roll(len(first), 0))
    torch.testing.assert_close(swapped, LOSSES[name](first, second, labels, guide))


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_agree_with_finite_differences(name):
    generator = torch.Generator().manual_seed(5)
    first, second = (torch.randn(4, 3, generator=generator, dtype=torch.float64).requires_grad_() for _ in "ab")
    labels = torch.tensor([0.0, 2.0, 3.5, 5.0], dtype=torch.float64)
    guide = guide_of(first)
    assert torch.autograd.gradcheck(
        lambda a, b: LOSSES[name](F.normalize(a, dim=1), F.normalize(b, dim=1), labels, guide), (first, second)
    )
