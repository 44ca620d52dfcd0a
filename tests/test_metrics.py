"""Metrics against scipy and their formulas."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from metrics import mae, mse, pearson, spearman

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
