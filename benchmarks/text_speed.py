"""Sentences per second from text, on one thread: `TextEncoder.encode` and the backbone's own sentence-transformers `encode`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sentence_transformers import SentenceTransformer
from timing import goal, rate_rows, ratios, time_interleaved

from common.text_tables import markdown
from data import PairData
from text import TextEncoder
from tokens.backbone import source_of

SENTENCES = 640
THEIRS, OURS = "the backbone's own `encode`, sentence-transformers", "**`TextEncoder.encode`, model.bin**"


def encode_functions(model: str, sentences: Sequence[str], batch_size: int) -> dict[str, Callable[[], object]]:
    """Functions that encode the same sentences; the backbone uses the mean pooling it was trained with."""
    ours = TextEncoder(model, device="cpu")
    theirs = SentenceTransformer(source_of(ours.backbone.name), device="cpu")
    return {
        THEIRS: lambda: theirs.encode(list(sentences), batch_size=batch_size, show_progress_bar=False),
        OURS: lambda: ours.encode(sentences, batch_size=batch_size),
    }


def run(pairs: PairData, model: str, repeats: int = 7) -> str:
    """The table of text, and the goal."""
    sentences = pairs.text().first[:SENTENCES]
    rows, goals = [], []
    for batch_size in (32, 1):
        seconds = time_interleaved(encode_functions(model, sentences, batch_size), repeats)
        rates = {name: [len(sentences) / value for value in values] for name, values in seconds.items()}
        rows += [(name, str(batch_size), *cells) for name, *cells in rate_rows(rates, THEIRS)]
        if batch_size == 32:  # one at a time, the overhead of the calls dominates
            goals.append(goal("sentences/s in batches of 32, backbone = 1", ratios(rates, THEIRS)[OURS], 0.95))
    header = (f"one thread, {len(sentences):,} sentences", "batch", "sentences/s, median (range)", "backbone = 1")
    return "\n".join([markdown(header, rows), *goals])
