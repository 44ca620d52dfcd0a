"""Mine hard negatives: the sentences most similar to each first sentence that do not match it.

Examples:

    python mine_negatives.py --data questions.tsv --out negatives.tsv
    python mine_negatives.py --data questions.tsv --model model.bin --num_negatives 5 --range_min 3 --absolute_margin 0.05

Writes a header and one row per matching pair, separated by tabs: anchor, positive, negative_1 and so on. Negatives of the
input come first. train_retrieval.py and sentence-transformers read it.
"""

from __future__ import annotations

import csv
import io

from common.cli import PAIRS_HELP, make_parser, output_file, run_command
from common.errors import InputError
from common.files import write_text_atomically
from data import open_pairs
from retrieval.mining import BASELINE, MiningConfig, add_hard_negatives, baseline_or_checkpoint, match_note
from tokens.text_pairs import add_read_arguments, read_options


def main() -> None:
    """Command line."""
    parser = make_parser("mine_negatives.py", __doc__)
    parser.add_argument("--data", nargs="+", required=True, help=f"pairs with text: {PAIRS_HELP}")
    parser.add_argument("--model", default=BASELINE, help="encoder used for mining: baseline (mean pooling) or a checkpoint")
    parser.add_argument("--match_label", type=float, default=1.0, help="pairs with this label or higher match")
    parser.add_argument("--faiss", action="store_true", help="search with faiss, for millions of sentences (pip install faiss-cpu)")
    parser.add_argument("--out", default="negatives.tsv", help="the file to write")
    add_read_arguments(parser)
    parser.add_class_arguments(MiningConfig, None)
    options = parser.parse_args()
    config = MiningConfig(**{name: options[name] for name in MiningConfig.__dataclass_fields__})
    out = output_file(options.out, [*options.data, options.model])
    pairs = open_pairs(options.data, options=read_options(options))
    if note := match_note(pairs.labels, options.match_label):
        print(note)
    if not (pairs.labels >= options.match_label).any():
        raise InputError(
            f"no pair has a label of {options.match_label:g} or higher; give a lower --match_label", path=options.data[0]
        )
    encoder = baseline_or_checkpoint(options.model, pairs.tokens.dim, pairs.tokens.description)
    pairs, mined = add_hard_negatives(encoder, pairs, options.match_label, config, use_faiss=options.faiss, matching_only=True)
    text, sentences = pairs.text(), pairs.sentences
    assert sentences is not None and pairs.negatives is not None
    n_negatives = pairs.negatives.shape[1]
    rows = [["anchor", "positive", *(f"negative_{number}" for number in range(1, n_negatives + 1))]]
    for first, second, negatives in zip(text.first, text.second, pairs.negatives, strict=True):
        fields = [first, second, *(sentences[number] for number in negatives)]
        rows.append([" ".join(field.split()) for field in fields])
    write_text_atomically(out, _as_table(rows))
    print(f"{mined.report()}\n{options.out}: {len(pairs):,} matching pairs, each with {n_negatives} negatives")


def _as_table(rows: list[list[str]]) -> str:
    """Rows separated by tabs; all cells in quotes if one has a quote, so that every reader knows what quotes mean."""
    has_quotes = any('"' in cell for row in rows for cell in row)
    text = io.StringIO()
    csv.writer(text, "excel-tab", lineterminator="\n", quoting=csv.QUOTE_ALL if has_quotes else csv.QUOTE_MINIMAL).writerows(rows)
    return text.getvalue()


if __name__ == "__main__":
    run_command(main)
