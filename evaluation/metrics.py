"""Metrics of similarity, retrieval and triplets.

For retrieval, `relevant` `(Q, k)` says whether each of a query's top k documents is relevant, best first, and `n_relevant` `(Q,)`
how many relevant documents the query has, at least 1.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np


def spearman(predicted: np.ndarray, expected: np.ndarray) -> float:
    """Spearman's rank correlation of `(n,)` and `(n,)`, -1 to 1; 0 if either is constant, NaN if `predicted` has NaN."""
    return _correlation("spearmanr", predicted, expected)


def pearson(predicted: np.ndarray, expected: np.ndarray) -> float:
    """Pearson's linear correlation of `(n,)` and `(n,)`, -1 to 1; 0 if either is constant, NaN if `predicted` has NaN."""
    return _correlation("pearsonr", predicted, expected)


def _correlation(name: str, predicted: np.ndarray, expected: np.ndarray) -> float:
    from scipy import stats  # here: the import takes half a second, which --help should not wait for

    if len(predicted) < 2:
        return 0.0
    if np.isnan(predicted).any():
        return np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.ConstantInputWarning)
        return float(np.nan_to_num(getattr(stats, name)(predicted, expected).statistic))


def mse(predicted: np.ndarray, expected: np.ndarray) -> float:
    """Mean squared error."""
    return float(np.mean((np.asarray(predicted, np.float64) - expected) ** 2))


def mae(predicted: np.ndarray, expected: np.ndarray) -> float:
    """Mean absolute error."""
    return float(np.mean(np.abs(np.asarray(predicted, np.float64) - expected)))


def reciprocal_rank(relevant: np.ndarray) -> float:
    """Mean reciprocal rank of the first relevant document in the top k (MRR@k), 0 to 1; a query without one counts 0.

    Source: Voorhees 1999, The TREC-8 Question Answering Track Report.
    """
    relevant = np.asarray(relevant, bool)
    return float(np.mean(relevant.any(1) / (relevant.argmax(1) + 1)))


def recall(relevant: np.ndarray, n_relevant: np.ndarray) -> float:
    """Mean share of a query's relevant documents that are in the top k (recall@k), 0 to 1."""
    return float(np.mean(np.asarray(relevant, bool).sum(1) / n_relevant))


def ndcg(relevant: np.ndarray, n_relevant: np.ndarray) -> float:
    """Normalised discounted cumulative gain of the top k (nDCG@k), 0 to 1; 1 if the relevant documents come first.

    Source: Järvelin and Kekäläinen 2002, with gains 0 and 1.
    """
    relevant = np.asarray(relevant, bool)
    return graded_ndcg(relevant, np.arange(relevant.shape[1]) < np.asarray(n_relevant)[:, None])


def graded_ndcg(gains: np.ndarray, best_gains: np.ndarray) -> float:
    """nDCG@k, 0 to 1, where documents are relevant to different degrees; a query without relevant documents counts 0.

    Source: Järvelin and Kekäläinen 2002, with the judgements as gains, as in trec_eval.

    Args:
        gains: `(Q, k)`, 0 and up, the gains of the top k documents, best first.
        best_gains: `(Q, k)`, the k highest gains of all documents, highest first, then 0.
    """
    discounts = 1 / np.log2(np.arange(2, gains.shape[1] + 2))
    found, best = (gains * discounts).sum(1), (best_gains * discounts).sum(1)
    return float(np.mean(np.divide(found, best, out=np.zeros(len(best)), where=best > 0)))


def mean_average_precision(ranks: Sequence[np.ndarray]) -> float:
    """Mean average precision (MAP), 0 to 1; a query without relevant documents counts 0.

    Source: Buckley and Voorhees 2004, Retrieval Evaluation with Incomplete Information.

    Args:
        ranks: for each query `(R,)`, the ranks of its R relevant documents, from 1, in any order; inf for one never retrieved.
    """
    return float(np.mean([np.mean(np.arange(1, len(own) + 1) / np.sort(own)) if len(own) else 0.0 for own in ranks]))


def average_precision(similarities: np.ndarray, is_match: np.ndarray) -> float:
    """Average precision, 0 to 1, of detecting the matches `(n,)`, bool, by similarity `(n,)`.

    0 if there are no matches; NaN if there is nothing else, because every order is then right.
    """
    from sklearn.metrics import average_precision_score  # here because the import would cost every command a second

    if np.all(is_match):
        return np.nan
    return float(average_precision_score(is_match, similarities)) if np.any(is_match) else 0.0


def best_threshold(similarities: np.ndarray, is_match: np.ndarray) -> tuple[float, float]:
    """The similarity that splits n pairs best into matches, at or above it, and others.

    It lies midway between neighbouring similarities, above all of them if nothing is better called a match, and is the highest
    of equally good ones. Source: sentence-transformers' `BinaryClassificationEvaluator.find_best_acc_and_threshold`.

    Args:
        similarities: `(n,)`, at least one.
        is_match: `(n,)`, bool.

    Returns:
        The threshold and its accuracy, the share of pairs on the right side, 0 to 1.
    """
    order = np.argsort(-np.asarray(similarities, np.float64), kind="stable")
    ranked, matches = np.asarray(similarities, np.float64)[order], np.asarray(is_match, bool)[order]
    n = len(ranked)
    # Entry k is about calling the k most similar pairs matches; equal similarities cannot be told apart.
    matches_above = np.concatenate([[0], np.cumsum(matches)])
    others_below = (~matches).sum() - (np.arange(n + 1) - matches_above)
    splits = np.concatenate([[True], ranked[:-1] > ranked[1:], [True]])
    right = np.where(splits, matches_above + others_below, -1)
    k = int(right.argmax())
    if k == 0:
        threshold = np.nextafter(ranked[0], np.inf)
    elif k == n:
        threshold = ranked[-1]
    else:
        middle = (ranked[k - 1] + ranked[k]) / 2
        threshold = middle if middle > ranked[k] else ranked[k - 1]  # rounding must not move it to the pairs below
    return float(threshold), float(right[k] / n)


def triplet_accuracy(positive: np.ndarray, negative: np.ndarray, margin: float = 0.0) -> float:
    """Share of n triplets in which the anchor's similarity `(n,)` to the positive exceeds that to the negative by a margin."""
    return float(np.mean(np.asarray(positive) > np.asarray(negative) + margin))
