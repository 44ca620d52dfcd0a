"""From cosines to labels: a monotone fit on validation pairs, and predicted beside true labels as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from common.files import write_figure_atomically
from evaluation.metrics import mae
from tokens.text_files import MAX_LABEL


class Calibration:
    """The best non-decreasing map from cosine to label, in the sense of least squares.

    It keeps the order of similarities, and so Spearman's rank correlation but for ties. Source: isotonic regression, as
    in Zadrozny and Elkan 2002, Transforming Classifier Scores into Accurate Multiclass Probability Estimates.
    """

    def __init__(self, cosine: np.ndarray, labels: np.ndarray) -> None:
        """Fit.

        Args:
            cosine: `(n,)`, -1 to 1, of pairs that the figures to come are not measured on.
            labels: `(n,)`, 0-5.
        """
        from sklearn.isotonic import IsotonicRegression  # here, because importing it takes every command a second

        self._fit = IsotonicRegression(y_min=0, y_max=MAX_LABEL, out_of_bounds="clip").fit(cosine, labels)

    def predict(self, cosine: np.ndarray) -> np.ndarray:
        """Labels `(n,)`, 0-5, for cosines `(n,)`; beyond those of the fit, the label at its end."""
        return self._fit.predict(cosine)


def draw_predictions(path: Path, predictions: Mapping[str, np.ndarray], labels: np.ndarray) -> None:
    """Draw predicted against true labels as PNG, one panel for each encoder.

    Args:
        path: PNG to write.
        predictions: by the encoder's name, `(n,)`, 0-5.
        labels: `(n,)`, 0-5.
    """
    figure = Figure(figsize=(4.2 * len(predictions), 4.8), layout="constrained")
    panels = figure.subplots(1, len(predictions), sharex=True, sharey=True, squeeze=False)[0]
    # Labels are round numbers, and a monotone fit has steps: a little noise parts the points that lie on each other.
    noise = np.random.default_rng(0).uniform(-0.07, 0.07, (2, len(labels)))
    for axes, (name, predicted) in zip(panels, predictions.items(), strict=True):
        axes.plot([0, MAX_LABEL], [0, MAX_LABEL], color="0.6", linewidth=1, zorder=1)
        axes.scatter(labels + noise[0], predicted + noise[1], s=7, alpha=0.35, linewidths=0, zorder=2)
        axes.set_title(f"{name}: off by {mae(predicted, labels):.2f} on average", fontsize=10)
        axes.set_xlabel("true label")
        axes.set_aspect("equal")
    panels[0].set_ylabel("predicted label")
    write_figure_atomically(path, figure)
