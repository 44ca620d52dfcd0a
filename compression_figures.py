"""The figures of the compression study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from atomic import write_figure_atomically
from metrics import spearman
from text_files import MAX_LABEL


def draw_losses(path: Path, losses: Mapping[str, Sequence[Sequence[float]]]) -> None:
    """Training loss over epochs, a line for each amount of noise: the mean of its runs, with their range.

    Args:
        path: PNG to write.
        losses: by the line's name, for each run the mean training loss of epochs 1, 2, ...
    """
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for name, runs in losses.items():
        values = np.array(runs)
        epochs = np.arange(1, values.shape[1] + 1)
        (line,) = axes.plot(epochs, values.mean(axis=0), label=name)
        axes.fill_between(epochs, values.min(axis=0), values.max(axis=0), color=line.get_color(), alpha=0.2, linewidth=0)
    axes.set_yscale("log")
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel("training loss, noise included")
    axes.legend(fontsize=9, frameon=False)
    axes.grid(color="0.93")
    write_figure_atomically(path, figure)


def draw_cosines(path: Path, cosines: Mapping[str, np.ndarray], labels: np.ndarray) -> None:
    """The cosine that each model gives beside the true score, a panel for each; the diagonal is what MSE asks for.

    Args:
        path: PNG to write.
        cosines: by the model's name, `(n,)`, -1 to 1.
        labels: `(n,)`, 0-5.
    """
    figure = Figure(figsize=(3 * len(cosines), 3.5), layout="constrained")
    panels = figure.subplots(1, len(cosines), sharex=True, sharey=True, squeeze=False)[0]
    scores = labels / MAX_LABEL
    noise = np.random.default_rng(0).uniform(-0.012, 0.012, len(scores))  # scores are round numbers: their points part
    for axes, (name, cosine) in zip(panels, cosines.items(), strict=True):
        axes.plot([0, 1], [0, 1], color="0.5", linewidth=1, zorder=1)
        axes.scatter(scores + noise, cosine, s=5, alpha=0.3, linewidths=0, zorder=2)
        error = np.mean((cosine - scores) ** 2)
        axes.set_title(f"{name}\nSpearman {spearman(cosine, labels):.3f}, MSE {error:.3f}", fontsize=9)
        axes.set_xlabel("true score / 5")
    panels[0].set_ylabel("cosine")
    write_figure_atomically(path, figure)


def draw_loss_histograms(path: Path, losses: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """How the losses of single pairs are spread, on a log scale: a panel for each part, a histogram for each model.

    As figure 4 of Jain et al. 2023, NEFTune.

    Args:
        path: PNG to write.
        losses: by part and by model, `(n,)`, the squared error of each pair.
    """
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    panels = figure.subplots(1, len(losses), sharex=True, squeeze=False)[0]
    bins = np.geomspace(1e-6, 1, 49)
    for axes, (part, models) in zip(panels, losses.items(), strict=True):
        for name, values in models.items():
            weights = np.full(len(values), 1 / len(values))
            axes.hist(values.clip(bins[0], bins[-1]), bins, weights=weights, alpha=0.5, label=f"{name}, mean {values.mean():.3f}")
        axes.set_xscale("log")
        axes.set_title(f"{part} pairs", fontsize=10)
        axes.set_xlabel("squared error of a pair")
        axes.legend(fontsize=8, loc="upper left", frameon=False)
    panels[0].set_ylabel("share of pairs")
    write_figure_atomically(path, figure)


def draw_sizes(path: Path, curves: Mapping[str, Mapping[str, Mapping[int, float]]], uncompressed: Mapping[str, float]) -> None:
    """Spearman against the numbers in a vector, a panel for each part; the vectors they come from as a line.

    Args:
        path: PNG to write.
        curves: by part and by model, Spearman of each size.
        uncompressed: by part, Spearman of the vectors that are compressed.
    """
    figure = Figure(figsize=(9, 4), layout="constrained")
    panels = figure.subplots(1, len(curves), squeeze=False)[0]
    sizes = sorted({size for models in curves.values() for sizes in models.values() for size in sizes})
    for axes, (part, models) in zip(panels, curves.items(), strict=True):
        axes.axhline(uncompressed[part], color="0.4", linestyle="--", linewidth=1, label="uncompressed")
        for name, values in models.items():
            axes.plot(list(values), list(values.values()), "o-", markersize=4, label=name)
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("numbers in a vector")
        axes.set_title(part, fontsize=10)
        axes.grid(color="0.93")
    panels[0].set_ylabel("Spearman")
    panels[0].legend(fontsize=8, loc="lower right")
    write_figure_atomically(path, figure)
