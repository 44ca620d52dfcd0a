"""Find the sentences of an encoded corpus that are nearest to a question, or those that are nearly the same.

Examples:

    python search.py --index vectors "How do I get rid of a stain?"
    python search.py --index vectors --duplicates 0.9 --out groups.jsonl
"""

from __future__ import annotations

import json
from pathlib import Path

from jsonargparse.typing import PositiveInt

from common.cli import make_parser, output_file, run_command
from common.errors import InputError
from common.files import write_text_atomically
from corpus.nearest import METHODS, Corpus

SHOWN = 20  # groups of duplicates


def main() -> None:
    """Command line."""
    parser = make_parser("search.py", __doc__)
    parser.add_argument("queries", nargs="*", help="one or more questions")
    parser.add_argument("--index", required=True, help="folder that encode.py wrote")
    parser.add_argument("--top_k", type=PositiveInt, default=10, help="sentences per question")
    parser.add_argument("--duplicates", type=float, metavar="COSINE", help="list groups of sentences at least this similar")
    parser.add_argument("--method", choices=METHODS, default="auto", help="exact, or faiss, which auto takes above a million rows")
    parser.add_argument("--model", help="the model that encoded the corpus, if it was moved")
    parser.add_argument("--out", help="also write the results here, as JSON lines")
    options = parser.parse_args()
    if not all(query.strip() for query in options.queries):
        raise InputError("the question is empty, expected a sentence")
    if bool(options.queries) == (options.duplicates is not None):
        raise InputError("expected a question, or --duplicates with a cosine such as 0.9")
    if options.duplicates is not None and (options.model or options.method == "faiss"):
        raise InputError("--duplicates compares all vectors with all, without the model; leave out --model and --method faiss")
    if options.out and Path(options.out).resolve().is_relative_to(Path(options.index).resolve()):
        raise InputError("is inside --index, whose files it could overwrite; choose another folder", path=options.out)
    out = output_file(options.out) if options.out else None
    corpus = Corpus(options.index, model=options.model, method=options.method if options.queries else "exact")
    records = answer(corpus, options.queries, options.top_k) if options.queries else find_duplicates(corpus, options.duplicates)
    if out:
        write_text_atomically(out, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def answer(corpus: Corpus, queries: list[str], top_k: int) -> list[dict]:
    """Print the nearest sentences of each question, and return them."""
    records = []
    for query, matches in zip(queries, corpus.search_all(queries, top_k), strict=True):
        print(f"\n{query}")
        for match in matches:
            print(f"{match.similarity:7.3f}  {_line(match.id, match.document)}")
            records.append({"query": query, "id": match.id, "cosine": match.similarity, "text": match.document})
    return records


def find_duplicates(corpus: Corpus, threshold: float) -> list[dict]:
    """Print the largest groups of near-duplicates, and return all."""
    groups = corpus.duplicates(threshold)
    rows = corpus.rows([number for group in groups for number in group])
    for group in groups[:SHOWN]:
        print(f"\n{len(group)} sentences")
        for number in group[:SHOWN]:
            print(f"  {_line(*rows[number])}")
    more = f", the largest {SHOWN} shown" if len(groups) > SHOWN else ""
    print(f"\n{sum(map(len, groups)):,} of {len(corpus):,} sentences are in {len(groups):,} groups{more}.")
    return [{"ids": [rows[number][0] for number in group], "texts": [rows[number][1] for number in group]} for group in groups]


def _line(own: str | int, text: str) -> str:
    return f"{text}  [{own}]" if text else f"[{own}]"


if __name__ == "__main__":
    run_command(main)
