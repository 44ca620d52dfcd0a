"""Maps of sentence embeddings: many dimensions to two, drawn as a picture or as a page that shows sentences under the pointer."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from common.errors import InputError
from common.files import write_figure_atomically
from tokens.text_files import MAX_LABEL, TextPairs

if TYPE_CHECKING:
    import plotly.graph_objects as go

METHODS = {
    "tsne": "t-SNE: near means similar, axes have no unit",
    "umap": "UMAP: near means similar, axes have no unit",
    "pca": "PCA: the two directions along which the sentences differ most",
}
ALIKE = 4  # pairs labelled so or higher are joined by a line
LINES_CAPTION = f"lines join pairs labelled {ALIKE} and above"
LABEL_CAPTION = "label of the sentence's pair: 0 unrelated, 5 the same meaning"


def to_plane(vectors: np.ndarray, method: str = "tsne", *, neighbours: float = 30.0, seed: int = 0) -> np.ndarray:
    """Places of unit vectors `(m, K)` in the plane: `(m, 2)`.

    t-SNE and UMAP measure the cosine, as encoders are trained to; their start and the seed make them reproducible.

    Args:
        vectors: sentence vectors.
        method: tsne, umap or pca.
        neighbours: how many neighbours a sentence listens to (t-SNE calls it perplexity; not for pca).
        seed: of tsne and umap.

    Raises:
        InputError: where there are too few sentences, or umap-learn is not installed.
    """
    if method != "pca" and len(vectors) <= 3 * neighbours:
        raise InputError(
            f"{len(vectors)} sentences are too few for a map, expected more than {3 * neighbours:g}, three times the perplexity; "
            "give a lower --perplexity, or --method pca"
        )
    if method == "tsne":
        return TSNE(perplexity=neighbours, metric="cosine", init="pca", random_state=seed).fit_transform(vectors)
    if method == "umap":
        try:
            from umap import UMAP
        except ImportError as error:
            raise InputError("UMAP is not installed: pip install -r requirements-demo.txt") from error
        return UMAP(n_neighbors=round(neighbours), metric="cosine", random_state=seed, n_jobs=1).fit_transform(vectors)
    if method == "pca":
        return PCA(n_components=2, svd_solver="full").fit_transform(vectors)
    raise InputError(f"method is {method!r}, expected one of {', '.join(METHODS)}")


def draw_maps(path: Path, panels: Mapping[str, np.ndarray], labels: np.ndarray, caption: str) -> None:
    """Draw maps of the same sentences side by side as PNG; sentences of pairs labelled 4 and above are joined by a line.

    Args:
        path: PNG to write.
        panels: places `(2n, 2)` by title, first sentences and then second sentences.
        labels: `(n,)`, 0-5.
        caption: below the maps.
    """
    figure = Figure(figsize=(1.1 + 6.9 * len(panels), 6.2), layout="constrained")
    all_axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (title, places) in zip(all_axes, panels.items(), strict=True):
        first, second = _sides(places)
        alike = labels >= ALIKE
        axes.plot(*np.stack([first[alike], second[alike]]).transpose(2, 0, 1), color="0.75", linewidth=0.6, zorder=1)
        order = np.argsort(np.concatenate([labels, labels]), kind="stable")  # the alike on top, their lines are of interest
        x, y = places[order].T
        colour = np.concatenate([labels, labels])[order]
        points = axes.scatter(x, y, c=colour, cmap="viridis", vmin=0, vmax=MAX_LABEL, s=13, linewidths=0, zorder=2)
        axes.set_title(title, fontsize=11)
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_color("0.8")
    bar = figure.colorbar(points, ax=all_axes, pad=0.01, aspect=35)
    bar.set_label(LABEL_CAPTION)
    figure.supxlabel(f"{caption}; {LINES_CAPTION}", fontsize=9, color="0.35")
    write_figure_atomically(path, figure)


def interactive_map(panels: Mapping[str, np.ndarray], pairs: TextPairs, caption: str) -> go.Figure:
    """The same maps as a plotly figure: each point shows its sentence, the label, and the sentence it is compared with.

    Args:
        panels: places `(2n, 2)` by title, first sentences and then second sentences.
        pairs: n pairs.
        caption: below the maps.

    Raises:
        InputError: where plotly is not installed.
    """
    try:
        from plotly.subplots import make_subplots
    except ImportError as error:
        raise InputError("the interactive map needs plotly: pip install -r requirements-demo.txt") from error
    figure = make_subplots(cols=len(panels), subplot_titles=list(panels), horizontal_spacing=0.02)
    hover = [
        f"<b>{_folded(sentence)}</b><br>{label:g} with: {_folded(other)}"
        for sentence, other, label in zip(
            [*pairs.first, *pairs.second], [*pairs.second, *pairs.first], np.tile(pairs.labels, 2), strict=True
        )
    ]
    for column, places in enumerate(panels.values(), start=1):
        first, second = (side[pairs.labels >= ALIKE] for side in _sides(places))
        gaps = np.full_like(first, np.nan)  # lifts the pen between two lines
        lines = np.stack([first, second, gaps], axis=1).reshape(-1, 2)
        figure.add_scatter(
            x=lines[:, 0], y=lines[:, 1], mode="lines", line={"color": "#c8c8c8", "width": 1}, hoverinfo="skip", row=1, col=column
        )
        marker = {"color": np.tile(pairs.labels, 2), "coloraxis": "coloraxis", "size": 6}
        figure.add_scatter(
            x=places[:, 0], y=places[:, 1], mode="markers", marker=marker, hovertext=hover, hoverinfo="text", row=1, col=column
        )
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    figure.update_layout(
        template="plotly_white",
        showlegend=False,
        hoverlabel={"align": "left"},
        coloraxis={"colorscale": "Viridis", "cmin": 0, "cmax": MAX_LABEL, "colorbar": {"title": "label", "thickness": 12}},
        margin={"l": 10, "r": 10, "t": 50, "b": 60},
    )
    below = {"x": 0.5, "y": -0.02, "yanchor": "top", "xref": "paper", "yref": "paper", "showarrow": False}
    figure.add_annotation(text=f"{caption};<br>{LINES_CAPTION}", **below)
    return figure


def _sides(places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return places[: len(places) // 2], places[len(places) // 2 :]


def _folded(sentence: str) -> str:
    """A sentence as plotly shows it: markup is text, lines are short enough for a phone."""
    return "<br>".join(textwrap.wrap(html.escape(sentence, quote=False), 48))
