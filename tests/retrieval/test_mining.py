"""Hard negatives: compared with sentence-transformers' `mine_hard_negatives`, and never a positive."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers import util

from common.errors import InputError
from retrieval.mining import MiningConfig, mine_hard_negatives


class EmbeddingTable:
    """The methods of a SentenceTransformer that mining needs; looks embeddings up by sentence."""

    device = "cpu"

    def __init__(self, anchors: torch.Tensor, documents: torch.Tensor) -> None:
        self.table = {f"a{i}": vector for i, vector in enumerate(anchors)} | {f"d{i}": vector for i, vector in enumerate(documents)}

    def encode_query(self, sentences, **_) -> np.ndarray:
        return torch.stack([self.table[sentence] for sentence in sentences]).numpy()

    encode_document = encode_query

    @staticmethod
    def similarity(a, b) -> torch.Tensor:
        return torch.as_tensor(a) @ torch.as_tensor(b).T

    @staticmethod
    def similarity_pairwise(a, b) -> torch.Tensor:
        return (torch.as_tensor(a) * torch.as_tensor(b)).sum(1)


def vectors(n: int, seed: int, dim: int = 16) -> torch.Tensor:
    return F.normalize(torch.randn(n, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


@pytest.fixture
def scene() -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """40 anchors with one to three positives close to them among 300 documents."""
    rng = np.random.default_rng(0)
    anchors, documents = vectors(40, 1), vectors(300, 2)
    positives = np.array([(i, j) for i in range(40) for j in rng.choice(300, rng.integers(1, 4), replace=False)])
    near = documents[positives[:, 1]] + anchors[positives[:, 0]]
    documents[positives[:, 1]] = F.normalize(near, dim=1)
    return anchors, documents, positives


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_negatives": 5, "range_min": 2},
        {"range_min": 3, "range_max": 20, "num_negatives": 7},
        {"absolute_margin": 0.1},
        {"relative_margin": 0.3, "num_negatives": 4},
        {"max_score": 0.4, "min_score": 0.2},
        {"absolute_margin": 0.05, "max_score": 0.5, "range_min": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("chunks", [(512, 16_384), (7, 11)])
def test_agrees_with_sentence_transformers(scene, options, chunks):
    anchors, documents, positives = scene
    pairs = Dataset.from_dict({"anchor": [f"a{i}" for i in positives[:, 0]], "positive": [f"d{j}" for j in positives[:, 1]]})
    theirs = util.mine_hard_negatives(
        pairs,
        EmbeddingTable(anchors, documents),
        corpus=[f"d{j}" for j in range(300)],
        output_format="triplet",
        verbose=False,
        **{"num_negatives": 3} | options,
    )
    expected = {(row["anchor"], row["negative"]) for row in theirs}
    mined = mine_hard_negatives(
        anchors, documents, positives, MiningConfig(**options), anchor_chunk=chunks[0], document_chunk=chunks[1]
    )
    found = {(f"a{i}", f"d{j}") for i, row in enumerate(mined.negatives) for j in row if j >= 0}
    assert found == expected and len(found) > 50
    for i, row in enumerate(mined.negatives):
        for j, score in zip(row[row >= 0], mined.scores[i][row >= 0], strict=True):
            assert score == pytest.approx(float(anchors[i] @ documents[j]), abs=1e-5)


@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(0, 3), st.sampled_from(["top", "random"]))
@settings(max_examples=40, deadline=None)
def test_positives_and_excluded_documents_are_never_negatives(seed, num_negatives, range_min, strategy):
    rng = np.random.default_rng(seed)
    documents = vectors(20, seed)
    anchors = documents[:8]
    themselves = np.stack([np.arange(8), np.arange(8)], axis=1)
    positives = np.array([(i, j) for i in range(8) for j in rng.choice(20, rng.integers(1, 6), replace=False)])
    config = MiningConfig(num_negatives=num_negatives, range_min=range_min, sampling_strategy=strategy, seed=seed)
    mined = mine_hard_negatives(anchors, documents, positives, config, excluded=themselves)
    for i, row in enumerate(mined.negatives):
        found = row[row >= 0]
        assert len(set(found)) == len(found)
        assert not set(found) & ({i} | {j for a, j in positives if a == i})
        assert (np.diff(mined.scores[i][row >= 0]) <= 0).all()


def test_random_negatives_are_among_the_candidates_and_follow_the_seed(scene):
    anchors, documents, positives = scene
    every = mine_hard_negatives(anchors, documents, positives, MiningConfig(num_negatives=20, range_max=20))
    picked = [
        mine_hard_negatives(
            anchors, documents, positives, MiningConfig(num_negatives=3, range_max=20, sampling_strategy="random", seed=seed)
        )
        for seed in (0, 0, 1)
    ]
    assert np.array_equal(picked[0].negatives, picked[1].negatives) and not np.array_equal(picked[0].negatives, picked[2].negatives)
    for i in range(40):
        assert set(picked[0].negatives[i]) <= set(every.negatives[i])


def test_the_report_says_what_was_found_and_skipped(scene):
    mined = mine_hard_negatives(*scene, MiningConfig(absolute_margin=0.3))
    assert f"{(mined.negatives >= 0).sum()} negatives for 40 anchors" in mined.report()
    anchors, documents, positives = scene
    closer = [float(anchors[i] @ documents[j]) > mined.scores[i].max() for i, j in positives]
    assert f"closer than the anchor's hardest negative: {np.mean(closer):.0%}" in mined.report()
    assert f"candidates skipped by absolute_margin: {mined.skipped['absolute_margin']:,}" in mined.report()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_negatives": 0}, "num_negatives is 0, expected 1 or more"),
        ({"range_min": -1}, "range_min is -1, expected 0 or more"),
        ({"range_min": 5, "range_max": 6}, "range_min 5 and range_max 6 leave 1 candidates"),
        ({"sampling_strategy": "worst"}, "sampling_strategy is 'worst', expected top or random"),
        ({"num_negatives": 300}, "300 documents are too few for num_negatives 300 after range_min 0"),
        ({"absolute_margin": 2.5}, r"no negatives found: absolute_margin 2.5 skipped \d+; loosen the limits"),
    ],
)
def test_settings_that_leave_no_negatives_are_refused(scene, options, message):
    with pytest.raises(InputError, match=message):
        mine_hard_negatives(*scene, MiningConfig(**options))


def test_faiss_finds_the_same(scene):
    plain, by_faiss = (mine_hard_negatives(*scene, MiningConfig(), use_faiss=use_faiss) for use_faiss in (False, True))
    assert np.array_equal(plain.negatives, by_faiss.negatives)
