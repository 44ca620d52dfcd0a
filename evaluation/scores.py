"""Scores of encoders on pairs, with labels or without."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from common.text_tables import text_table
from data import PairData
from evaluation.encoding import encode_numbers, encode_pairs
from evaluation.metrics import mae, mse, pearson, spearman, triplet_accuracy
from model import SentenceEncoder
from tokens.text_pairs import MAX_LABEL

if TYPE_CHECKING:
    from portable.small_encoder import SmallEncoder

MOST_SHARED = 0.1  # of the validation or test pairs; a few occur twice in many data sets


@dataclass(frozen=True)
class Scores:
    """How well an encoder's cosines agree with labels.

    Attributes:
        spearman: rank correlation of cosines and labels, -1 to 1.
        pearson: their linear correlation, -1 to 1.
        mse: mean squared error of the cosines against label / 5.
        mae: mean absolute error of the same.
        bias: mean of cosine minus label / 5; above 0 if pairs seem more similar than they are.
        unrelated: mean cosine of the first sentence of each pair and the second sentence of the next pair, after the last pair
            of the first one. In a file sorted by source these are sentences of the same kind of text, so it is a stricter test
            than sentences drawn at random. NaN for a single pair.
        pairs: n.
    """

    spearman: float
    pearson: float
    mse: float
    mae: float
    bias: float
    unrelated: float
    pairs: int


@dataclass(frozen=True)
class RankingScores:
    """How well an encoder finds the second sentence of each pair, for pairs without labels.

    Attributes:
        mrr: mean reciprocal rank of the second sentence, among all second sentences of the pairs, 0 below rank 10.
        triplet_accuracy: share of the pairs' negatives that are less similar to the first sentence than the second one is;
            NaN without negatives.
        pairs: n.
    """

    mrr: float
    triplet_accuracy: float
    pairs: int


METRICS = {
    "spearman": "Spearman",
    "pearson": "Pearson",
    "mse": "error",
    "triplet_accuracy": "triplet accuracy",
    "mrr": "MRR@10",
}


def selection_metric(pairs: PairData) -> str:
    """The score that chooses the best weights on pairs: Spearman with labels, else triplet accuracy or, without negatives, MRR."""
    return "spearman" if pairs.has_labels else "mrr" if pairs.negatives is None else "triplet_accuracy"


def worse_scores(scores: Scores | RankingScores, baseline: Scores | RankingScores, metric: str) -> list[str]:
    """The names of the scores that are worse than the baseline's, or NaN: `metric`, and with labels the error of the cosines."""
    worse = [] if getattr(scores, metric) >= getattr(baseline, metric) else [metric]
    if isinstance(scores, Scores) and isinstance(baseline, Scores) and not scores.mse <= baseline.mse:
        worse.append("mse")
    return worse


def score(
    encoder: SentenceEncoder | SmallEncoder, pairs: PairData, embeddings: tuple[torch.Tensor, torch.Tensor] | None = None
) -> Scores | RankingScores:
    """Score an encoder on pairs, whose `embeddings` may be known."""
    first, second = embeddings or encode_pairs(encoder, pairs)
    if pairs.has_labels:
        return score_embeddings(first, second, pairs.labels)
    accuracy = float("nan")
    if pairs.negatives is not None:
        negatives = encode_numbers(encoder, pairs, pairs.negatives.ravel()).unflatten(0, pairs.negatives.shape)
        similar = (first[:, None] * second[:, None]).sum(2)
        accuracy = triplet_accuracy(similar.expand(-1, negatives.shape[1]).numpy(), (first[:, None] * negatives).sum(2).numpy())
    return RankingScores(_mean_reciprocal_rank(first, second, pairs), accuracy, len(pairs))


def _mean_reciprocal_rank(first: torch.Tensor, second: torch.Tensor, pairs: PairData, k: int = 10) -> float:
    """Each first sentence ranks the different second sentences but itself; those of all its pairs are relevant."""
    digests = pairs.tokens.digests
    documents, sample, document_of = np.unique(digests[pairs.second], return_index=True, return_inverse=True)
    _, query_of = np.unique(digests[pairs.first], return_inverse=True)
    relevant = [set() for _ in range(query_of.max() + 1)]  # type: list[set[int]]
    for query, document in zip(query_of.tolist(), document_of.tolist(), strict=True):
        relevant[query].add(document)
    reciprocals = []
    for start in range(0, len(pairs), 512):
        rows = slice(start, start + 512)
        cosine = (first[rows] @ second[torch.from_numpy(sample)].T).numpy()
        cosine[digests[pairs.first[rows], None] == documents] = -np.inf
        for query, similarities in zip(query_of[rows], cosine, strict=True):
            own = list(relevant[query])
            ahead = np.delete(similarities, own) > similarities[own].max()
            rank = 1 + int(ahead.sum())
            reciprocals.append(1 / rank if rank <= k else 0.0)
    return float(np.mean(reciprocals))


def score_embeddings(first: torch.Tensor, second: torch.Tensor, labels: np.ndarray) -> Scores:
    """Score the cosines of unit-length embeddings `(n, K)` and `(n, K)` against labels `(n,)`, 0-5."""
    cosine = cosines(first, second)
    similarity = labels / MAX_LABEL
    return Scores(
        spearman=spearman(cosine, labels),
        pearson=pearson(cosine, labels),
        mse=mse(cosine, similarity),
        mae=mae(cosine, similarity),
        bias=float(np.mean(cosine - similarity, dtype=np.float64)),
        unrelated=float(cosines(first, second.roll(-1, 0)).mean(dtype=np.float64)) if len(labels) > 1 else float("nan"),
        pairs=len(labels),
    )


def cosines(first: torch.Tensor, second: torch.Tensor) -> np.ndarray:
    """Cosine of each pair `(n,)`, from unit-length embeddings `(n, K)` and `(n, K)`."""
    return (first * second).sum(1).numpy()


def score_table(columns: Mapping[str, Mapping[str, float | int]]) -> str:
    """A text table with one column per encoder and one row per score that is known."""
    lines = [["", *columns]]
    for name in next(iter(columns.values())):
        values = [scores[name] for scores in columns.values()]
        if np.isnan(values).all():
            continue
        lines.append([name, *(f"{value:.4f}" if isinstance(value, float) else f"{value:,}" for value in values)])
    return text_table(lines)


def warn_of_shared(name: str, shared: int, pairs: int) -> None:
    """Warn if many of the validation or test pairs, as `name` says, are training pairs too."""
    if shared >= MOST_SHARED * pairs:
        warning = f"{shared:,} of the {pairs:,} {name} pairs are training pairs too, so {name} scores will be too good"
        print(f"warning: {warning}; give other pairs", file=sys.stderr)
