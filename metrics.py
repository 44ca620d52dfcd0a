"""How well similarities agree with labels."""

from __future__ import annotations

import warnings

import numpy as np
from scipy import stats


def spearman(predicted: np.ndarray, expected: np.ndarray) -> float:
    """Spearman's rank correlation, -1 to 1; 0 where either side is constant and no rank is told from another.

    Args:
        predicted: `(n,)` similarities.
        expected: `(n,)` labels.
    """
    return _or_zero(stats.spearmanr, predicted, expected)


def pearson(predicted: np.ndarray, expected: np.ndarray) -> float:
    """Pearson's linear correlation, -1 to 1; 0 where either side is constant.

    Args:
        predicted: `(n,)` similarities.
        expected: `(n,)` labels.
    """
    return _or_zero(stats.pearsonr, predicted, expected)


def _or_zero(correlation, predicted: np.ndarray, expected: np.ndarray) -> float:  # type: ignore[no-untyped-def]
    if len(predicted) < 2:
        return 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.ConstantInputWarning)
        return float(np.nan_to_num(correlation(predicted, expected).statistic))


def mse(predicted: np.ndarray, expected: np.ndarray) -> float:
    """Mean squared error, 0 and more."""
    return float(np.mean((np.asarray(predicted, np.float64) - expected) ** 2))


def mae(predicted: np.ndarray, expected: np.ndarray) -> float:
    """Mean absolute error, 0 and more."""
    return float(np.mean(np.abs(np.asarray(predicted, np.float64) - expected)))
