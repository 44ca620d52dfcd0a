"""Compare an encoder with mean pooling of the same tokens, and with the backbone off the shelf.

Examples:

    python evaluate.py --model model.bin --data test.csv
    python evaluate.py --model model.bin --data test.csv questions.tsv --meaning --out scores.md
    python evaluate.py --model model.bin --data test.csv --validation dev.csv --plot predictions.png

Each table, store, folder or hf: name of --data is a data set with its own rows;
.dat files form one. With validation pairs, cosines are calibrated to labels on
them, and the table includes the error of the predicted labels.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.cli import PAIRS_HELP, make_parser, output_file, run_command
from common.errors import InputError
from common.files import size_of, write_text_atomically
from common.starter import STARTER_DEV, STARTER_TEST
from data import PairData, open_pairs
from evaluation.calibration import draw_predictions
from evaluation.checkpoint import DEFAULT_CHECKPOINT, load_encoder
from evaluation.comparison import DataSet, calibrate, costs, evaluate_all, mean_scores, meaning
from evaluation.comparison_tables import as_markdown, as_text, meaning_table, score_tables
from evaluation.encoding import check_fits
from text import is_small_encoder, load_small_encoder
from tokens.text_pairs import add_read_arguments, read_options

if TYPE_CHECKING:
    from evaluation.comparison import Encoder


def main() -> None:
    """Command line."""
    options = parse_options()
    sources = group_by_data_set(options.data or [str(STARTER_TEST)])
    validation = options.validation or ([] if options.data else [str(STARTER_DEV)])
    if options.plot and len(sources) > 1:
        raise InputError(f"--plot draws one data set, expected one in --data, not {len(sources)}")
    inputs = [options.model, *(options.data or []), *validation]
    plot = output_file(options.plot, inputs, suffix=".png") if options.plot else None
    out = output_file(options.out, inputs, suffix=".md") if options.out else None
    if plot and not validation:
        raise InputError("--plot needs pairs to calibrate on: give --validation, with pairs other than --data")
    encoder = load_small_encoder(options.model) if is_small_encoder(options.model) else load_encoder(options.model)
    calibrations = calibrate(encoder, open_for(encoder, validation, options)) if validation else {}
    data_sets = [evaluate_all(name, open_for(encoder, paths, options), encoder, calibrations) for name, paths in sources.items()]
    labelled = [data for data in data_sets if data.has_labels]
    for option, given in (("--plot", plot), ("--meaning", options.meaning)):
        if given and not labelled:
            raise InputError(f"{option} needs pairs with labels, and those of --data have none")
    if plot and not calibrations:
        raise InputError("--plot needs pairs with labels, and those of --validation have none")
    mean = mean_scores([data.scores for data in labelled]) if len(labelled) > 1 else {}
    by_cosine = meaning([data for data in labelled if data.is_graded] or labelled) if options.meaning else {}
    tables = score_tables(data_sets, mean) + ([meaning_table(by_cosine)] if by_cosine else [])
    if options.json:
        print(as_json(options.model, data_sets, {"mean": mean, "meaning": by_cosine}))
    else:
        print(as_text(options.model, data_sets, tables))
    if out:
        write_text_atomically(out, as_markdown(tables))
    if plot:
        predictions = {name: each.predicted for name, each in labelled[0].evaluations.items() if each.predicted is not None}
        draw_predictions(plot, predictions, labelled[0].labels)
    if out and not options.json:
        print(f"{options.out}: the tables as Markdown")
    if plot and not options.json:
        print(f"{options.plot}: predicted against true labels")


def parse_options() -> Any:
    """The options of the command line."""
    parser = make_parser("evaluate.py", __doc__)
    parser.add_argument(
        "--model",
        default=DEFAULT_CHECKPOINT,
        help="checkpoint, or a small encoder's folder (default: model.bin beside the program)",
    )
    parser.add_argument("--data", nargs="+", help=f"one or more data sets, each {PAIRS_HELP} (default: the starter test pairs)")
    parser.add_argument("--validation", nargs="+", help="pairs to calibrate on (default: the starter ones, if --data is left out)")
    parser.add_argument("--meaning", action="store_true", help="also print the mean label of each range of cosines")
    parser.add_argument("--plot", metavar="FILE", help="PNG to write: predicted against true labels; needs validation pairs")
    parser.add_argument("--out", metavar="FILE", help="Markdown file to write the tables to as well")
    parser.add_argument("--cache_dir", help="folder for token stores (default: next to the data)")
    add_read_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    return parser.parse_args()


def group_by_data_set(paths: Sequence[str]) -> dict[str, list[str]]:
    """The paths of each data set by its name: the shortest end of its path that is unique.

    All .dat files together are one data set, named like their folder.

    Raises:
        InputError: if a data set is given twice.
    """
    dat_files = [path for path in paths if path.endswith((".dat", ".dat.gz"))]
    groups = list(dict.fromkeys(tuple(dat_files) if path in dat_files else (path,) for path in paths))
    places = [Path(os.path.abspath(Path(group[0]).parent if group[1:] else group[0])).parts for group in groups]
    names = {}
    for group, place in zip(groups, places, strict=True):
        ends = (n for n in range(1, len(place) + 1) if [other[-n:] for other in places].count(place[-n:]) == 1)
        length = next(ends, None)
        if length is None:
            raise InputError("is given twice in --data, expected different data sets", path=group[0])
        names[str(Path(*place[-length:]))] = list(group)
    return names


def open_for(encoder: Encoder, paths: Sequence[str], options: Any) -> PairData:
    """Open pairs whose tokens fit an encoder.

    Raises:
        InputError: if they cannot be read or do not fit.
    """
    pairs = open_pairs(paths, options=read_options(options), cache_dir=options.cache_dir)
    try:
        check_fits(encoder, pairs)
    except InputError as error:
        raise InputError(str(error), path=paths[0]) from None
    return pairs


def as_json(model: str | Path, data_sets: Sequence[DataSet], more: Mapping[str, Any]) -> str:
    """The size of the checkpoint, costs, scores by data set and encoder, and what is not empty of `more`, as JSON."""
    figures = {"model": str(model), "bytes": size_of(Path(model)), "encoders": costs(data_sets)}
    figures |= {"data": {data.name: data.scores for data in data_sets}, **{name: value for name, value in more.items() if value}}
    return json.dumps(without_nan(figures), indent=2, allow_nan=False)


def without_nan(value: Any) -> Any:
    """Replace NaN, which JSON does not know, by None at any depth."""
    if isinstance(value, Mapping):
        return {name: without_nan(each) for name, each in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


if __name__ == "__main__":
    run_command(main)
