"""Which pairs meet in a batch: properties that hold for any pairs."""

from __future__ import annotations

import time
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import LEFT_OUT, batches_without_duplicates, count_batches, random_batches

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
    left_out = [set(sentences[pair].tolist()) for pair in set(range(len(sentences))) - set(pairs.tolist())]
    if len(left_out) > LEFT_OUT * len(sentences) + 1:  # more than a few, and one alone at the end
        assert not any(one.isdisjoint(other) for one, other in combinations(left_out, 2))  # two that fit would be a batch


@given(
    st.lists(st.lists(st.integers(0, 12), min_size=2, max_size=3).map(lambda row: [*row, row[0]][:3]), max_size=60), sizes, seeds
)
@settings(max_examples=200)
def test_each_pair_is_in_the_first_batch_where_it_fits(sentences, size, seed):
    expected: list[list[int]] = []
    for pair in np.random.default_rng(seed).permutation(len(sentences)).tolist():
        taken = ({sentence for other in batch for sentence in sentences[other]} for batch in expected)
        fits = [len(batch) < size and own.isdisjoint(sentences[pair]) for batch, own in zip(expected, taken, strict=True)]
        if True not in fits:
            expected.append([])
        expected[[*fits, True].index(True)].append(pair)
    usual = count_batches(len(sentences), size)
    if sum(map(len, expected[usual:])) <= LEFT_OUT * len(sentences):
        expected = expected[:usual]
    batches = batches_without_duplicates(np.array(sentences).reshape(-1, 3), size, np.random.default_rng(seed))
    assert [batch.tolist() for batch in batches] == [batch for batch in expected if len(batch) > 1]


@given(st.integers(2, 60), sizes, seeds)
def test_where_no_sentence_repeats_no_pair_is_left_out(n, size, seed):
    batches = batches_without_duplicates(np.arange(3 * n).reshape(n, 3), size, np.random.default_rng(seed))
    assert sum(map(len, batches)) == (n if n % size != 1 else n - 1)
    assert [len(batch) for batch in batches] == [len(batch) for batch in random_batches(n, size, np.random.default_rng(seed))]


def test_few_pairs_are_left_out_where_some_sentences_repeat():
    rng = np.random.default_rng(0)
    sentences = rng.integers(0, 5000, (2000, 4))
    kept = sum(map(len, batches_without_duplicates(sentences, 64, rng)))
    assert 1980 < kept < 2000


def test_pairs_of_a_few_sentences_are_in_more_batches_instead_of_none():
    rng = np.random.default_rng(0)
    few = np.stack([rng.integers(0, 20, 1000), rng.integers(20, 40, 1000)], axis=1)
    popular = np.stack([np.arange(1000), rng.integers(1000, 1005, 1000)], axis=1)
    for sentences in (few, popular):
        batches = batches_without_duplicates(sentences, 64, rng)
        assert len(batches) > 2 * count_batches(1000, 64) and sum(map(len, batches)) > 950


def test_many_pairs_of_few_sentences_take_no_time():
    first, begin = np.arange(100, 20_100)[:, None], time.perf_counter()
    assert batches_without_duplicates(np.hstack([first, np.zeros_like(first)]), 64, np.random.default_rng(0)) == []
    negatives = np.random.default_rng(0).integers(0, 20, (20_000, 6))
    assert sum(map(len, batches_without_duplicates(np.hstack([first, negatives]), 64, np.random.default_rng(0)))) > 19_900
    assert time.perf_counter() - begin < 10


def test_the_order_follows_the_seed():
    sentences = np.arange(40).reshape(20, 2)
    orders = [np.concatenate(batches_without_duplicates(sentences, 4, np.random.default_rng(seed))).tolist() for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == list(range(20))


@pytest.mark.parametrize("maker", [random_batches, lambda n, *rest: batches_without_duplicates(np.arange(n)[:, None], *rest)])
def test_no_pairs_make_no_batches(maker):
    assert maker(0, 4, np.random.default_rng(0)) == []
