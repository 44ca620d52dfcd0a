"""Metrics against scipy and their formulas."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

from metrics import average_precision, mae, mse, ndcg, pearson, recall, reciprocal_rank, spearman, triplet_accuracy

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


def test_average_precision_is_the_mean_precision_at_each_match():
    rng = np.random.default_rng(2)
    similarities, matches = rng.standard_normal(200), rng.random(200) < 0.3
    order = np.argsort(-similarities)
    precisions = [matches[order][: i + 1].mean() for i in range(200) if matches[order][i]]
    assert average_precision(similarities, matches) == pytest.approx(np.mean(precisions), abs=1e-12)
    assert average_precision(similarities, np.zeros(200, bool)) == 0


def test_triplet_accuracy_counts_what_is_ahead_by_more_than_the_margin():
    positive, negative = np.array([0.9, 0.5, 0.5, 0.2]), np.array([0.1, 0.45, 0.5, 0.6])
    assert triplet_accuracy(positive, negative) == 0.5
    assert triplet_accuracy(positive, negative, margin=0.1) == 0.25
