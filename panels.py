"""The figure of a study: in each panel the scores of every arm beside the baseline's."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from atomic import write_figure_atomically


@dataclass(frozen=True)
class Panel:
    """One panel.

    Attributes:
        title: above it; the baseline's score is added.
        scores: of each arm by its seeds; arms without any have an empty row. All panels of a figure have the same arms.
        baseline: mean pooling's score, a dashed line.
    """

    title: str
    scores: Mapping[str, Sequence[float]]
    baseline: float


def draw_panels(path: Path, panels: Sequence[Panel], caption: str) -> None:
    """Draw panels side by side, PNG: a row for each arm with a point for each seed and a bar at their mean, red below the baseline.

    Args:
        path: of the picture.
        panels: at least one.
        caption: what the scores are, below all panels.
    """
    figure = Figure(figsize=(2.5 + 2.3 * len(panels), 1.1 + 0.34 * len(panels[0].scores)), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels, strict=True):
        _draw(axes, panel)
    figure.supxlabel(f"{caption}; dashed: mean pooling, red: below it", fontsize=9)
    write_figure_atomically(path, figure)


def _draw(axes: Axes, panel: Panel) -> None:
    axes.axvline(panel.baseline, color="0.5", linestyle="--", linewidth=1)
    for row, found in enumerate(panel.scores.values()):
        if found:
            colour = "tab:red" if statistics.mean(found) < panel.baseline else "tab:blue"
            axes.plot(found, [row] * len(found), "o", color=colour, alpha=0.5, markersize=5)
            axes.plot(statistics.mean(found), row, "|", color=colour, markersize=14, markeredgewidth=2)
    axes.set_title(f"{panel.title}\nmean pooling {panel.baseline:.3f}", fontsize=9)
    axes.set_yticks(range(len(panel.scores)), list(panel.scores))
    axes.set_ylim(len(panel.scores) - 0.5, -0.5)  # the first on top
    axes.tick_params(labelsize=8)
    axes.grid(axis="x", color="0.92")
