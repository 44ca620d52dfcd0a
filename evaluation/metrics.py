"""How well similarities agree with labels, and how well they find what matches."""

from __future__ import annotations

import warnings

import numpy as np
from scipy import stats


def spearman(predicted: np.ndarray, expected: np.ndarray) -> float:
    """Spearman's rank correlation, -1 to 1; 0 where either side is constant and no rank is told from another, NaN of NaN.

    Args:
        predicted: `(n,)` similarities.
        expected: `(n,)` labels.
    """
    return _or_zero(stats.spearmanr, predicted, expected)


def pearson(predicted: np.ndarray, expected: np.ndarray) -> float:
    """Pearson's linear correlation, -1 to 1; 0 where either side is constant, NaN of NaN.

    Args:
        predicted: `(n,)` similarities.
        expected: `(n,)` labels.
    """
    return _or_zero(stats.pearsonr, predicted, expected)


def _or_zero(correlation, predicted: np.ndarray, expected: np.ndarray) -> float:  # type: ignore[no-untyped-def]
    if len(predicted) < 2:
        return 0.0
    if np.isnan(predicted).any():
        return np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.ConstantInputWarning)
        return float(np.nan_to_num(correlation(predicted, expected).statistic))


def mse(predicted: np.ndarray, expected: np.ndarray) -> float:
    """Mean squared error, 0 and more."""
    return float(np.mean((np.asarray(predicted, np.float64) - expected) ** 2))


def mae(predicted: np.ndarray, expected: np.ndarray) -> float:
    """Mean absolute error, 0 and more."""
    return float(np.mean(np.abs(np.asarray(predicted, np.float64) - expected)))


def reciprocal_rank(relevant: np.ndarray) -> float:
    """Mean reciprocal rank of the first relevant document among the k shown (MRR@k), 0 to 1; a query without one counts 0.

    Source: Voorhees 1999, The TREC-8 Question Answering Track Report.

    Args:
        relevant: `(Q, k)`, for each query whether the documents it found are relevant, the most similar first.
    """
    relevant = np.asarray(relevant, bool)
    return float(np.mean(relevant.any(1) / (relevant.argmax(1) + 1)))


def recall(relevant: np.ndarray, n_relevant: np.ndarray) -> float:
    """Mean share of a query's relevant documents that are among the k shown (recall@k), 0 to 1.

    Args:
        relevant: `(Q, k)`, whether the documents found are relevant.
        n_relevant: `(Q,)`, how many relevant documents there are, 1 or more.
    """
    return float(np.mean(np.asarray(relevant, bool).sum(1) / n_relevant))


def ndcg(relevant: np.ndarray, n_relevant: np.ndarray) -> float:
    """Normalised discounted cumulative gain of the k documents shown (nDCG@k), 0 to 1; 1 where all relevant ones come first.

    Source: Järvelin and Kekäläinen 2002, with gains 0 and 1.

    Args:
        relevant: `(Q, k)`, whether the documents found are relevant, the most similar first.
        n_relevant: `(Q,)`, how many relevant documents there are, 1 or more.
    """
    relevant = np.asarray(relevant, bool)
    discounts = 1 / np.log2(np.arange(2, relevant.shape[1] + 2))
    best = np.cumsum(discounts)[np.minimum(n_relevant, relevant.shape[1]) - 1]
    return float(np.mean((relevant * discounts).sum(1) / best))


def average_precision(similarities: np.ndarray, is_match: np.ndarray) -> float:
    """Average precision of telling matching pairs from others by their similarity, 0 to 1; 0 where no pair matches.

    Args:
        similarities: `(n,)`.
        is_match: `(n,)`, true or false.
    """
    from sklearn.metrics import average_precision_score  # here, because importing it takes every command a second

    return float(average_precision_score(is_match, similarities)) if np.any(is_match) else 0.0


def triplet_accuracy(positive: np.ndarray, negative: np.ndarray, margin: float = 0.0) -> float:
    """Share of triplets whose anchor is more similar to its positive than to its negative, by more than a margin, 0 to 1.

    Args:
        positive: `(n,)`, similarity of anchor and positive.
        negative: `(n,)`, similarity of anchor and negative.
        margin: how much more.
    """
    return float(np.mean(np.asarray(positive) > np.asarray(negative) + margin))
