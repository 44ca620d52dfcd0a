"""What a phase makes small on a batch: the weighted sum of its losses, over vectors in the order of the pairs."""

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
class Columns:
    """Vectors of a batch: B pairs, U without label below them, and N negatives of each of the B.

    Attributes:
        first: `(B + U, K)`.
        second: `(B + U, K)`.
        negatives: `(B, N, K)`, None where there are none.
    """

    first: Tensor
    second: Tensor
    negatives: Tensor | None = None

    def joined(self, n: int, with_negatives: bool) -> Tensor:
        """The first n first sentences, the first n second ones, the negatives if asked for: as losses take a guide."""
        negatives = [] if self.negatives is None or not with_negatives else [self.negatives.flatten(0, 1)]
        return torch.cat([self.first[:n], self.second[:n], *negatives])

    def shortened(self, length: int) -> Columns:
        """The first `length` numbers of each vector, at unit length again."""
        first, second = (F.normalize(side[:, :length]) for side in (self.first, self.second))
        return Columns(first, second, None if self.negatives is None else F.normalize(self.negatives[..., :length], dim=2))


def in_columns(vectors: Tensor, batch: PairBatch) -> Columns:
    """Vectors in the order of a batch's `position`; a teacher has none of negatives."""
    n_negatives = len(batch.labels) * batch.n_negatives
    sides = vectors[: len(batch.position) - n_negatives]
    negatives = vectors[len(sides) :].unflatten(0, (len(batch.labels), batch.n_negatives)) if len(vectors) > len(sides) else None
    first, second = sides.chunk(2)
    return Columns(first, second, negatives)


def nested_loss(
    lengths: Sequence[int], phase: Phase, vectors: Columns, labels: Tensor, guides: Mapping[str, Columns], number: int
) -> Tensor:
    """The mean of a phase's loss over vectors shortened to each of some lengths; without lengths, of the vectors as they are.

    Source: Kusupati et al. 2022, Matryoshka Representation Learning, eq. 1, with equal weights. Guides keep their length.
    """
    views = [vectors.shortened(length) for length in lengths] or [vectors]
    return torch.stack([phase_loss(phase, view, labels, guides, number) for view in views]).mean()


def phase_loss(phase: Phase, vectors: Columns, labels: Tensor, guides: Mapping[str, Columns], number: int) -> Tensor:
    """The weighted sum of a phase's losses on one batch.

    Args:
        phase: names the losses.
        vectors: of the batch.
        labels: `(B,)`.
        guides: vectors of others by name, baseline or teacher; a term whose guide is not here is left out.
        number: the batch's number in the epoch, from 1; a term with `every` n counts on every n-th.
    """
    total = vectors.first.new_zeros(())
    for name, term in phase.losses.items():
        if number % term.every == 0 and (term.guide == "none" or term.guide in guides):
            n = len(vectors.first) if name in WITHOUT_LABELS else len(labels)
            takes_negatives = name in WITH_NEGATIVES
            guide = guides[term.guide].joined(n, takes_negatives) if term.guide != "none" else None
            more = {"negatives": vectors.negatives} if takes_negatives else {}
            loss = LOSSES[name](vectors.first[:n], vectors.second[:n], labels, guide, **more, **term.options)
            total = total + term.weight * loss
    return total


def guide_names(phase: Phase) -> set[str]:
    """Whose similarities the losses of a phase see too."""
    return {term.guide for term in phase.losses.values()}
