"""A panel of a study's figure: the scores of each arm beside the baseline's."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes

CAPTION = "dashed: mean pooling, red: below it"


def draw_arms(axes: Axes, scores: Mapping[str, Sequence[float]], baseline: float, title: str) -> None:
    """A row for each arm: a point for each seed and a bar at their mean, red where it is below the baseline.

    Args:
        axes: where.
        scores: of each arm by its seeds; arms without any have an empty row.
        baseline: mean pooling's score, a dashed line.
        title: above the panel; the baseline's score is added.
    """
    axes.axvline(baseline, color="0.5", linestyle="--", linewidth=1)
    for row, found in enumerate(scores.values()):
        if found:
            colour = "tab:red" if statistics.mean(found) < baseline else "tab:blue"
            axes.plot(found, [row] * len(found), "o", color=colour, alpha=0.5, markersize=5)
            axes.plot(statistics.mean(found), row, "|", color=colour, markersize=14, markeredgewidth=2)
    axes.set_title(f"{title}\nmean pooling {baseline:.3f}", fontsize=9)
    axes.set_yticks(range(len(scores)), list(scores))
    axes.set_ylim(len(scores) - 0.5, -0.5)  # the first on top
    axes.tick_params(labelsize=8)
    axes.grid(axis="x", color="0.92")
