"""Several encoders on several data sets: your own, mean pooling of the same tokens, and the backbone off the shelf."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from data import PairData
from evaluation.calibration import Calibration
from evaluation.encoding import encode_pairs
from evaluation.metrics import best_threshold, mae, mse
from evaluation.scores import cosines, score
from model import EncoderConfig, SentenceEncoder, mean_pooling
from tokens.backbone import is_known_to_mean_pool
from tokens.token_store import TokenStore

if TYPE_CHECKING:
    from portable.small_encoder import SmallEncoder

    Encoder = SentenceEncoder | SmallEncoder

BASELINE, ENCODER = "mean pooling", "encoder"
NOT_AVERAGED = ("pairs", "threshold")
RANGES = {
    "below 0": (-math.inf, 0),
    "0 to 0.2": (0, 0.2),
    "0.2 to 0.4": (0.2, 0.4),
    "0.4 to 0.6": (0.4, 0.6),
    "0.6 to 0.8": (0.6, 0.8),
    "0.8 to 1": (0.8, math.inf),  # rounding gives cosines just above 1
}

EncoderScores = Mapping[str, Mapping[str, float | int]]  # by encoder and score


@dataclass(frozen=True)
class Evaluation:
    """An encoder on n pairs.

    Attributes:
        scores: the fields of `Scores` or `RankingScores`, but correlations with equal labels are NaN; with two-valued labels
            `threshold` and `accuracy`, see `best_threshold`; with a calibration `mse of label` and `mae of label`, the errors of
            the predicted labels.
        cosine: `(n,)`, of each pair.
        predicted: `(n,)`, labels 0-5 that a calibration predicts, if there is one.
        output_dim: dimensions of an embedding.
        parameters: number of learned parameters.
        sentences: distinct sentences in the pairs.
        seconds: time to encode them.
        from_text: whether it encoded their text, as a whole encoder does, and not tokens made before.
    """

    scores: dict[str, float | int]
    cosine: np.ndarray
    predicted: np.ndarray | None
    output_dim: int
    parameters: int
    sentences: int
    seconds: float
    from_text: bool = False


def evaluate(encoder: Encoder, pairs: PairData, calibration: Calibration | None = None) -> Evaluation:
    """Score an encoder on pairs; with labels, a calibration of its cosines on other pairs predicts them."""
    sentences = len(np.unique(pairs.tokens.digests[np.concatenate([pairs.first, pairs.second])]))
    start = time.perf_counter()
    embeddings = encode_pairs(encoder, pairs)
    seconds = time.perf_counter() - start
    cosine, predicted = cosines(*embeddings), None
    scores: dict[str, float | int] = asdict(score(encoder, pairs, embeddings))
    n_labels = len(np.unique(pairs.labels)) if pairs.has_labels else 0
    if n_labels == 1:
        scores |= {"spearman": math.nan, "pearson": math.nan}  # not 0, which an encoder of equal cosines has earned
    if n_labels == 2:
        scores["threshold"], scores["accuracy"] = best_threshold(cosine, pairs.labels == pairs.labels.max())
    if pairs.has_labels and calibration is not None:
        predicted = calibration.predict(cosine)
        scores |= {"mse of label": mse(predicted, pairs.labels), "mae of label": mae(predicted, pairs.labels)}
    from_text = not isinstance(encoder, SentenceEncoder)
    if isinstance(encoder, SentenceEncoder):
        parameters, output_dim = sum(parameter.numel() for parameter in encoder.parameters()), encoder.config.output_dim
    else:
        parameters, output_dim = encoder.config["parameters"], encoder.output_dim
    return Evaluation(scores, cosine, predicted, output_dim, parameters, sentences, seconds, from_text)


def encoders_to_compare(encoder: Encoder, tokens: TokenStore) -> dict[str, Encoder]:
    """Mean pooling, the encoder and, where the tokens hold it, the backbone off the shelf: encoders of these tokens by name."""
    return {BASELINE: mean_pooling(tokens.dim), ENCODER: encoder, **off_the_shelf(tokens)}


def off_the_shelf(tokens: TokenStore) -> dict[str, SentenceEncoder]:
    """What sentence-transformers' `encode` gives with the backbone of these tokens, as an encoder of them by its name.

    It is the mean of the last layer's dimensions. Empty unless the store's description names a backbone that is known to pool by
    the mean, and its layers include the last one (-1). Sentences that the store truncated stay truncated.
    """
    name, layers = tokens.description.get("backbone"), str(tokens.description.get("layers")).replace(" ", "").split(",")
    if name is None or "-1" not in layers or not is_known_to_mean_pool(name):
        return {}
    width = tokens.dim // len(layers)
    encoder = SentenceEncoder(EncoderConfig("projection", input_dim=tokens.dim, output_dim=width))
    encoder.head = _Dimensions(width * layers.index("-1"), width)  # in place of the learned projection
    return {f"{Path(name).name}, off the shelf": encoder}


@dataclass(frozen=True)
class DataSet:
    """A data set of n pairs: its name, its labels `(n,)`, 0-5, if it has any, and the evaluation of each encoder."""

    name: str
    labels: np.ndarray
    has_labels: bool
    evaluations: dict[str, Evaluation]

    @property
    def is_graded(self) -> bool:
        """Whether the labels have more than two values."""
        return len(np.unique(self.labels)) > 2

    @property
    def scores(self) -> EncoderScores:
        """The scores of each encoder."""
        return {name: evaluation.scores for name, evaluation in self.evaluations.items()}


def calibrate(encoder: Encoder, validation: PairData) -> dict[str, Calibration]:
    """A calibration to labels for each encoder that is compared, by name; none if the pairs have no labels."""
    if not validation.has_labels:
        return {}
    candidates = encoders_to_compare(encoder, validation.tokens)
    return {name: Calibration(cosines(*encode_pairs(each, validation)), validation.labels) for name, each in candidates.items()}


def evaluate_all(name: str, pairs: PairData, encoder: Encoder, calibrations: Mapping[str, Calibration]) -> DataSet:
    """Evaluate every encoder that is compared on a data set; with calibrations, by encoder, labels are predicted too."""
    candidates = encoders_to_compare(encoder, pairs.tokens)
    encode_pairs(candidates[BASELINE], pairs)  # fills the page cache, so that no timing includes disk reads
    evaluations = {who: evaluate(each, pairs, calibrations.get(who)) for who, each in candidates.items()}
    return DataSet(name, pairs.labels, pairs.has_labels, evaluations)


def mean_scores(scores: Sequence[EncoderScores]) -> dict[str, dict[str, float]]:
    """The mean of each score over data sets, for encoders and scores that all of them have; NaN if it is NaN in one of them."""
    first, *others = scores
    encoders = [who for who in first if all(who in other for other in others)]
    return {
        who: {
            name: float(np.mean([each[who][name] for each in scores]))
            for name in first[who]
            if name not in NOT_AVERAGED and all(name in other[who] for other in others)
        }
        for who in encoders
    }


def costs(data_sets: Sequence[DataSet]) -> dict[str, dict[str, int]]:
    """Dimensions, parameters and speed, in distinct sentences per second over all data sets, of each encoder.

    Next to a whole encoder, which starts from text, the others have no speed: theirs is that of pooling tokens that are ready.
    """
    evaluations: dict[str, list[Evaluation]] = {}
    for data in data_sets:
        for who, evaluation in data.evaluations.items():
            evaluations.setdefault(who, []).append(evaluation)
    speeds = {
        who: {"sentences/s": round(sum(each.sentences for each in own) / sum(each.seconds for each in own))}
        for who, own in evaluations.items()
        if own[0].from_text == evaluations[ENCODER][0].from_text
    }
    return {
        who: {"output dim": own[0].output_dim, "parameters": own[0].parameters, **speeds.get(who, {})}
        for who, own in evaluations.items()
    }


def meaning(labelled: Sequence[DataSet]) -> dict[str, dict[str, dict[str, float | int]]]:
    """What cosines mean, over the pairs of all data sets, for mean pooling and the encoder.

    Returns:
        By range of cosines and encoder, the pairs in it and the mean and standard deviation of their labels, NaN if there are
        none; under "unrelated", the mean cosine of unrelated sentences (see `Scores`).
    """
    labels = np.concatenate([data.labels for data in labelled])
    table: dict[str, dict[str, dict[str, float | int]]] = {name: {} for name in (*RANGES, "unrelated")}
    for who in (BASELINE, ENCODER):
        cosine = np.concatenate([data.evaluations[who].cosine for data in labelled])
        for name, (lowest, highest) in RANGES.items():
            inside = labels[(lowest <= cosine) & (cosine < highest)].astype(np.float64)
            spread = (float(inside.mean()), float(inside.std())) if len(inside) else (math.nan, math.nan)
            table[name][who] = {"pairs": len(inside), "mean label": spread[0], "standard deviation": spread[1]}
        several = [data.scores[who] for data in labelled if data.scores[who]["pairs"] > 1]
        n = sum(scores["pairs"] for scores in several)
        total = sum(scores["unrelated"] * scores["pairs"] for scores in several)
        table["unrelated"][who] = {"pairs": n, "mean cosine": total / n if n else math.nan}
    return table


class _Dimensions(nn.Module):
    """Some neighbouring dimensions of pooled sentences."""

    def __init__(self, start: int, width: int) -> None:
        super().__init__()
        self.chosen = slice(start, start + width)

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        """`(B, D)` to `(B, width)`."""
        return pooled[:, self.chosen]
