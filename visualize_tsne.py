"""Draw a map of sentence embeddings: t-SNE, UMAP or PCA to two dimensions, coloured by label.

Examples:

    python visualize_tsne.py --model model.bin --data stores/stsb/test.store --out tsne_map.png
    python visualize_tsne.py --baseline --method pca --html map.html
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from common.cli import PAIRS_HELP, make_parser, output_file, run_command
from common.errors import InputError
from common.files import write_text_atomically
from common.starter import STARTER_TRAIN
from data import PairData, open_pairs
from evaluation.checkpoint import DEFAULT_CHECKPOINT, load_encoder
from evaluation.encoding import check_fits, encode_pairs
from evaluation.maps import METHODS, draw_maps, fitting_neighbours, interactive_map, project_to_2d
from evaluation.scores import score_embeddings
from model import mean_pooling
from tokens.text_pairs import add_read_arguments, read_options


def sample_pairs(pairs: PairData, sentences: int, seed: int) -> PairData:
    """Random pairs with about `sentences` sentences in total; all pairs if there are fewer."""
    count = min(len(pairs), sentences // 2)
    return pairs.select(np.sort(np.random.default_rng(seed).choice(len(pairs), count, replace=False)))


def main() -> None:
    """Command line."""
    parser = make_parser("visualize_tsne.py", __doc__)
    parser.add_argument("--model", default=DEFAULT_CHECKPOINT, help="checkpoint (default: model.bin beside the program)")
    parser.add_argument("--data", nargs="+", help=f"pairs: {PAIRS_HELP} (default: the starter training pairs)")
    parser.add_argument("--out", default="tsne_map.png", help="PNG to write")
    parser.add_argument("--html", metavar="FILE", help="also write an interactive page: hover over a point to read its sentence")
    parser.add_argument("--method", choices=list(METHODS), default="tsne", help="umap needs requirements-demo.txt")
    parser.add_argument("--baseline", action="store_true", help="also draw mean pooling of the same tokens, side by side")
    parser.add_argument("--sentences", type=int, default=2000, help="how many sentences to draw, in randomly chosen pairs")
    parser.add_argument("--perplexity", type=float, default=30.0, help="of t-SNE; number of neighbours for umap, not used by pca")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the sample and the map")
    parser.add_argument("--cache_dir", help="folder for token stores (default: next to the data)")
    add_read_arguments(parser)
    options = parser.parse_args()
    if options.sentences < 4:
        raise InputError(f"--sentences is {options.sentences}, expected 4 or more")
    if not options.perplexity >= 1:
        raise InputError(f"--perplexity is {options.perplexity:g}, expected 1 or more")
    if not 0 <= options.seed < 2**32:
        raise InputError(f"--seed is {options.seed}, expected 0 to {2**32 - 1}")
    inputs = [options.model, *(options.data or [])]
    out = output_file(options.out, inputs, suffix=".png")
    page_out = output_file(options.html, [*inputs, out], suffix=".html") if options.html else None
    encoder = load_encoder(options.model)
    pairs = open_pairs(options.data or [STARTER_TRAIN], options=read_options(options), cache_dir=options.cache_dir)
    check_fits(encoder, pairs)
    sample = sample_pairs(pairs, options.sentences, options.seed)
    encoders = {Path(options.model).name: encoder}
    if options.baseline:
        encoders = {"mean pooling": mean_pooling(pairs.tokens.dim), **encoders}
    count = 2 * len(sample)
    neighbours = fitting_neighbours(count, options.method, options.perplexity)
    if options.method != "pca" and neighbours < options.perplexity:
        what = {"tsne": "perplexity", "umap": "number of neighbours"}[options.method]
        print(f"{count} sentences: the {what} is {neighbours:.3g} instead of {options.perplexity:g}.")
    panels = {}
    for name, candidate in encoders.items():
        first, second = encode_pairs(candidate, sample)
        embeddings = np.concatenate([first.numpy(), second.numpy()])
        title = f"{name}: {len(embeddings):,} sentence embeddings"
        if np.ptp(sample.labels):  # with equal labels, or none, it says nothing
            title += f", Spearman {score_embeddings(first, second, sample.labels).spearman:.3f}"
        panels[title] = project_to_2d(embeddings, options.method, neighbours=neighbours, seed=options.seed)
    caption = METHODS[options.method]
    page = interactive_map(panels, sample.text(), caption).to_html(default_height="96vh") if page_out else ""
    sentences = sample.sentences_of(np.concatenate([sample.first, sample.second])) if sample.sentences else None
    draw_maps(out, panels, sample.labels, caption, sentences)
    print(f"{options.out}: {2 * len(sample):,} sentences")
    if page_out:
        write_text_atomically(page_out, page)
        print(f"{options.html}: the same map as a page to open in a browser")


if __name__ == "__main__":
    run_command(main)
