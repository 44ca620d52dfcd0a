"""A map of sentence embeddings: t-SNE, UMAP or PCA to two dimensions, coloured by label.

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
from data import STARTER_TRAIN, PairData, open_pairs
from evaluation.checkpoint import load_encoder
from evaluation.encoding import check_fits, encode_pairs
from evaluation.maps import METHODS, draw_maps, interactive_map, to_plane
from evaluation.scores import score_vectors
from model import mean_pooling


def sample_pairs(pairs: PairData, sentences: int, seed: int) -> PairData:
    """Pairs, chosen at random, that have about `sentences` sentences together; all where there are fewer."""
    wanted = min(len(pairs), sentences // 2)
    return pairs.select(np.sort(np.random.default_rng(seed).choice(len(pairs), wanted, replace=False)))


def main() -> None:
    """Command line."""
    parser = make_parser("visualize_tsne.py", __doc__)
    parser.add_argument("--model", default="model.bin", help="checkpoint")
    parser.add_argument("--data", nargs="+", help=f"pairs: {PAIRS_HELP} (default: the starter training pairs)")
    parser.add_argument("--out", default="tsne_map.png", help="PNG to write")
    parser.add_argument("--html", metavar="FILE", help="also write a page that shows each sentence under the pointer")
    parser.add_argument("--method", choices=list(METHODS), default="tsne", help="umap needs requirements-demo.txt")
    parser.add_argument("--baseline", action="store_true", help="draw mean pooling of the same tokens beside it")
    parser.add_argument("--sentences", type=int, default=2000, help="how many sentences, chosen at random by pairs")
    parser.add_argument("--perplexity", type=float, default=30.0, help="how many neighbours a sentence listens to; not for pca")
    parser.add_argument("--seed", type=int, default=0, help="of the choice and the map")
    parser.add_argument("--cache_dir", help="folder for token stores, instead of beside their sources")
    options = parser.parse_args()
    if options.sentences < 4:
        raise InputError(f"--sentences is {options.sentences}, expected 4 or more")
    if not options.perplexity >= 1:
        raise InputError(f"--perplexity is {options.perplexity:g}, expected 1 or more")
    read = [options.model, *(options.data or [])]
    out = output_file(options.out, read, suffix=".png")
    page_out = output_file(options.html, [*read, out], suffix=".html") if options.html else None
    encoder = load_encoder(options.model)
    pairs = open_pairs(options.data or [STARTER_TRAIN], cache_dir=options.cache_dir)
    check_fits(encoder, pairs)
    sample = sample_pairs(pairs, options.sentences, options.seed)
    encoders = {Path(options.model).name: encoder}
    if options.baseline:
        encoders = {"mean pooling": mean_pooling(pairs.tokens.dim), **encoders}
    panels = {}
    for name, candidate in encoders.items():
        first, second = encode_pairs(candidate, sample)
        spearman = score_vectors(first, second, sample.labels).spearman
        vectors = np.concatenate([first.numpy(), second.numpy()])
        title = f"{name}: {len(vectors):,} sentence embeddings, Spearman {spearman:.3f}"
        panels[title] = to_plane(vectors, options.method, neighbours=options.perplexity, seed=options.seed)
    caption = METHODS[options.method]
    page = interactive_map(panels, sample.text(), caption).to_html(default_height="96vh") if options.html else ""
    draw_maps(out, panels, sample.labels, caption)
    print(f"{options.out}: {2 * len(sample):,} sentences")
    if page_out:
        write_text_atomically(page_out, page)
        print(f"{options.html}: the same, to open in a browser")


if __name__ == "__main__":
    run_command(main)
