"""Metrics against scipy and their formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import stats
from sentence_transformers.sentence_transformer.evaluation import (
    BinaryClassificationEvaluator,
    InformationRetrievalEvaluator,
    TripletEvaluator,
)
from sklearn.metrics import ndcg_score

from evaluation.metrics import (
    average_precision,
    best_threshold,
    graded_ndcg,
    mae,
    mean_average_precision,
    mse,
    ndcg,
    pearson,
    recall,
    reciprocal_rank,
    spearman,
    triplet_accuracy,
)

pairs = st.lists(st.tuples(st.floats(-1, 1), st.integers(0, 10)), min_size=3, max_size=60)


@given(pairs)
def test_spearman_is_pearson_of_ranks(values):
    predicted, expected = np.array(values).T
    if len(set(predicted)) == 1 or len(set(expected)) == 1:
        assert spearman(predicted, expected) == 0
    else:
        ranks = np.corrcoef(stats.rankdata(predicted), stats.rankdata(expected))[0, 1]
        assert spearman(predicted, expected) == pytest.approx(ranks, abs=1e-9)


def test_correlations_agree_with_scipy():
    rng = np.random.default_rng(0)
    predicted, expected = rng.standard_normal(500).astype(np.float32), rng.integers(0, 6, 500).astype(np.float32)
    assert spearman(predicted, expected) == pytest.approx(stats.spearmanr(predicted, expected).statistic, abs=1e-6)
    assert pearson(predicted, expected) == pytest.approx(stats.pearsonr(predicted, expected).statistic, abs=1e-6)
    assert pearson(predicted, expected) == pytest.approx(np.corrcoef(predicted, expected)[0, 1], abs=1e-6)


def test_constant_input_and_single_pairs_have_no_correlation():
    assert spearman(np.ones(5), np.arange(5)) == 0
    assert pearson(np.arange(5), np.ones(5)) == 0
    assert spearman(np.ones(1), np.ones(1)) == 0


def test_errors_are_their_formulas():
    predicted, expected = np.array([0.0, 0.5, 1.0]), np.array([0.5, 0.5, 0.0])
    assert mse(predicted, expected) == pytest.approx((0.25 + 0 + 1) / 3)
    assert mae(predicted, expected) == pytest.approx(0.5)


def test_retrieval_metrics_agree_with_sentence_transformers():
    """Its evaluator computes them from ranked lists of documents and sets of relevant ones."""
    rng = np.random.default_rng(1)
    corpus = {str(i): "" for i in range(40)}
    relevant_documents = {str(q): {str(i) for i in rng.choice(40, rng.integers(1, 15), replace=False)} for q in range(30)}
    evaluator = InformationRetrievalEvaluator({str(q): "" for q in range(30)}, corpus, relevant_documents)
    ranked = [[{"corpus_id": str(i), "score": -rank} for rank, i in enumerate(rng.permutation(40))] for _ in range(30)]
    theirs = evaluator.compute_metrics(ranked)
    shown = np.array([[hit["corpus_id"] in relevant_documents[str(q)] for hit in hits[:10]] for q, hits in enumerate(ranked)])
    n_relevant = np.array([len(relevant_documents[str(q)]) for q in range(30)])
    assert reciprocal_rank(shown) == pytest.approx(theirs["mrr@k"][10], abs=1e-12)
    assert recall(shown, n_relevant) == pytest.approx(theirs["recall@k"][10], abs=1e-12)
    assert ndcg(shown, n_relevant) == pytest.approx(theirs["ndcg@k"][10], abs=1e-12)


def test_retrieval_metrics_by_hand():
    shown = np.array([[False, True, False], [False, False, False], [True, False, True]])
    assert reciprocal_rank(shown) == pytest.approx((1 / 2 + 0 + 1) / 3)
    assert recall(shown, np.array([1, 2, 4])) == pytest.approx((1 + 0 + 2 / 4) / 3)
    assert ndcg(np.array([[True, True, False]]), np.array([2])) == pytest.approx(1)


def test_graded_ndcg_agrees_with_scikit_learn():
    rng = np.random.default_rng(3)
    gains = rng.integers(0, 4, (20, 30))  # of all documents, best ranked first
    found = graded_ndcg(gains[:, :10], np.sort(gains, axis=1)[:, :-11:-1])
    assert found == pytest.approx(ndcg_score(gains, -np.arange(30.0)[None].repeat(20, 0), k=10), abs=1e-12)
    assert graded_ndcg(np.zeros((2, 3)), np.array([[0, 0, 0], [1, 0, 0]])) == 0


def test_mean_average_precision_by_hand():
    ranks = [np.array([4, 1]), np.array([np.inf, 2]), np.array([])]
    assert mean_average_precision(ranks) == pytest.approx(((1 + 2 / 4) / 2 + (1 / 2 + 0) / 2 + 0) / 3)


def test_average_precision_is_the_mean_precision_at_each_match():
    rng = np.random.default_rng(2)
    similarities, matches = rng.standard_normal(200), rng.random(200) < 0.3
    order = np.argsort(-similarities)
    precisions = [matches[order][: i + 1].mean() for i in range(200) if matches[order][i]]
    assert average_precision(similarities, matches) == pytest.approx(np.mean(precisions), abs=1e-12)
    assert average_precision(similarities, np.zeros(200, bool)) == 0
    assert np.isnan(average_precision(similarities, np.ones(200, bool)))


def vectors_of(numbers: int, seed: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(numbers, 8, generator=torch.Generator().manual_seed(seed)), dim=1)


@pytest.mark.parametrize("margin", [0.0, 0.1, 0.5])
def test_triplet_accuracy_agrees_with_sentence_transformers(margin):
    anchors, positives, negatives = (vectors_of(200, seed) for seed in range(3))
    positives = torch.nn.functional.normalize(positives + 0.5 * anchors, dim=1)
    evaluator = TripletEvaluator(*([""] * 200,) * 3, margin=margin, similarity_fn_names=["cosine"])
    given = iter([anchors, positives, negatives])
    evaluator.embed_inputs = lambda *_, **__: next(given)
    evaluator.store_metrics_in_model_card_data = lambda *_: None
    theirs = evaluator(None)["cosine_accuracy"]
    ours = triplet_accuracy((anchors * positives).sum(1).numpy(), (anchors * negatives).sum(1).numpy(), margin)
    assert ours == pytest.approx(theirs, abs=1e-6) and 0.1 < ours < 0.9


def test_average_precision_agrees_with_sentence_transformers():
    first, second = vectors_of(300, 0), vectors_of(300, 1)
    matches = (first * second).sum(1).numpy() + np.random.default_rng(0).normal(0, 0.5, 300) > 0.3
    names = [str(i) for i in range(600)]
    evaluator = BinaryClassificationEvaluator(
        names[:300], names[300:], matches.astype(int).tolist(), similarity_fn_names=["cosine"]
    )
    table = dict(zip(names, torch.cat([first, second]), strict=True))
    evaluator.embed_inputs = lambda _, sentences: torch.stack([table[sentence] for sentence in sentences])
    theirs = evaluator.compute_metrics(None)["cosine"]["ap"]
    assert average_precision((first * second).sum(1).numpy(), matches) == pytest.approx(theirs, abs=1e-9)
    assert 0.3 < theirs < 0.95


@given(st.lists(st.tuples(st.sampled_from([-0.5, 0.0, 0.5, np.nextafter(0.5, 1), 1.0]), st.booleans()), min_size=1, max_size=30))
@example([(0.5, True), (0.5, False)])
@example([(0.5, False)])
@example([(0.1, True), (0.9, False)])
def test_the_best_threshold_is_that_of_sentence_transformers_and_of_a_slow_search(values):
    similarities, is_match = np.array([value for value, _ in values]), np.array([match for _, match in values])
    threshold, accuracy = best_threshold(similarities, is_match)
    assert accuracy == max(np.mean((similarities >= candidate) == is_match) for candidate in [*similarities, 2])
    assert accuracy == np.mean((similarities >= threshold) == is_match)
    theirs = BinaryClassificationEvaluator.find_best_acc_and_threshold(similarities, is_match.astype(int), True)
    assert (accuracy, threshold) == (pytest.approx(theirs[0]), theirs[1])


def test_the_best_threshold_lies_midway_between_its_neighbours():
    assert best_threshold(np.array([0.1, 0.9, 0.3, 0.5]), np.array([False, True, True, False])) == (0.7, 0.75)
    assert best_threshold(np.array([0.2, 0.4]), np.array([True, True])) == (0.2, 1)
    threshold, accuracy = best_threshold(np.array([0.2, 0.4]), np.array([False, False]))
    assert 0.4 < threshold < 0.4 + 1e-12 and accuracy == 1
