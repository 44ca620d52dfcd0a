"""The similarity of two sentences, split into the shares of their tokens, and a heat map of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.files import write_figure_atomically


@dataclass(frozen=True)
class Explanation:
    """The similarity of two sentences, of S and T tokens, split into the shares of their tokens.

    Attributes:
        similarity: the cosine.
        first: the S tokens of the first sentence, including special tokens.
        second: the T tokens of the second.
        shares: `(S, T)`, the share of each token pair; sums to `similarity`.
        first_weights: `(S,)`, the pooling weight of each token, averaged over heads; sums to 1.
        second_weights: `(T,)`, the same for the second sentence.
    """

    similarity: float
    first: list[str]
    second: list[str]
    shares: np.ndarray
    first_weights: np.ndarray
    second_weights: np.ndarray

    @property
    def first_shares(self) -> np.ndarray:
        """The share of each token of the first sentence: `(S,)`, sums to `similarity`."""
        return self.shares.sum(1)

    @property
    def second_shares(self) -> np.ndarray:
        """The share of each token of the second sentence: `(T,)`, sums to `similarity`."""
        return self.shares.sum(0)


def draw_explanation(path: Path, explanation: Explanation) -> None:
    """Draw the shares as a heat map, PNG: tokens of the first sentence down, of the second across, with their totals."""
    from matplotlib.figure import Figure  # here because encoding does not need it and the import takes most of a second

    rows, columns = explanation.shares.shape
    figure = Figure(figsize=(2.6 + 0.5 * columns, 1.9 + 0.34 * rows), layout="constrained")
    axes = figure.subplots()
    largest = np.abs(explanation.shares).max()
    image = axes.imshow(explanation.shares, cmap="RdBu_r", vmin=-largest, vmax=largest, aspect="auto")
    first = [f"{token}  {share:+.2f}" for token, share in zip(explanation.first, explanation.first_shares, strict=True)]
    second = [f"{token}  {share:+.2f}" for token, share in zip(explanation.second, explanation.second_shares, strict=True)]
    axes.set_yticks(range(rows), first, fontsize=9)
    axes.set_xticks(range(columns), second, fontsize=9, rotation=90)
    axes.xaxis.tick_top()
    axes.set_title(f"cosine {explanation.similarity:.3f}, the sum of all token shares", fontsize=10, pad=12)
    figure.colorbar(image, ax=axes, pad=0.01, aspect=25)
    write_figure_atomically(path, figure)
