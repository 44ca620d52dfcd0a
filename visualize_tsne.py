"""A map of sentence embeddings: t-SNE to two dimensions, coloured by label.

Example:

    python visualize_tsne.py --model model.bin --data stores/stsb/test.store --out tsne_map.png
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from sklearn.manifold import TSNE

from atomic import write_figure_atomically
from checkpoint import load_encoder
from cli import PAIRS_HELP, make_parser, run_command
from data import PairData, open_pairs
from encoding import encode_pairs
from errors import InputError
from evaluate import check_fits
from model import SentenceEncoder
from starter import STARTER_TRAIN


def sample_pairs(pairs: PairData, sentences: int, seed: int) -> PairData:
    """Pairs, chosen at random, that have about `sentences` sentences together; all where there are fewer."""
    wanted = min(len(pairs), sentences // 2)
    return pairs.select(np.sort(np.random.default_rng(seed).choice(len(pairs), wanted, replace=False)))


def tsne_map(encoder: SentenceEncoder, pairs: PairData, *, perplexity: float = 30.0, seed: int = 0) -> np.ndarray:
    """Places of the first, then of the second sentences of n pairs in the plane: `(2n, 2)`.

    Cosine distance, the measure the encoder is trained for; the start from principal components and the seed make it
    reproducible.

    Raises:
        InputError: where there are too few sentences for a map.
    """
    first, second = encode_pairs(encoder, pairs)
    vectors = np.concatenate([first.numpy(), second.numpy()])
    if len(vectors) <= 3 * perplexity:
        raise InputError(f"{len(vectors)} sentences are too few for a map, expected more than 3 * perplexity {perplexity:g}")
    return TSNE(perplexity=perplexity, metric="cosine", init="pca", random_state=seed).fit_transform(vectors)


def draw_map(path: Path, places: np.ndarray, labels: np.ndarray, title: str) -> None:
    """Draw the map as PNG; sentences of pairs labelled 4 and above are joined by a line.

    Args:
        path: PNG to write.
        places: `(2n, 2)`, first sentences and then second sentences.
        labels: `(n,)`, 0-5.
        title: above the map.
    """
    figure = Figure(figsize=(8, 6.2), layout="constrained")
    axes = figure.subplots()
    first, second = places[: len(labels)], places[len(labels) :]
    alike = labels >= 4
    axes.plot(*np.stack([first[alike], second[alike]]).transpose(2, 0, 1), color="0.75", linewidth=0.6, zorder=1)
    order = np.argsort(np.concatenate([labels, labels]), kind="stable")  # the alike on top, their lines are of interest
    x, y = places[order].T
    colour = np.concatenate([labels, labels])[order]
    points = axes.scatter(x, y, c=colour, cmap="viridis", vmin=0, vmax=5, s=13, linewidths=0, zorder=2)
    bar = figure.colorbar(points, ax=axes, pad=0.01, aspect=35)
    bar.set_label("label of the sentence's pair: 0 unrelated, 5 the same meaning")
    axes.set_title(title, fontsize=11)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_xlabel("t-SNE: near means similar, axes have no unit; lines join pairs labelled 4 and above", fontsize=9, color="0.35")
    for spine in axes.spines.values():
        spine.set_color("0.8")
    write_figure_atomically(path, figure)


def main() -> None:
    """Command line."""
    parser = make_parser("visualize_tsne.py", __doc__)
    parser.add_argument("--model", default="model.bin", help="checkpoint")
    parser.add_argument("--data", nargs="+", help=f"pairs: {PAIRS_HELP} (default: the starter training pairs)")
    parser.add_argument("--out", default="tsne_map.png", help="PNG to write")
    parser.add_argument("--sentences", type=int, default=2000, help="how many sentences, chosen at random by pairs")
    parser.add_argument("--perplexity", type=float, default=30.0, help="how many neighbours a sentence listens to")
    parser.add_argument("--seed", type=int, default=0, help="of the choice and the map")
    parser.add_argument("--cache_dir", help="folder for token stores, instead of beside their sources")
    options = parser.parse_args()
    encoder = load_encoder(options.model)
    pairs = open_pairs(options.data or [STARTER_TRAIN], cache_dir=options.cache_dir)
    check_fits(encoder, pairs)
    sample = sample_pairs(pairs, options.sentences, options.seed)
    places = tsne_map(encoder, sample, perplexity=options.perplexity, seed=options.seed)
    draw_map(Path(options.out), places, sample.labels, f"{2 * len(sample):,} sentence embeddings of {Path(options.model).name}")
    print(f"{options.out}: {2 * len(sample):,} sentences")


if __name__ == "__main__":
    run_command(main)
