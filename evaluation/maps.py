"""Maps of sentence embeddings: projected to two dimensions, drawn as PNG or as an interactive page."""

from __future__ import annotations

import html
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.manifold import TSNE

from common.errors import InputError
from common.files import write_figure_atomically
from common.optional import import_optional
from tokens.text_pairs import MAX_LABEL, TextPairs

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from matplotlib.axes import Axes

METHODS = {
    "tsne": "t-SNE: nearby points are similar, the axes have no unit",
    "umap": "UMAP: nearby points are similar, the axes have no unit",
    "pca": "PCA: the first two principal components",
}
MIN_SENTENCES = 3
SAME = 1e-6  # embeddings that differ less are the same up to rounding
UMAP_SPECTRAL = 10  # sentences
SIMILAR = 4  # pairs with this label or a higher one are joined by a line
LINES_CAPTION = f"lines join pairs labelled {SIMILAR} and above"
WRITTEN_OUT = 12  # sentences on a map, few enough to read
WRITTEN_WIDTH = 22  # letters in a line
MIDDLE = 8  # points
LABEL_CAPTION = "label of the sentence's pair: 0 unrelated, 5 same meaning"


def fitting_neighbours(sentences: int, method: str, neighbours: float) -> float:
    """The perplexity of t-SNE, or the number of neighbours of UMAP, that a map of so few sentences allows.

    Perplexity stays at or below a third of the sentences, neighbours below their number.
    """
    if method == "tsne":
        return min(neighbours, max(1.0, (sentences - 1) / 3))
    return min(max(2, round(neighbours)), sentences - 1) if method == "umap" else neighbours


def project_to_2d(embeddings: np.ndarray, method: str = "tsne", *, neighbours: float = 30.0, seed: int = 0) -> np.ndarray:
    """2-D coordinates `(m, 2)` of unit-length embeddings `(m, K)`.

    t-SNE and UMAP use the cosine distance; the seed makes them reproducible.

    Args:
        embeddings: sentence embeddings.
        method: tsne, umap or pca.
        neighbours: perplexity of t-SNE, number of neighbours of UMAP; lowered as `fitting_neighbours` says.
        seed: random seed of t-SNE and UMAP.

    Raises:
        InputError: if there are fewer than 3 sentences, all embeddings are the same, or umap-learn is not installed.
    """
    if method not in METHODS:
        raise InputError(f"method is {method!r}, expected one of {', '.join(METHODS)}")
    if len(embeddings) < MIN_SENTENCES:
        raise InputError(f"{len(embeddings)} sentences are too few for a map, expected {MIN_SENTENCES} or more")
    if np.ptp(embeddings, axis=0).max() < SAME:
        raise InputError(f"all {len(embeddings)} sentences have the same embedding, so there is nothing to map")
    neighbours = fitting_neighbours(len(embeddings), method, neighbours)
    if method == "tsne":
        init = "pca" if embeddings.shape[1] > 1 else "random"
        return TSNE(perplexity=neighbours, metric="cosine", init=init, random_state=seed).fit_transform(embeddings)
    if method == "umap":
        umap = import_optional("umap", "UMAP is not installed: pip install -r requirements-demo.txt")
        # The spectral start needs more points than UMAP's smallest maps have.
        init = "spectral" if len(embeddings) > UMAP_SPECTRAL else "random"
        mapper = umap.UMAP(n_neighbors=int(neighbours), metric="cosine", init=init, random_state=seed, n_jobs=1)
        return mapper.fit_transform(embeddings)
    return PCA(n_components=2, svd_solver="full").fit_transform(embeddings)


def draw_maps(
    path: Path, panels: Mapping[str, np.ndarray], labels: np.ndarray, caption: str, sentences: Sequence[str] | None = None
) -> None:
    """Draw maps of the same n pairs side by side as PNG; lines join pairs labelled 4 and above.

    Args:
        path: PNG to write.
        panels: coordinates `(2n, 2)` by title: all first sentences, then all second ones.
        labels: `(n,)`, 0-5.
        caption: text below the maps.
        sentences: the 2n sentences, if known; some of them are written on the map.
    """
    figure = Figure(figsize=(1.1 + 6.9 * len(panels), 6.2), layout="constrained")
    all_axes = figure.subplots(1, len(panels), squeeze=False)[0]
    similar = labels >= SIMILAR
    point_labels = np.tile(labels, 2)
    order = np.argsort(point_labels, kind="stable")  # similar pairs on top: they are the ones to look at
    for axes, (title, points) in zip(all_axes, panels.items(), strict=True):
        first, second = np.split(points, 2)
        axes.plot(*np.stack([first[similar], second[similar]]).transpose(2, 0, 1), color="0.75", linewidth=0.6, zorder=1)
        x, y = points[order].T
        scatter = axes.scatter(x, y, c=point_labels[order], cmap="viridis", vmin=0, vmax=MAX_LABEL, s=13, linewidths=0, zorder=2)
        if sentences is not None:
            _write_sentences(axes, points, sentences)
        axes.margins(x=0.12, y=0.08)  # room for sentences at the edge
        axes.set_title(title, fontsize=11)
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_color("0.8")
    bar = figure.colorbar(scatter, ax=all_axes, pad=0.01, aspect=35)
    bar.set_label(LABEL_CAPTION)
    figure.supxlabel(f"{caption}; {LINES_CAPTION}", fontsize=9, color="0.35")
    write_figure_atomically(path, figure)


def _write_sentences(axes: Axes, points: np.ndarray, sentences: Sequence[str]) -> None:
    """Write a few sentences beside their points; none that needs letters which the font of figures lacks."""
    letters = get_font(findfont(FontProperties())).get_charmap()
    readable = [number for number, sentence in enumerate(sentences) if all(ord(letter) in letters for letter in sentence)]
    box = {"boxstyle": "round,pad=0.2", "facecolor": "white", "alpha": 0.75, "linewidth": 0}
    for chosen in readable_points(points[readable], [sentences[number] for number in readable]):
        number = readable[chosen]
        text, most = " ".join(sentences[number].split()), 2 * WRITTEN_WIDTH - 4
        text = textwrap.fill(text if len(text) <= most else f"{text[: most - 1]}…", WRITTEN_WIDTH)
        above = axes.annotate(text, points[number], (0, 4), textcoords="offset points", fontsize=7, zorder=3, parse_math=False)
        above.set(ha="center", va="bottom", bbox=box)


def readable_points(points: np.ndarray, sentences: Sequence[str]) -> list[int]:
    """Up to 12 points of a map, one per region, by number: of the points in the middle, the one with the shortest sentence.

    Args:
        points: coordinates `(m, 2)`.
        sentences: the m sentences.
    """
    if not len(points):
        return []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer regions where points coincide
        regions = KMeans(min(WRITTEN_OUT, len(points)), n_init=1, random_state=0).fit(points)
    distance = np.linalg.norm(points - regions.cluster_centers_[regions.labels_], axis=1)
    chosen = []
    for region in np.unique(regions.labels_):
        own = np.flatnonzero(regions.labels_ == region)
        middle = own[distance[own].argsort(kind="stable")[:MIDDLE]]
        chosen.append(min(middle.tolist(), key=lambda number: len(sentences[number])))
    return sorted(chosen)


def interactive_map(panels: Mapping[str, np.ndarray], pairs: TextPairs, caption: str) -> go.Figure:
    """The same maps as a plotly figure; hovering over a point shows its sentence, label and other sentence.

    Takes the arguments of `draw_maps`, with the sentences as well as the labels of the n pairs.

    Raises:
        InputError: if plotly is not installed.
    """
    plotly = import_optional("plotly.subplots", "the interactive map needs plotly: pip install -r requirements-demo.txt")
    figure = plotly.make_subplots(cols=len(panels), subplot_titles=list(panels), horizontal_spacing=0.02)
    sentences, others = [*pairs.first, *pairs.second], [*pairs.second, *pairs.first]
    point_labels = np.tile(pairs.labels, 2)
    hover = [
        f"<b>{_wrapped(sentence)}</b><br>{label:g} with: {_wrapped(other)}"
        for sentence, other, label in zip(sentences, others, point_labels, strict=True)
    ]
    for column, points in enumerate(panels.values(), start=1):
        first, second = (side[pairs.labels >= SIMILAR] for side in np.split(points, 2))
        gaps = np.full_like(first, np.nan)  # separate one line from the next
        x, y = np.stack([first, second, gaps], axis=1).reshape(-1, 2).T
        line = {"color": "#c8c8c8", "width": 1}
        figure.add_scatter(x=x, y=y, mode="lines", line=line, hoverinfo="skip", row=1, col=column)
        x, y = points.T
        marker = {"color": point_labels, "coloraxis": "coloraxis", "size": 6}
        figure.add_scatter(x=x, y=y, mode="markers", marker=marker, hovertext=hover, hoverinfo="text", row=1, col=column)
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


def _wrapped(sentence: str) -> str:
    """A sentence escaped for plotly, in lines short enough for a phone."""
    return "<br>".join(textwrap.wrap(html.escape(sentence, quote=False), 48))
