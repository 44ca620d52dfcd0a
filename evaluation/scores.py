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
    """How well an encoder's cosines agree with the labels of n pairs.

    Attributes:
        spearman: rank correlation of cosine and label.
        pearson: linear correlation of cosine and label.
        mse: mean squared error between cosine and label / 5.
        mae: mean absolute error between cosine and label / 5.
        pairs: n.
    """

    spearman: float
    pearson: float
    mse: float
    mae: float
    pairs: int


def score(encoder: SentenceEncoder, pairs: PairData) -> Scores:
    """Encode all pairs and compare their cosines with their labels."""
    first, second = encode_pairs(encoder, pairs)
    return score_vectors(first, second, pairs.labels)


def score_vectors(first: torch.Tensor, second: torch.Tensor, labels: np.ndarray) -> Scores:
    """Compare the cosines of unit vectors `(n, K)` and `(n, K)` with labels `(n,)`, 0-5."""
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
    """The cosine `(n,)` of each pair of unit vectors `(n, K)` and `(n, K)`."""
    return (first * second).sum(1).numpy()


def score_table(columns: Mapping[str, Mapping[str, float | int | str]]) -> str:
    """A text table: one column for each encoder, one row for each figure."""
    rows = {name: [str(name)] for name in next(iter(columns.values()))}
    for figures in columns.values():
        for name, value in figures.items():
            rows[name].append(f"{value:.4f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value)
    lines = [["", *columns], *rows.values()]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    )


@dataclass(frozen=True)
class Comparison:
    """Mean pooling and an encoder on the same pairs, by name.

    Attributes:
        figures: scores, size and speed.
        predicted: labels `(n,)` after a monotone fit; empty without validation pairs to fit on.
    """

    figures: dict[str, dict[str, float | int]]
    predicted: dict[str, np.ndarray]


def compare(encoder: SentenceEncoder, pairs: PairData, validation: PairData | None = None) -> Comparison:
    """Measure mean pooling and the encoder on the same pairs.

    Sentences per second counts different sentences, encoding alone, on the threads that torch has.

    Args:
        encoder: the encoder.
        pairs: what the figures are measured on.
        validation: other pairs, to fit the map from cosine to label on.
    """
    comparison = Comparison({}, {})
    encode_pairs(mean_pooling(pairs.tokens.dim), pairs)  # all tokens into the page cache: the first to be timed reads no disk
    for name, candidate in (("mean pooling", mean_pooling(pairs.tokens.dim)), ("encoder", encoder)):
        candidate.eval()
        begin = time.perf_counter()
        first, second = encode_pairs(candidate, pairs)
        seconds = time.perf_counter() - begin
        different = len(np.unique(pairs.tokens.digests[np.concatenate([pairs.first, pairs.second])]))
        figures: dict[str, float | int] = asdict(score_vectors(first, second, pairs.labels))
        if validation is not None:
            fit = Calibration(cosines(*encode_pairs(candidate, validation)), validation.labels)
            predicted = fit.predict(cosines(first, second))
            comparison.predicted[name] = predicted
            figures |= {"mse of label": mse(predicted, pairs.labels), "mae of label": mae(predicted, pairs.labels)}
        figures["output dim"] = candidate.config.output_dim
        figures["parameters"] = sum(parameter.numel() for parameter in candidate.parameters())
        figures["sentences/s"] = round(different / seconds)
        comparison.figures[name] = figures
    return comparison
