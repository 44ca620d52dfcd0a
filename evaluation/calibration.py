"""Calibration of cosines to labels, and a plot of predicted against true labels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from common.files import write_figure_atomically
from evaluation.metrics import mae
from tokens.text_pairs import MAX_LABEL


class Calibration:
    """The non-decreasing map from cosine to label with the least squared error.

    It keeps the order of similarities, so Spearman's rank correlation changes only through ties. Source: isotonic regression, as
    in Zadrozny and Elkan 2002, Transforming Classifier Scores into Accurate Multiclass Probability Estimates.
    """

    def __init__(self, cosine: np.ndarray, labels: np.ndarray) -> None:
        """Fit cosines `(n,)`, -1 to 1, to labels `(n,)`, 0-5; use pairs other than those you evaluate on."""
        from sklearn.isotonic import IsotonicRegression  # here because the import would cost every command a second

        self._fit = IsotonicRegression(y_min=0, y_max=MAX_LABEL, out_of_bounds="clip").fit(cosine, labels)

    def predict(self, cosine: np.ndarray) -> np.ndarray:
        """Labels `(n,)`, 0-5, for cosines `(n,)`; cosines outside the fitted range are clipped to it."""
        return self._fit.predict(cosine)


def draw_predictions(path: Path, predictions: Mapping[str, np.ndarray], labels: np.ndarray) -> None:
    """Plot predicted labels `(n,)`, 0-5, by encoder name, against true labels `(n,)`, as PNG with one panel per encoder."""
    from matplotlib.figure import Figure  # here: the import takes half a second, which --help should not wait for

    figure = Figure(figsize=(4.2 * len(predictions), 4.8), layout="constrained")
    panels = figure.subplots(1, len(predictions), sharex=True, sharey=True, squeeze=False)[0]
    # Labels are round numbers and the fit has steps: jitter separates overlapping points.
    jitter = np.random.default_rng(0).uniform(-0.07, 0.07, (2, len(labels)))
    for axes, (name, predicted) in zip(panels, predictions.items(), strict=True):
        axes.plot([0, MAX_LABEL], [0, MAX_LABEL], color="0.6", linewidth=1, zorder=1)
        axes.scatter(labels + jitter[0], predicted + jitter[1], s=7, alpha=0.35, linewidths=0, zorder=2)
        axes.set_title(f"{name}: mean absolute error {mae(predicted, labels):.2f}", fontsize=10)
        axes.set_xlabel("true label")
        axes.set_aspect("equal")
    panels[0].set_ylabel("predicted label")
    write_figure_atomically(path, figure)
