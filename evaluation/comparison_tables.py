"""Comparisons of encoders as tables, in text and in Markdown."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.files import size_of
from common.text_tables import markdown, text_table
from evaluation.comparison import BASELINE, ENCODER, DataSet, EncoderScores, costs
from evaluation.scores import METRICS

TITLES = {
    "pairs": "pairs",
    **{name: METRICS[name] for name in ("spearman", "pearson", "mse")},
    "bias": "bias",
    "unrelated": "unrelated",
    "threshold": "threshold",
    "accuracy": "accuracy",
    "mae of label": "label MAE",
}
RANKING_TITLES = {"pairs": "pairs", **{name: METRICS[name] for name in ("mrr", "triplet_accuracy")}}


@dataclass(frozen=True)
class Table:
    """A title, "" for none, and lines of cells, the header first; the first `left` columns hold names, the others numbers."""

    title: str
    lines: list[list[str]]
    left: int


def score_tables(data_sets: Sequence[DataSet], mean: EncoderScores) -> list[Table]:
    """A table of the data sets with labels, whose mean scores come last, and one of those without."""
    labelled, unlabelled = ([(d.name, d.scores) for d in data_sets if d.has_labels == wanted] for wanted in (True, False))
    tables = [Table("", score_lines([*labelled, *([("mean", mean)] if mean else [])], TITLES), 2)] if labelled else []
    return tables + ([Table("Pairs without labels", score_lines(unlabelled, RANKING_TITLES), 2)] if unlabelled else [])


def score_lines(data_sets: Sequence[tuple[str, EncoderScores]], titles: Mapping[str, str]) -> list[list[str]]:
    """A line per data set, given by name and scores, and encoder, and a column per score that any of them has."""
    everything = [own for _, scores in data_sets for own in scores.values()]
    shown = [name for name in titles if any(name in own for own in everything)]
    lines = [["data", "encoder", *(titles[name] for name in shown)]]
    for data, scores in data_sets:
        for number, (who, own) in enumerate(scores.items()):
            lines.append(["" if number else data, who, *(cell(own.get(name)) for name in shown)])
    return lines


def cell(value: float | int | None) -> str:
    """A number as it is shown, empty if it is not known."""
    if value is None or math.isnan(value):
        return ""
    return f"{value:.4f}" if isinstance(value, float) else f"{value:,}"


def meaning_table(by_cosine: Mapping[str, Mapping[str, Mapping[str, float | int]]]) -> Table:
    """The result of `meaning` as a table."""
    lines = [["cosine", *(title for who in (BASELINE, ENCODER) for title in (f"{who}: pairs", "label"))]]
    for name, by_encoder in by_cosine.items():
        line = ["unrelated sentences" if name == "unrelated" else name]
        for figures in by_encoder.values():
            text = (
                f"cosine {figures['mean cosine']:.2f}"
                if name == "unrelated"
                else f"{figures['mean label']:.2f} ± {figures['standard deviation']:.2f}"
            )
            line += [f"{figures['pairs']:,}", text if figures["pairs"] else ""]
        lines.append(line)
    return Table("What a cosine means: the labels, 0-5, of pairs by their cosine", lines, 1)


def as_text(model: str | Path, data_sets: Sequence[DataSet], tables: Sequence[Table]) -> str:
    """The tables, then a line per encoder with what it costs, then the size of the checkpoint."""
    parts = [(f"{table.title}\n\n" if table.title else "") + f"{text_table(table.lines, table.left)}\n" for table in tables]
    for who, cost in costs(data_sets).items():
        units = {"output dim": "dimensions"}
        parts.append(f"{who}: {', '.join(f'{number:,} {units.get(name, name)}' for name, number in cost.items())}")
    return "\n".join([*parts, f"{model}: {size_of(Path(model)) / 2**20:.2f} MiB of at most 20"])


def as_markdown(tables: Sequence[Table]) -> str:
    """The tables as Markdown, below the command that makes them."""
    parts = [f"`{shlex.join(['python', 'evaluate.py', *sys.argv[1:]])}`\n"]
    for table in tables:
        parts += [f"## {table.title}\n"] if table.title else []
        parts.append(markdown(table.lines[0], table.lines[1:]))
    return "\n".join(parts)
