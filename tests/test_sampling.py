"""Which pairs meet in a batch: properties that hold for any pairs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import batches_without_duplicates, count_batches, random_batches

sizes = st.integers(2, 9)
seeds = st.integers(0, 1000)


@given(st.integers(0, 60), sizes, seeds)
def test_random_batches_hold_every_pair_once_but_a_single_last_one(n, size, seed):
    batches = random_batches(n, size, np.random.default_rng(seed))
    pairs = np.concatenate([np.empty(0, int), *batches])
    assert len(batches) == count_batches(n, size)
    assert len(set(pairs)) == len(pairs) == (n if n % size != 1 else n - 1)
    assert all(len(batch) == size for batch in batches[:-1])


@given(st.lists(st.lists(st.integers(0, 30), min_size=3, max_size=3), min_size=1, max_size=60), sizes, seeds)
@settings(max_examples=200)
def test_no_sentence_belongs_to_two_pairs_of_a_batch(sentences, size, seed):
    sentences = np.array(sentences)
    batches = batches_without_duplicates(sentences, size, np.random.default_rng(seed))
    for batch in batches:
        owners = [set(row) for row in sentences[batch].tolist()]
        assert len(set().union(*owners)) == sum(len(owner) for owner in owners)
        assert 1 < len(batch) <= size
    pairs = np.concatenate([np.empty(0, int), *batches])
    assert len(set(pairs)) == len(pairs)
    assert len(batches) <= count_batches(len(sentences), size)


@given(st.integers(2, 60), sizes, seeds)
def test_where_no_sentence_repeats_no_pair_is_left_out(n, size, seed):
    batches = batches_without_duplicates(np.arange(3 * n).reshape(n, 3), size, np.random.default_rng(seed))
    assert sum(map(len, batches)) == (n if n % size != 1 else n - 1)
    assert [len(batch) for batch in batches] == [len(batch) for batch in random_batches(n, size, np.random.default_rng(seed))]


def test_few_pairs_are_left_out_where_some_sentences_repeat():
    rng = np.random.default_rng(0)
    sentences = rng.integers(0, 5000, (2000, 4))
    kept = sum(map(len, batches_without_duplicates(sentences, 64, rng)))
    assert kept > 1980


def test_the_order_follows_the_seed():
    sentences = np.arange(40).reshape(20, 2)
    orders = [np.concatenate(batches_without_duplicates(sentences, 4, np.random.default_rng(seed))).tolist() for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == list(range(20))


@pytest.mark.parametrize("maker", [random_batches, lambda n, *rest: batches_without_duplicates(np.arange(n)[:, None], *rest)])
def test_no_pairs_make_no_batches(maker):
    assert maker(0, 4, np.random.default_rng(0)) == []
