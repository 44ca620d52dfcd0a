"""Scores of an encoder on labelled pairs, compared with mean pooling of the same tokens."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
import torch

from data import PairData
from evaluation.calibration import Calibration
from evaluation.encoding import encode_pairs
from evaluation.metrics import mae, mse, pearson, spearman
from model import SentenceEncoder, mean_pooling
from tokens.text_files import MAX_LABEL


@dataclass(frozen=True)
class Scores:
    """Correlations of an encoder's cosines with labels, errors of the cosines against label / 5, and the number of pairs."""

    spearman: float
    pearson: float
    mse: float
    mae: float
    pairs: int


def score(encoder: SentenceEncoder, pairs: PairData) -> Scores:
    """Score an encoder on labelled pairs."""
    return score_embeddings(*encode_pairs(encoder, pairs), pairs.labels)


def score_embeddings(first: torch.Tensor, second: torch.Tensor, labels: np.ndarray) -> Scores:
    """Score the cosines of unit-length embeddings `(n, K)` and `(n, K)` against labels `(n,)`, 0-5."""
    cosine = cosines(first, second)
    similarity = labels / MAX_LABEL
    return Scores(
        spearman=spearman(cosine, labels),
        pearson=pearson(cosine, labels),
        mse=mse(cosine, similarity),
        mae=mae(cosine, similarity),
        pairs=len(labels),
    )


def cosines(first: torch.Tensor, second: torch.Tensor) -> np.ndarray:
    """Cosine of each pair `(n,)`, from unit-length embeddings `(n, K)` and `(n, K)`."""
    return (first * second).sum(1).numpy()


def score_table(columns: Mapping[str, Mapping[str, float | int]]) -> str:
    """A text table with one column per encoder and one row per score."""
    lines = [["", *columns]]
    for name in next(iter(columns.values())):
        values = (scores[name] for scores in columns.values())
        lines.append([name, *(f"{value:.4f}" if isinstance(value, float) else f"{value:,}" for value in values)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([name.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))])
        for name, *cells in lines
    )


def compare(
    encoder: SentenceEncoder, pairs: PairData, validation: PairData | None = None
) -> tuple[dict[str, dict[str, float | int]], dict[str, np.ndarray]]:
    """Score mean pooling and an encoder on the same pairs.

    Args:
        encoder: the encoder.
        pairs: pairs to score on.
        validation: other pairs, to calibrate cosines to labels.

    Returns:
        Scores, size and speed (distinct sentences per second) by "mean pooling" and "encoder", and by the same names the
        predicted labels `(n,)`, 0-5, if there are validation pairs.
    """
    results, predictions = {}, {}
    baseline = mean_pooling(pairs.tokens.dim)
    encode_pairs(baseline, pairs)  # fills the page cache, so that neither timing includes disk reads
    distinct = len(np.unique(pairs.tokens.digests[np.concatenate([pairs.first, pairs.second])]))
    for name, candidate in (("mean pooling", baseline), ("encoder", encoder)):
        start = time.perf_counter()
        first, second = encode_pairs(candidate, pairs)
        seconds = time.perf_counter() - start
        scores: dict[str, float | int] = asdict(score_embeddings(first, second, pairs.labels))
        if validation is not None:
            calibration = Calibration(cosines(*encode_pairs(candidate, validation)), validation.labels)
            predicted = predictions[name] = calibration.predict(cosines(first, second))
            scores |= {"mse of label": mse(predicted, pairs.labels), "mae of label": mae(predicted, pairs.labels)}
        scores["output dim"] = candidate.config.output_dim
        scores["parameters"] = sum(parameter.numel() for parameter in candidate.parameters())
        scores["sentences/s"] = round(distinct / seconds)
        results[name] = scores
    return results, predictions
