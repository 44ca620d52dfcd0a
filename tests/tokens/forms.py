"""The same pairs in the exact form of each source that people have, written for these tests."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path

FIRST = [
    "A man plays a guitar.",
    "A dog runs, fast.",
    'He said "go" to us.',
    "One; two; three.",
    "The sun rises.",
    "Cafés open early.",
]
SECOND = [
    "Somebody makes music.",
    "A cat sleeps here.",
    "They told us to leave.",
    "Four five six.",
    "Dawn has come.",
    "Shops close.",
]
GRADED = [3.5, 0.25, 4.5, 1.0, 4.0, 0.0]
BINARY = [1, 0, 1, 0, 1, 0]
NEGATIVES = [f"Nobody knows number {i}." for i in range(6)]
PAIRS = list(zip(FIRST, SECOND, strict=True))


def rows_as(rows: list[list[object]], delimiter: str = ",", **options: object) -> str:
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, lineterminator="\n", **options).writerows(rows)
    return text.getvalue()


def tabs(rows: list[list[object]]) -> str:
    """Quotes are text."""
    return "".join("\t".join(map(str, row)) + "\n" for row in rows)


def glue() -> str:
    header = ["index", "genre", "filename", "year", "old_index", "source1", "source2", "sentence1", "sentence2", "score"]
    return tabs(
        [
            header,
            *(
                [i, "main-captions", "MSRvid", "2012test", f"{i:04}", "none", "none", *pair, f"{GRADED[i]:.3f}"]
                for i, pair in enumerate(PAIRS)
            ),
        ]
    )


def sts_benchmark() -> str:
    """No header, tabs in a .csv, and some rows with two more columns."""
    more = [["http://a.example", "http://b.example"] if i == 2 else [] for i in range(6)]
    return tabs(
        [["main-news", "headlines", "2015", f"{7 * i + 3:04}", f"{GRADED[i]:.3f}", *pair, *more[i]] for i, pair in enumerate(PAIRS)]
    )


def semeval() -> str:
    return tabs([[GRADED[i], *pair] for i, pair in enumerate(PAIRS)])


def sick() -> str:
    header = ["pair_ID", "sentence_A", "sentence_B", "relatedness_score", "entailment_judgment"]
    return tabs([header, *([i + 1, *pair, 1 + GRADED[i] * 4 / 5, "NEUTRAL"] for i, pair in enumerate(PAIRS))])


def quora() -> str:
    header = ["id", "qid1", "qid2", "question1", "question2", "is_duplicate"]
    rows = [[i, 2 * i, 2 * i + 1, *pair, BINARY[i]] for i, pair in enumerate(PAIRS)]
    return rows_as([header, *rows], "\t", quoting=csv.QUOTE_ALL)


def mrpc() -> str:
    header = ["Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"]
    return "\ufeff" + tabs([header, *([BINARY[i], 702876 + i, 702977 + i, *pair] for i, pair in enumerate(PAIRS))])


def paws() -> str:
    return tabs([["id", "sentence1", "sentence2", "label"], *([i + 1, *pair, BINARY[i]] for i, pair in enumerate(PAIRS))])


def pairs_only() -> str:
    return rows_as([["anchor", "positive"], *map(list, PAIRS)])


def tuples() -> str:
    header = ["anchor", "positive", "negative_1", "negative_2"]
    return rows_as([header, *([*pair, NEGATIVES[i], NEGATIVES[i - 1]] for i, pair in enumerate(PAIRS))])


def json_lines() -> str:
    keys = ("sentence1", "sentence2", "score")
    return "".join(json.dumps(dict(zip(keys, (*pair, GRADED[i] / 5), strict=True))) + "\n" for i, pair in enumerate(PAIRS))


def json_array() -> str:
    keys = ("sentence1", "sentence2", "score")
    return json.dumps([dict(zip(keys, (*pair, GRADED[i] / 5), strict=True)) for i, pair in enumerate(PAIRS)])


def pretty_json_array() -> str:
    return json.dumps(json.loads(json_array()), indent=4) + "\n"


def semicolons() -> str:
    """Another order of the columns, decimal commas."""
    header = ["score", "sentence2", "sentence1"]
    return rows_as(
        [header, *([f"{GRADED[i]:.2f}".replace(".", ","), second, first] for i, (first, second) in enumerate(PAIRS))], ";"
    )


def plain() -> str:
    return rows_as([[*pair, GRADED[i]] for i, pair in enumerate(PAIRS)])


def parquet(path: Path) -> None:
    import pyarrow
    from pyarrow import parquet as file

    file.write_table(pyarrow.table({"label": GRADED, "text1": FIRST, "other": BINARY, "text2": SECOND}), path)


# name of the file, its contents, whether it has graded labels, binary ones or none
TEXT_FORMS: dict[str, tuple[str, Callable[[], str], list[float] | None]] = {
    "GLUE's STS-B": ("train.tsv", glue, GRADED),
    "the STS benchmark": ("sts-train.csv", sts_benchmark, GRADED),
    "SemEval by year": ("STS2014.txt", semeval, GRADED),
    "SICK": ("SICK_train.txt", sick, GRADED),
    "Quora": ("quora_duplicate_questions.tsv", quora, [5 * label for label in BINARY]),
    "MRPC": ("msr_paraphrase_train.txt", mrpc, [5 * label for label in BINARY]),
    "PAWS": ("paws.tsv", paws, [5 * label for label in BINARY]),
    "anchor and positive": ("pairs.csv", pairs_only, None),
    "anchor, positive, negatives": ("tuples.csv", tuples, None),
    "JSON lines": ("pairs.jsonl", json_lines, GRADED),
    "one JSON array": ("pairs.json", json_array, GRADED),
    "one JSON array over many lines": ("pretty.json", pretty_json_array, GRADED),
    "semicolons and decimal commas": ("excel.csv", semicolons, GRADED),
    "three columns": ("plain.csv", plain, GRADED),
}


def write_form(folder: Path, name: str) -> Path:
    """Write a form as UTF-8."""
    file, make, _ = TEXT_FORMS[name]
    (folder / file).write_bytes(make().encode("utf-8"))
    return folder / file


def compressed(path: Path, suffix: str) -> Path:
    """The same file compressed; its name says nothing."""
    target = path.with_name(f"{path.stem}-{suffix}.data")
    if suffix == "gz":
        target.write_bytes(gzip.compress(path.read_bytes()))
    else:
        import pyarrow

        target.write_bytes(pyarrow.compress(path.read_bytes(), codec="zstd", asbytes=True))
    return target
