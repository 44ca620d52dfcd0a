"""Evaluate an encoder against mean pooling of the same tokens.

Examples:

    python evaluate.py --model model.bin --data test.csv
    python evaluate.py --model model.bin --data test.csv --validation dev.csv --plot predictions.png

With validation pairs, cosines are calibrated to labels on them, and the table
includes the errors of the predicted labels.
"""

from __future__ import annotations

import json
import os

from common.cli import PAIRS_HELP, make_parser, output_file, run_command
from common.errors import InputError
from data import STARTER_DEV, STARTER_TEST, open_pairs
from evaluation.calibration import draw_predictions
from evaluation.checkpoint import DEFAULT_CHECKPOINT, load_encoder
from evaluation.encoding import check_fits
from evaluation.scores import compare, score_table
from tokens.text_pairs import add_read_arguments, read_options


def main() -> None:
    """Command line."""
    parser = make_parser("evaluate.py", __doc__)
    parser.add_argument("--model", default=DEFAULT_CHECKPOINT, help="checkpoint (default: model.bin beside the program)")
    parser.add_argument("--data", nargs="+", help=f"pairs: {PAIRS_HELP} (default: the starter test pairs)")
    parser.add_argument("--validation", nargs="+", help="pairs to calibrate on (default: the starter ones, if --data is left out)")
    parser.add_argument("--plot", metavar="FILE", help="PNG to write: predicted against true labels; needs validation pairs")
    parser.add_argument("--cache_dir", help="folder for token stores (default: next to the data)")
    add_read_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    inputs = [options.model, *(options.data or []), *(options.validation or [])]
    plot = output_file(options.plot, inputs, suffix=".png") if options.plot else None
    reading = read_options(options)
    encoder = load_encoder(options.model)
    pairs = open_pairs(options.data or [STARTER_TEST], options=reading, cache_dir=options.cache_dir)
    check_fits(encoder, pairs)
    validation = None
    if options.validation or not options.data:
        validation = open_pairs(options.validation or [STARTER_DEV], options=reading, cache_dir=options.cache_dir)
        check_fits(encoder, validation)
    elif options.plot:
        raise InputError("--plot needs pairs to calibrate on: give --validation, with pairs other than --data")
    scores, predictions = compare(encoder, pairs, validation)
    size = os.path.getsize(options.model)
    if options.json:
        print(json.dumps({"model": str(options.model), "bytes": size, **scores}, indent=2))
    else:
        print(score_table(scores))
        print(f"\n{options.model}: {size / 2**20:.2f} MiB of at most 20")
    if plot:
        draw_predictions(plot, predictions, pairs.labels)
        if not options.json:
            print(f"{options.plot}: predicted against true labels")


if __name__ == "__main__":
    run_command(main)
