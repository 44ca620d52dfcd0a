"""Mine hard negatives: for each first sentence the most similar sentences that do not match it.

Examples:

    python mine_negatives.py --data questions.tsv --out negatives.tsv
    python mine_negatives.py --data questions.tsv --model model.bin --num_negatives 5 --range_min 3 --absolute_margin 0.05

The result has a row for each matching pair: sentence, match, negatives, separated by tabs. Other training tools read it too.
"""

from __future__ import annotations

import numpy as np

from common.cli import make_parser, output_file, run_command
from common.errors import InputError
from common.files import write_text_atomically
from data import PairData, open_pairs
from retrieval.mining import BASELINE, Mining, mining_encoder, with_mined_negatives
from tokens.text_files import match_note


def negative_rows(pairs: PairData, match_label: float) -> str:
    """Text of the matching pairs and their negatives, a row for each."""
    text, sentences = pairs.text(), pairs.sentences
    assert sentences is not None and pairs.negatives is not None
    rows = []
    for row in np.flatnonzero(pairs.labels >= match_label):
        fields = [text.first[row], text.second[row], *(sentences[number] for number in pairs.negatives[row])]
        rows.append("\t".join(" ".join(field.split()) for field in fields) + "\n")
    return "".join(rows)


def main() -> None:
    """Command line."""
    parser = make_parser("mine_negatives.py", __doc__)
    parser.add_argument("--data", nargs="+", required=True, help="labelled pairs with their text: a .tsv, .csv or .store file")
    parser.add_argument("--model", default=BASELINE, help="what finds them: baseline (mean pooling), or a checkpoint")
    parser.add_argument("--match_label", type=float, default=1.0, help="label from which on a pair matches")
    parser.add_argument("--faiss", action="store_true", help="search with faiss, for large corpora (pip install faiss-cpu)")
    parser.add_argument("--out", default="negatives.tsv", help="the file to write")
    parser.add_class_arguments(Mining, None)
    options = parser.parse_args()
    mining = Mining(**{name: options[name] for name in Mining.__dataclass_fields__})
    out = output_file(options.out, [*options.data, options.model])
    pairs = open_pairs(options.data)
    if note := match_note(pairs.labels, options.match_label):
        print(note)
    if not (pairs.labels >= options.match_label).any():
        raise InputError(
            f"no pair has a label of at least {options.match_label:g}; give a lower --match_label", path=options.data[0]
        )
    encoder = mining_encoder(options.model, pairs)
    pairs, mined = with_mined_negatives(encoder, pairs, options.match_label, mining, faiss=options.faiss)
    rows = negative_rows(pairs, options.match_label)
    write_text_atomically(out, rows)
    n_rows = rows.count("\n")
    print(f"{mined.report()}\n{options.out}: {n_rows:,} matching pairs, each with {mining.num_negatives} negatives")


if __name__ == "__main__":
    run_command(main)
