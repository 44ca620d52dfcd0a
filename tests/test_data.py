"""Token stores, batches and splits: properties that must hold for any data."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import random_sentences
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.errors import InputError
from common.starter import STARTER_DEV, STARTER_TEST, STARTER_TRAIN
from data import count_shared, open_pairs, sentence_groups, split_by_groups, store_folder, training_batches
from evaluation.encoding import encode
from model import EncoderConfig, SentenceEncoder, mean_pooling, sentence_lengths
from tokens.token_store import create_store, open_store

many = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
links = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=2, max_size=60)


def test_padded_is_the_sentences_and_zeros(make_pairs):
    store = make_pairs(np.arange(10), np.arange(10, 20)).tokens
    batch, lengths = store.padded(np.array([3, 3, 17]))
    assert batch.dtype == torch.float32 and batch.shape == (3, store.lengths[[3, 17]].max(), 8)
    for row, known, index in zip(batch, lengths, (3, 3, 17), strict=True):
        length = store.lengths[index]
        assert known == length
        assert np.array_equal(row[:length], store.sentence(index))
        assert not row[length:].any()


def test_zero_rows_at_the_end_are_not_stored_so_that_lengths_are_those_the_model_finds(tmp_path):
    tokens = np.array([[0, 0], [1, 2], [0, 0], [3, 0], [0, 0], [0, 0]], np.float32)
    with create_store(tmp_path / "x.store", 2) as writer:
        writer.append(tokens)
        writer.append(tokens[:1])
        writer.finish({}, {})
    store = open_store(tmp_path / "x.store")
    assert store.lengths.tolist() == [4, 0] and np.array_equal(store.sentence(0), tokens[:4])
    assert sentence_lengths(torch.from_numpy(tokens)[None]).tolist() == [4]


def test_stores_are_mapped_not_read(make_pairs):
    assert isinstance(make_pairs([0], [1]).tokens.tokens[0], np.memmap)


def test_order_and_description_survive(tmp_path):
    sentences = random_sentences(np.random.default_rng(0), 5, dim=3)
    with create_store(tmp_path / "x.store", 3) as writer:
        for i in (4, 2, 0, 1, 3):
            writer.append(sentences[i])
        writer.finish({"labels": np.arange(5)}, {"layers": "2,-1"}, order=[4, 2, 0, 1, 3])
    store = open_store(tmp_path / "x.store")
    assert all(np.array_equal(store.sentence(i), sentences[i]) for i in range(5))
    assert store.description == {"layers": "2,-1"} and store.extra["labels"].tolist() == [0, 1, 2, 3, 4]


def test_a_writer_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), create_store(tmp_path / "x.store", 3) as writer:
        writer.append(np.ones((2, 3), np.float32))
        1 / 0  # noqa: B018
    assert not list(tmp_path.iterdir())


def test_an_empty_sentence_is_kept(tmp_path):
    with create_store(tmp_path / "x.store", 3) as writer:
        writer.append(np.empty((0, 3), np.float32))
        writer.finish({}, {})
    assert open_store(tmp_path / "x.store").padded(np.array([0]))[0].tolist() == [[[0, 0, 0]]]


def test_a_store_without_pairs_is_no_training_data(tmp_path):
    with create_store(tmp_path / "x.store", 3) as writer:
        writer.append(np.ones((2, 3), np.float32))
        writer.finish({}, {})
    with pytest.raises(InputError, match="holds no pairs"):
        open_pairs([tmp_path / "x.store"])


@many
@given(links=links, fraction=st.sampled_from([0.1, 0.2, 0.5]), seed=st.integers(0, 5))
def test_no_sentence_is_on_both_sides_of_a_split(make_pairs, links, fraction, seed):
    pairs = make_pairs(*np.array(links).T)
    try:
        training, validation = split_by_groups(pairs, fraction, seed)
    except InputError:
        assert sentence_groups(pairs).max() + 1 < round(1 / fraction)
        return
    sides = [set(side.first) | set(side.second) for side in (training, validation)]
    assert not sides[0] & sides[1]
    assert len(training) + len(validation) == len(pairs)
    assert len(validation) >= 1


@many
@given(links=links)
def test_groups_are_the_connected_components(make_pairs, links):
    pairs = make_pairs(*np.array(links).T)
    neighbours = defaultdict(set)
    for a, b in links:
        neighbours[a].add(b)
        neighbours[b].add(a)

    def reachable(start: int) -> frozenset[int]:
        seen, queue = {start}, [start]
        while queue:
            queue += (new := neighbours[queue.pop()] - seen)
            seen |= new
        return frozenset(seen)

    expected = [reachable(a) for a, _ in links]
    groups = sentence_groups(pairs)
    for i in range(len(links)):
        for j in range(i):
            assert (groups[i] == groups[j]) == (expected[i] == expected[j])


def test_the_same_tokens_are_the_same_sentence(tmp_path):
    """As in .dat files without text, where a sentence that occurs twice is stored twice."""
    tokens = random_sentences(np.random.default_rng(0), 6, dim=4)
    with create_store(tmp_path / "x.store", 4) as writer:
        for i in (0, 1, 2, 0, 4, 5):  # sentence 3 is sentence 0 again
            writer.append(tokens[i])
        extra = {"first": np.array([0, 1, 3]), "second": np.array([4, 5, 2]), "labels": np.ones(3, np.float32)}
        writer.finish(extra | {"sentences": np.frombuffer(b"[]", np.uint8)}, {})
    groups = sentence_groups(open_pairs([tmp_path / "x.store"]))
    assert groups[0] == groups[2] != groups[1]


def test_the_split_is_near_the_fraction_and_follows_the_seed(make_pairs):
    pairs = make_pairs(np.arange(200), np.arange(200, 400))
    splits = [split_by_groups(pairs, 0.1, seed)[1] for seed in (0, 0, 1)]
    assert [len(split) for split in splits] == [20, 20, 20]
    assert np.array_equal(splits[0].first, splits[1].first)
    assert not np.array_equal(splits[0].first, splits[2].first)
    for fraction in (0.01, 0.05, 0.125, 0.3, 0.35, 0.45, 0.8):
        training, validation = split_by_groups(pairs, fraction, 0)
        assert len(validation) == pytest.approx(200 * fraction, abs=1) and len(training) + len(validation) == 200
    for n, fraction in ((60, 0.996), (5, 0.9), (2, 0.8), (2, 0.5)):
        training, validation = split_by_groups(pairs.select(np.arange(n)), fraction, 0)
        assert len(training) == max(1, round(n * (1 - fraction))) and len(training) + len(validation) == n


def test_pairs_among_others_are_counted_in_either_order_by_text_or_tokens(make_pairs):
    pairs = make_pairs([0, 2, 4, 0], [1, 3, 5, 1])
    others = replace(pairs, first=np.array([1, 2, 4]), second=np.array([0, 5, 5]), labels=pairs.labels[:3])
    assert count_shared(pairs, others) == 3 and count_shared(others, pairs) == 2
    named = [replace(part, sentences=list("abcdef")) for part in (pairs, make_pairs([0, 0], [1, 2], seed=1))]
    assert count_shared(*named) == 2 and count_shared(named[0], replace(named[1], sentences=None)) == 0


@pytest.mark.parametrize(
    ("n", "sentences", "message"),
    [
        (1, 1, r"too few pairs \(1\), expected at least 10 to set aside 10%"),
        (9, 9, r"too few pairs \(9\), expected at least 10"),
        (12, 2, "cannot set aside 10% of 12 pairs: they share too many sentences and form only 2 groups"),
    ],
)
def test_pairs_that_cannot_be_split_say_why(make_pairs, n, sentences, message):
    with pytest.raises(InputError, match=message):
        split_by_groups(make_pairs(np.arange(n) % sentences, np.arange(100, 100 + n)), 0.1, 0)


@many
@given(links=links, batch_size=st.integers(2, 20), buckets=st.integers(1, 5), seed=st.integers(0, 3))
def test_batches_hold_every_pair_once_with_its_tokens_and_label(make_pairs, links, batch_size, buckets, seed):
    pairs = make_pairs(*np.array(links).T)
    seen = []
    for batch in training_batches(pairs, batch_size, np.random.default_rng(seed), buckets=buckets):
        rows = [sentence for tokens, _ in batch.buckets for sentence in tokens]
        first, second = batch.position.chunk(2)
        assert 2 <= len(batch.labels) <= batch_size and len(rows) == 2 * len(batch.labels)
        for a, b, label in zip(first, second, batch.labels, strict=True):
            (row,) = np.flatnonzero(pairs.labels == label.item())
            for place, side in ((a, pairs.first), (b, pairs.second)):
                expected = pairs.tokens.sentence(side[row])
                assert np.array_equal(rows[place][: len(expected)], expected) and not rows[place][len(expected) :].any()
            seen.append(row)
    alone = len(links) % batch_size == 1
    assert len(seen) == len(set(seen)) == len(links) - alone


def test_batches_are_other_ones_in_every_epoch(make_pairs):
    pairs = make_pairs(np.arange(30), np.arange(30, 60))
    orders = [
        [batch.labels.tolist() for batch in training_batches(pairs, 8, np.random.default_rng([0, epoch]))] for epoch in (1, 1, 2)
    ]
    assert orders[0] == orders[1] != orders[2]


@many
@given(indices=st.lists(st.integers(0, 19), min_size=1, max_size=40), batch_size=st.integers(1, 7))
def test_encode_is_the_encoder_on_each_sentence(make_pairs, indices, batch_size):
    store = make_pairs(np.arange(10), np.arange(10, 20)).tokens
    torch.manual_seed(0)
    encoder = SentenceEncoder(EncoderConfig(input_dim=8, output_dim=4, heads=2, hidden_dim=8)).train()
    vectors = encode(encoder, store, np.array(indices), batch_size=batch_size)
    assert encoder.training
    encoder.eval()
    expected = torch.cat([encoder(torch.tensor(store.sentence(i))[None]) for i in indices])
    torch.testing.assert_close(vectors, expected, atol=1e-6, rtol=0)


def test_mean_pooling_of_a_store_is_the_mean(make_pairs):
    store = make_pairs(np.arange(10), np.arange(10, 20)).tokens
    means = np.stack([store.sentence(i).mean(0) for i in range(20)])
    expected = means / np.linalg.norm(means, axis=1, keepdims=True)
    np.testing.assert_allclose(encode(mean_pooling(8), store, np.arange(20)), expected, atol=1e-6)


def test_groups_and_splits_depend_on_which_sentences_are_equal_and_not_on_their_tokens(make_pairs):
    """On another processor the same text has other rounding in its tokens, and must be split in the same way."""
    first, second = np.array([0, 2, 4, 0, 6, 8, 9, 11]), np.array([1, 3, 5, 3, 7, 6, 10, 12])
    assert sentence_groups(make_pairs(first, second)).tolist() == [0, 0, 1, 0, 2, 2, 3, 4]
    parts = [split_by_groups(make_pairs(first, second, seed=seed), 0.3, seed=0)[1].first.tolist() for seed in range(5)]
    assert all(part == parts[0] for part in parts)


def test_hard_starter_pairs_are_rows_of_the_starter_files_and_occur_once():
    starter = [row for path in (STARTER_TRAIN, STARTER_DEV, STARTER_TEST) for row in path.read_bytes().splitlines(keepends=True)]
    files = sorted((STARTER_TRAIN.parent / "hard").glob("*.tsv"))
    hard = [row for path in files for row in path.read_bytes().splitlines(keepends=True)]
    assert files and set(hard) <= set(starter)
    assert len(set(hard)) == len(hard)


def test_stores_go_next_to_the_files_into_their_folder_or_where_one_says(challenge, tmp_path):
    """Where a reader has put one is where others go."""
    open_pairs([challenge], dim=None)
    assert list(store_folder([challenge]).glob("*.store"))
    files = sorted(challenge.glob("*.dat"))
    assert store_folder(files) == store_folder([challenge]) == challenge
    assert store_folder([tmp_path / "pairs.csv"]) == tmp_path == store_folder([tmp_path / "pairs.store"])
    assert store_folder(["hf:someone/pairs"]) == Path("stores")
    assert store_folder([challenge], tmp_path / "cache") == tmp_path / "cache"
