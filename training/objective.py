"""The objective of a phase: the weighted sum of its losses on a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from data import PairBatch
from losses import LOSSES, WITH_NEGATIVES, WITHOUT_LABELS
from training.recipe import Phase


@dataclass(frozen=True)
class BatchEmbeddings:
    """Embeddings of a batch: B labelled pairs, then U unlabelled pairs, and N negatives per labelled pair.

    Attributes:
        first: `(B + U, K)`.
        second: `(B + U, K)`.
        negatives: `(B, N, K)`, if there are any.
    """

    first: Tensor
    second: Tensor
    negatives: Tensor | None = None

    def as_guide(self, n: int, with_negatives: bool) -> Tensor:
        """The first n pairs as losses take a guide: first sentences, second sentences, then the negatives if asked for."""
        negatives = [] if self.negatives is None or not with_negatives else [self.negatives.flatten(0, 1)]
        return torch.cat([self.first[:n], self.second[:n], *negatives])

    def truncated(self, dims: int) -> BatchEmbeddings:
        """The first `dims` dimensions of each embedding, normalised again."""
        first, second = (F.normalize(side[:, :dims]) for side in (self.first, self.second))
        return BatchEmbeddings(first, second, None if self.negatives is None else F.normalize(self.negatives[..., :dims], dim=2))


def split_batch(embeddings: Tensor, batch: PairBatch) -> BatchEmbeddings:
    """Split embeddings in the order of the batch's `position`; those of a teacher have no negatives."""
    n_pair_sentences = len(batch.position) - len(batch.labels) * batch.n_negatives
    first, second = embeddings[:n_pair_sentences].chunk(2)
    negatives = embeddings[n_pair_sentences:]
    return BatchEmbeddings(first, second, negatives.unflatten(0, (len(batch.labels), -1)) if len(negatives) else None)


def nested_loss(
    nested: Sequence[int],
    phase: Phase,
    embeddings: BatchEmbeddings,
    labels: Tensor,
    guides: Mapping[str, BatchEmbeddings],
    number: int,
) -> Tensor:
    """The mean of `phase_loss` over embeddings truncated to each of the `nested` dimensions; untruncated if there are none.

    Source: Kusupati et al. 2022, Matryoshka Representation Learning, eq. 1, with equal weights. Guides are not truncated.
    """
    views = [embeddings.truncated(dims) for dims in nested] or [embeddings]
    return torch.stack([phase_loss(phase, view, labels, guides, number) for view in views]).mean()


def phase_loss(
    phase: Phase, embeddings: BatchEmbeddings, labels: Tensor, guides: Mapping[str, BatchEmbeddings], number: int
) -> Tensor:
    """The weighted sum of a phase's losses on one batch.

    Args:
        phase: names the losses.
        embeddings: of the batch.
        labels: `(B,)`, 0-5.
        guides: the batch's embeddings by other encoders, baseline or teacher; terms without their guide are skipped.
        number: the batch's number in the epoch, from 1; a term with `every` n is added to every n-th batch.
    """
    total = embeddings.first.new_zeros(())
    for name, term in phase.losses.items():
        if number % term.every == 0 and (term.guide == "none" or term.guide in guides):
            n = len(embeddings.first) if name in WITHOUT_LABELS else len(labels)
            takes_negatives = name in WITH_NEGATIVES
            guide = guides[term.guide].as_guide(n, takes_negatives) if term.guide != "none" else None
            negatives = {"negatives": embeddings.negatives} if takes_negatives else {}
            loss = LOSSES[name](embeddings.first[:n], embeddings.second[:n], labels, guide, **negatives, **term.options)
            total = total + term.weight * loss
    return total


def guide_names(phase: Phase) -> set[str]:
    """The guides that a phase's losses use: none, baseline, teacher."""
    return {term.guide for term in phase.losses.values()}
