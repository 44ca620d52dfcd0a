"""Figures of studies."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from common.errors import InputError
from common.files import write_figure_atomically
from studies.tables import BASELINE, ENCODER, TITLES, Row


def draw_scores(path: Path, rows: Sequence[Row], scores: Sequence[str]) -> None:
    """Scores as PNG: a panel per data set and score, a line per encoder with a point per seed and a bar at their mean.

    They are those on test, or on validation if some run was not scored on test.

    Raises:
        InputError: if a run does not have a score.
    """
    panels = [(data, score) for data in dict.fromkeys(row["data"] for row in rows) for score in scores]
    names = list(dict.fromkeys(row["encoder"] for row in rows))
    needed = {part: [f"{part} {ENCODER} {score}" for score in scores] for part in ("test", "validation")}
    complete = [part for part, keys in needed.items() if all(key in row for row in rows for key in keys)]
    if not complete:
        raise InputError(f"no figure: not every run has the scores {', '.join(scores)}", path=path)
    part = complete[0]
    figure = Figure(figsize=(2.5 + 2.3 * len(panels), 1.3 + 0.34 * len(names)), layout="constrained")
    for axes, (data, score) in zip(figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels, strict=True):
        on_data = [row for row in rows if row["data"] == data]
        baseline = on_data[0][f"{part} {BASELINE} {score}"]
        values = [[row[f"{part} {ENCODER} {score}"] for row in on_data if row["encoder"] == name] for name in names]
        _draw_panel(axes, values, baseline)
        axes.set_title(f"{TITLES[score]}, {data}\nmean pooling {baseline:.3f}", fontsize=9)
        axes.set_yticks(range(len(names)), names)
    figure.supxlabel(f"on the {part} part; dashed: mean pooling, red: below it", fontsize=9)
    write_figure_atomically(path, figure)


def _draw_panel(axes: Axes, values: Sequence[Sequence[float]], baseline: float) -> None:
    axes.axvline(baseline, color="0.5", linestyle="--", linewidth=1)
    for line, found in enumerate(values):
        if found:
            colour = "tab:red" if statistics.mean(found) < baseline else "tab:blue"
            axes.plot(found, [line] * len(found), "o", color=colour, alpha=0.5, markersize=5)
            axes.plot(statistics.mean(found), line, "|", color=colour, markersize=14, markeredgewidth=2)
    axes.set_ylim(len(values) - 0.5, -0.5)  # the first on top
    axes.tick_params(labelsize=8)
    axes.grid(axis="x", color="0.92")


def draw_losses(path: Path, losses: Mapping[str, Sequence[Sequence[float]]]) -> None:
    """Training loss over epochs as PNG: a line per name, the mean of its runs, with their range.

    Args:
        path: PNG to write.
        losses: by name, per run the mean training loss of epochs 1, 2, ...
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


def draw_sizes(path: Path, curves: Mapping[str, Mapping[str, Mapping[int, float]]], uncompressed: Mapping[str, float]) -> None:
    """Spearman against dimensions as PNG, a panel per part; the uncompressed embeddings as a dashed line.

    Args:
        path: PNG to write.
        curves: by part and model, Spearman by number of dimensions.
        uncompressed: by part, Spearman of the embeddings before compression.
    """
    figure = Figure(figsize=(9, 4), layout="constrained")
    panels = figure.subplots(1, len(curves), squeeze=False)[0]
    sizes = sorted({size for models in curves.values() for values in models.values() for size in values})
    for axes, (part, models) in zip(panels, curves.items(), strict=True):
        axes.axhline(uncompressed[part], color="0.4", linestyle="--", linewidth=1, label="uncompressed")
        for name, values in models.items():
            axes.plot(list(values), list(values.values()), "o-", markersize=4, label=name)
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("dimensions")
        axes.set_title(part, fontsize=10)
        axes.grid(color="0.93")
    panels[0].set_ylabel("Spearman")
    panels[0].legend(fontsize=8, loc="lower right")
    write_figure_atomically(path, figure)
