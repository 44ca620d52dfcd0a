"""A trained encoder beside mean pooling of the same tokens, in one table.

Examples:

    python evaluate.py --model model.bin --data test.csv
    python evaluate.py --model model.bin --data test.csv --validation dev.csv --plot predictions.png

With validation pairs a monotone map from cosine to label is fitted on them,
and the table has errors in units of the label.
"""

from __future__ import annotations

import json
import os
import sys

from common.cli import PAIRS_HELP, make_parser, output_file, run_command
from common.errors import InputError
from data import STARTER_DEV, STARTER_TEST, open_pairs
from evaluation.calibration import draw_predictions
from evaluation.checkpoint import load_encoder
from evaluation.encoding import check_fits
from evaluation.scores import compare, score_table
from tokens.text_files import labels_note


def main() -> None:
    """Command line."""
    parser = make_parser("evaluate.py", __doc__)
    parser.add_argument("--model", default="model.bin", help="checkpoint to evaluate")
    parser.add_argument("--data", nargs="+", help=f"pairs: {PAIRS_HELP} (default: the test part of the starter pairs)")
    parser.add_argument("--validation", nargs="+", help="pairs to fit labels to cosines on (default: the starter ones for those)")
    parser.add_argument("--plot", metavar="FILE", help="PNG to draw predicted beside true labels in; needs validation pairs")
    parser.add_argument("--cache_dir", help="folder for token stores, instead of beside their sources")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    read = [options.model, *(options.data or []), *(options.validation or [])]
    plot = output_file(options.plot, read, suffix=".png") if options.plot else None
    encoder = load_encoder(options.model)
    pairs = open_pairs(options.data or [STARTER_TEST], cache_dir=options.cache_dir)
    check_fits(encoder, pairs)
    validation = None
    if options.validation or not options.data:
        validation = open_pairs(options.validation or [STARTER_DEV], cache_dir=options.cache_dir)
        check_fits(encoder, validation)
    elif options.plot:
        raise InputError("--plot needs pairs to fit labels to cosines on: give --validation, pairs other than --data")
    if note := labels_note(pairs.labels):
        print(note, file=sys.stderr)
    comparison = compare(encoder, pairs, validation)
    size = os.path.getsize(options.model)
    if options.json:
        print(json.dumps({"model": options.model, "bytes": size, **comparison.figures}, indent=2))
    else:
        print(score_table(comparison.figures))
        print(f"\n{options.model}: {size / 2**20:.2f} MiB of at most 20")
    if plot:
        draw_predictions(plot, comparison.predicted, pairs.labels)
        if not options.json:
            print(f"{options.plot}: predicted beside true labels")


if __name__ == "__main__":
    run_command(main)
