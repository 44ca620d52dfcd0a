"""Losses over a batch of sentence pairs: pure functions of embeddings and labels.

Every loss takes the unit-length embeddings `(B, K)` of B first and B second sentences, labels `(B,)`, and a guide: another
encoder's embeddings of the same sentences, or None. It returns a scalar, lower is better, and ignores labels or a guide that its
docstring does not list. `LOSSES` names the losses for recipes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def nt_xent(
    first: Tensor, second: Tensor, labels: Tensor | None = None, guide: Tensor | None = None, *, temperature: float = 0.05
) -> Tensor:
    """Normalised temperature-scaled cross-entropy: the pair is the positive, all other sentences are negatives.

    Each of the 2B sentences must pick its partner among the 2B - 1 others. Use it on pairs that mean the same. With a guide,
    negatives that the guide finds more similar to the sentence than its partner are masked as false negatives.
    Range: 0 and up; log(2B - 1) if all embeddings are equal.

    Source: Chen et al. 2020, A Simple Framework for Contrastive Learning of Visual Representations, eq. 1; the guide:
    Solatorio 2024, GISTEmbed, eq. 5.

    Args:
        first, second: `(B, K)`, unit length.
        guide: `(2B, G)`, unit length, first sentences, then second sentences.
        temperature: divides the similarities; lower values weight the hardest negatives more.
    """
    n = len(first)
    embeddings = torch.cat([first, second])
    similarity = embeddings @ embeddings.T / temperature
    similarity = similarity.masked_fill(torch.eye(2 * n, dtype=torch.bool, device=first.device), -torch.inf)
    partner = torch.arange(2 * n, device=first.device).roll(n)
    if guide is not None:
        guide_similarity = guide @ guide.T
        similarity = similarity.masked_fill(guide_similarity > guide_similarity.gather(1, partner[:, None]), -torch.inf)
    return F.cross_entropy(similarity, partner)


def cosine_mse(first: Tensor, second: Tensor, labels: Tensor, guide: Tensor | None = None, *, lowest: float = -1.0) -> Tensor:
    """Mean squared error between the cosine, rescaled from `lowest`..1 to 0..1, and `label / 5`.

    The rescaled cosine is `(cos - lowest) / (1 - lowest)`: `(cos + 1) / 2` by default, the plain cosine with 0. It fits values,
    not only ranks: prefer CoSENT if the score is a rank correlation. Range: 0 to 1 by default, 0 to 4 for the plain cosine.

    Source: the published recipe.

    Args:
        first, second: `(B, K)`, unit length.
        labels: `(B,)`, 0 to 5.
        lowest: the cosine that corresponds to label 0, below 1.
    """
    cosine = (first * second).sum(1)
    return F.mse_loss((cosine - lowest) / (1 - lowest), labels / 5)


def hard_negative_margin(
    first: Tensor, second: Tensor, labels: Tensor | None = None, guide: Tensor | None = None, *, margin: float = 0.2
) -> Tensor:
    """Hinge loss that keeps the most similar other sentence of the batch a margin below the pair.

    `mean over all 2B sentences of max(0, margin + cos(sentence, hardest other) - cos(pair))`. Range: 0 to 2 + margin;
    0 for a single pair.

    Source: the published recipe; the hardest negative as in Faghri et al. 2018, VSE++, eq. 6.

    Args:
        first, second: `(B, K)`, unit length.
        margin: in cosine.
    """
    n = len(first)
    if n < 2:
        return (first * second).sum() * 0
    embeddings = torch.cat([first, second])
    same_pair = torch.eye(n, dtype=torch.bool, device=first.device).repeat(2, 2)
    hardest = (embeddings @ embeddings.T).masked_fill(same_pair, -torch.inf).amax(1)
    pair = (first * second).sum(1).repeat(2)
    return F.relu(margin + hardest - pair).mean()


def cosent(first: Tensor, second: Tensor, labels: Tensor, guide: Tensor | None = None, *, scale: float = 20.0) -> Tensor:
    """CoSENT: a pair with a higher label must have a higher cosine, for all pairs of pairs in the batch.

    `log(1 + sum of exp(scale * (cos_i - cos_j)) over all i, j with label_i < label_j)`, a smooth surrogate for rank
    correlation. Range: 0 and up; 0 if all labels are equal.

    Source: Su 2022, CoSENT, https://kexue.fm/archives/8847.

    Args:
        first, second: `(B, K)`, unit length.
        labels: `(B,)`; only their order counts.
        scale: the inverse temperature; higher values weight the worst inversions more.
    """
    cosine = scale * (first * second).sum(1)
    differences = cosine[:, None] - cosine[None, :]
    ordered = labels[:, None] < labels[None, :]
    return torch.logsumexp(torch.cat([differences.new_zeros(1), differences[ordered]]), dim=0)


def pearson(first: Tensor, second: Tensor, labels: Tensor, guide: Tensor | None = None) -> Tensor:
    """One minus the Pearson correlation of cosine and label over the batch.

    It makes cosines linear in the labels, where CoSENT only orders them; unlike `cosine_mse` it leaves scale and offset free.
    Range: 0 to 2; 1 with zero gradient if all labels are equal.

    Source: Pearson's correlation coefficient, as in scipy.stats.pearsonr.

    Args:
        first, second: `(B, K)`, unit length.
        labels: `(B,)`.
    """
    cosine = (first * second).sum(1)
    return 1 - F.cosine_similarity(cosine - cosine.mean(), labels - labels.mean(), dim=0)


def distillation(first: Tensor, second: Tensor, labels: Tensor | None, guide: Tensor) -> Tensor:
    """Mean squared error between the cosines of all 2B sentences of the batch and the guide's.

    It learns from all 2B (2B - 1) / 2 pairs of sentences; labels cover only B. Range: 0 to 4.

    Source: Tung and Mori 2019, Similarity-Preserving Knowledge Distillation, eq. 4, on unit-length embeddings.

    Args:
        first, second: `(B, K)`, unit length.
        guide: `(2B, G)`, unit length, first sentences, then second sentences.
    """
    embeddings = torch.cat([first, second])
    return F.mse_loss(embeddings @ embeddings.T, guide @ guide.T)


def imitation(first: Tensor, second: Tensor, labels: Tensor | None, guide: Tensor) -> Tensor:
    """One minus the mean cosine of each embedding and the guide's of the same sentence.

    Where `distillation` compares sentences with each other, this says where each belongs: unrelated sentences teach as much as
    similar ones. If one side has fewer dimensions, only that many of the other are compared, so the guide's should be ordered by
    importance. Range: 0 to 2.

    Source: Reimers and Gurevych 2020, Making Monolingual Sentence Embeddings Multilingual using Knowledge Distillation, eq. 1:
    the squared distance, which at unit length is twice this.

    Args:
        first, second: `(B, K)`, unit length.
        guide: `(2B, G)`, unit length, first sentences, then second sentences.
    """
    embeddings = torch.cat([first, second])
    width = min(embeddings.shape[1], guide.shape[1])
    return 1 - (embeddings[:, :width] * F.normalize(guide[:, :width])).sum(1).mean()


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
    """Multiple negatives ranking (InfoNCE): each first sentence must pick its second sentence among all documents.

    The documents are the batch's second sentences and the mined negatives of all its pairs. Pairs labelled below `min_label`
    are not positives, but their second sentences stay documents for the others. With a guide, documents that the guide finds
    more similar to the sentence than its own are masked as false negatives. Prefer it to NT-Xent if the two sides differ, like
    questions and answers. Range: 0 and up; 0 if no pair is a positive.

    Source: Henderson et al. 2017, Efficient Natural Language Response Suggestion, eq. 4, on cosines; sentence-transformers'
    MultipleNegativesRankingLoss; the guide: Solatorio 2024, GISTEmbed.

    Args:
        first, second: `(B, K)`, unit length.
        labels: `(B,)`, 0 to 5; used only with `min_label`.
        guide: `(2B + B N, G)`, unit length, first sentences, then second sentences, then negatives; without those, `(2B, G)`,
            no negative is masked.
        negatives: `(B, N, K)`, unit length, N per pair.
        scale: multiplies the cosines; higher values weight the hardest negatives more.
        symmetric: rank first sentences for each second sentence too, and average both losses.
        min_label: the lowest label of a positive pair.
    """
    n = len(first)
    documents = second if negatives is None else torch.cat([second, negatives.flatten(0, 1)])
    is_positive = torch.ones(n, dtype=torch.bool, device=first.device) if labels is None else labels >= min_label
    own = torch.arange(n, device=first.device)
    forward, backward = scale * first @ documents.T, scale * second @ first.T
    if guide is not None:
        guide_similarity = guide[:n] @ guide[n:].T
        false_negative = guide_similarity > guide_similarity.gather(1, own[:, None])
        unknown = len(documents) - false_negative.shape[1]  # negatives that the guide has not embedded
        forward = forward.masked_fill(F.pad(false_negative, (0, unknown)), -torch.inf)
        backward = backward.masked_fill((guide_similarity[:, :n] > guide_similarity[own, own]).T, -torch.inf)
    if not is_positive.any():
        return (first * second).sum() * 0
    directions = [forward, backward] if symmetric else [forward]
    return torch.stack([F.cross_entropy(scores[is_positive], own[is_positive]) for scores in directions]).mean()


LOSSES: dict[str, Callable[..., Tensor]] = {
    "nt_xent": nt_xent,
    "ranking": ranking,
    "cosine_mse": cosine_mse,
    "hard_negative_margin": hard_negative_margin,
    "cosent": cosent,
    "pearson": pearson,
    "distillation": distillation,
    "imitation": imitation,
}

NEED_LABELS = ("cosine_mse", "cosent", "pearson")  # learn nothing from pairs without labels
WITH_NEGATIVES = ("ranking",)  # use mined negatives if there are any
WITHOUT_LABELS = ("distillation", "imitation")  # need a guide instead, and use unlabelled sentences too
NEED_TEACHER = ("imitation",)  # of its dimensions the first are the most important
