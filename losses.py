"""Losses over a batch of sentence pairs: pure functions of embeddings and labels.

Every loss takes the embeddings of B first sentences and their B second sentences, `(B, K)` each and of unit length,
their labels `(B,)`, and a guide: the same sentences as another encoder sees them, or None. It gives a scalar that is smaller
the better. `LOSSES` names them for recipes.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def nt_xent(
    first: Tensor, second: Tensor, labels: Tensor | None = None, guide: Tensor | None = None, *, temperature: float = 0.05
) -> Tensor:
    """Normalised temperature-scaled cross-entropy: a pair is the positive, all other sentences are negatives.

    Each of the 2B sentences must pick its partner among the 2B - 1 others. Labels are not used: give it pairs that
    mean the same. With a guide, a negative that the guide finds more similar to the sentence than its partner is
    taken for a false negative and left out. Range: 0 and more; log(2B - 1) where all sentences are alike.

    Source: Chen et al. 2020, A Simple Framework for Contrastive Learning of Visual Representations, eq. 1; the guide:
    Solatorio 2024, GISTEmbed, eq. 5.

    Args:
        first: `(B, K)`, unit length.
        second: `(B, K)`, unit length.
        labels: ignored.
        guide: `(2B, G)`, unit length, first sentences and then second sentences.
        temperature: what similarities are divided by; the smaller, the more the hardest negatives count.
    """
    n = len(first)
    sentences = torch.cat([first, second])
    similarity = sentences @ sentences.T / temperature
    similarity = similarity.masked_fill(torch.eye(2 * n, dtype=torch.bool, device=first.device), -torch.inf)
    partner = torch.arange(2 * n, device=first.device).roll(n)
    if guide is not None:
        theirs = guide @ guide.T
        similarity = similarity.masked_fill(theirs > theirs.gather(1, partner[:, None]), -torch.inf)
    return F.cross_entropy(similarity, partner)


def cosine_mse(
    first: Tensor, second: Tensor, labels: Tensor, guide: Tensor | None = None, *, lowest: float = -1.0, tanh: float = 0.0
) -> Tensor:
    """Mean squared error between the cosine, brought from `lowest` to 1 onto 0 to 1, and `label / 5`.

    `(cos - lowest) / (1 - lowest)`: `(cos + 1) / 2` by default, the plain cosine with 0. It asks for the value of a
    similarity, not only its rank: prefer CoSENT where the score is a rank correlation. Range: 0 to 1 by default, 0 to 4 for
    the plain cosine. Source: the published recipe.

    Args:
        first: `(B, K)`, unit length.
        second: `(B, K)`, unit length.
        labels: `(B,)`, 0 to 5.
        guide: ignored.
        lowest: the cosine that stands for label 0, below 1.
        tanh: steepness of `tanh(tanh * cos) / tanh(tanh)` in place of the cosine, which spreads those near 0; 0 leaves it out.
    """
    cosine = (first * second).sum(1)
    if tanh:
        cosine = (tanh * cosine).tanh() / math.tanh(tanh)
    return F.mse_loss((cosine - lowest) / (1 - lowest), labels / 5)


def hard_negative_margin(
    first: Tensor, second: Tensor, labels: Tensor | None = None, guide: Tensor | None = None, *, margin: float = 0.2
) -> Tensor:
    """The most similar other sentence of the batch must stay a margin below the pair.

    `mean over all 2B sentences of max(0, margin + cos(sentence, hardest other) - cos(pair))`. Range: 0 to 2 + margin;
    0 for a single pair. Source: the published recipe; the hardest negative as in Faghri et al. 2018, VSE++, eq. 6.

    Args:
        first: `(B, K)`, unit length.
        second: `(B, K)`, unit length.
        labels: ignored.
        guide: ignored.
        margin: how far below, in cosine.
    """
    n = len(first)
    if n < 2:
        return (first * second).sum() * 0
    sentences = torch.cat([first, second])
    own = torch.eye(n, dtype=torch.bool, device=first.device).repeat(2, 2)
    hardest = (sentences @ sentences.T).masked_fill(own, -torch.inf).amax(1)
    pair = (first * second).sum(1).repeat(2)
    return F.relu(margin + hardest - pair).mean()


def cosent(first: Tensor, second: Tensor, labels: Tensor, guide: Tensor | None = None, *, scale: float = 20.0) -> Tensor:
    """CoSENT: pairs with a higher label must have a higher cosine, for all pairs of pairs in the batch.

    `log(1 + sum of exp(scale * (cos_i - cos_j)) over all i, j with label_i < label_j)`. A smooth stand-in for rank
    correlation. Range: 0 and more; 0 where all labels are equal.

    Source: Su 2022, CoSENT, https://kexue.fm/archives/8847.

    Args:
        first: `(B, K)`, unit length.
        second: `(B, K)`, unit length.
        labels: `(B,)`; only their order counts.
        guide: ignored.
        scale: the inverse of the temperature; the larger, the more the worst inversions count.
    """
    cosine = scale * (first * second).sum(1)
    differences = cosine[:, None] - cosine[None, :]
    ordered = labels[:, None] < labels[None, :]
    return torch.logsumexp(torch.cat([differences.new_zeros(1), differences[ordered]]), dim=0)


def pearson(first: Tensor, second: Tensor, labels: Tensor, guide: Tensor | None = None) -> Tensor:
    """One minus the linear correlation of cosine and label over the batch.

    It asks for cosines in proportion to labels, where CoSENT asks for their order only, and leaves scale and offset free,
    which `cosine_mse` does not. Range: 0 to 2; 1 where all labels are equal, without a gradient.

    Source: Pearson's correlation coefficient, as in scipy.stats.pearsonr.

    Args:
        first: `(B, K)`, unit length.
        second: `(B, K)`, unit length.
        labels: `(B,)`.
        guide: ignored.
    """
    cosine = (first * second).sum(1)
    return 1 - F.cosine_similarity(cosine - cosine.mean(), labels - labels.mean(), dim=0)


def distillation(first: Tensor, second: Tensor, labels: Tensor | None, guide: Tensor) -> Tensor:
    """Mean squared error between the cosines of all 2B sentences of the batch and those of the guide.

    It carries over what the guide makes of 2B (2B - 1) / 2 pairs, where labels speak of B. Range: 0 to 4.

    Source: Tung and Mori 2019, Similarity-Preserving Knowledge Distillation, eq. 4, on unit vectors.

    Args:
        first: `(B, K)`, unit length.
        second: `(B, K)`, unit length.
        labels: ignored.
        guide: `(2B, G)`, unit length, first sentences and then second sentences.
    """
    sentences = torch.cat([first, second])
    return F.mse_loss(sentences @ sentences.T, guide @ guide.T)


def ranking(
    first: Tensor,
    second: Tensor,
    labels: Tensor | None = None,
    guide: Tensor | None = None,
    *,
    negatives: Tensor | None = None,
    scale: float = 20.0,
    symmetric: bool = False,
    min_label: float = 0.0,
) -> Tensor:
    """Multiple negatives ranking, also called InfoNCE: each first sentence must pick its second among all documents.

    The documents are the second sentences of the batch and the mined negatives of all its pairs. Pairs labelled below
    `min_label` are no positives; their second sentence stays among the documents of the others. With a guide, a document
    that the guide finds more similar to the sentence than its own is taken for a false negative and left out. Prefer it to
    NT-Xent where the two sides differ, as questions and answers do. Range: 0 and more; 0 where no pair is a positive.

    Source: Henderson et al. 2017, Efficient Natural Language Response Suggestion, eq. 4, on cosines; sentence-transformers'
    MultipleNegativesRankingLoss; the guide: Solatorio 2024, GISTEmbed.

    Args:
        first: `(B, K)`, unit length.
        second: `(B, K)`, unit length.
        labels: `(B,)`, 0 to 5; only used with `min_label`.
        guide: `(2B + B N, G)`, unit length, first sentences, then second ones, then negatives.
        negatives: `(B, N, K)`, unit length, those of each pair.
        scale: what cosines are multiplied by; the larger, the more the hardest negatives count.
        symmetric: also each second sentence must pick its first among the first sentences; the mean of both.
        min_label: label from which on a pair is a positive.
    """
    n = len(first)
    documents = second if negatives is None else torch.cat([second, negatives.flatten(0, 1)])
    is_positive = torch.ones(n, dtype=torch.bool, device=first.device) if labels is None else labels >= min_label
    own = torch.arange(n, device=first.device)
    forwards, backwards = scale * first @ documents.T, scale * second @ first.T
    if guide is not None:
        theirs = guide[:n] @ guide[n:].T
        false_negative = theirs > theirs.gather(1, own[:, None])
        forwards = forwards.masked_fill(false_negative, -torch.inf)
        backwards = backwards.masked_fill((theirs[:, :n] > theirs[own, own]).T, -torch.inf)
    if not is_positive.any():
        return (first * second).sum() * 0
    directions = [forwards, backwards] if symmetric else [forwards]
    return torch.stack([F.cross_entropy(scores[is_positive], own[is_positive]) for scores in directions]).mean()


LOSSES: dict[str, Callable[..., Tensor]] = {
    "nt_xent": nt_xent,
    "ranking": ranking,
    "cosine_mse": cosine_mse,
    "hard_negative_margin": hard_negative_margin,
    "cosent": cosent,
    "pearson": pearson,
    "distillation": distillation,
}

WITH_NEGATIVES = ("ranking",)  # they learn from mined negatives, where there are some
WITHOUT_LABELS = ("distillation",)  # they need a guide instead, and learn from sentences without label too
