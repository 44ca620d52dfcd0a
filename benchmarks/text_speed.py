"""Sentences per second from text, on one thread: the trained encoder beside the backbone's own sentence-transformers `encode`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from sentence_transformers import SentenceTransformer
from timing import table, time_in_turn

from backbone import source_of
from data import PairData
from text import TextEncoder

SENTENCES = 640
BACKBONE = "the backbone's own `encode`, sentence-transformers"


def ways_of_encoding(model: str, sentences: Sequence[str], batch_size: int) -> dict[str, Callable[[], object]]:
    """The same sentences to vectors, each way; the backbone with the mean pooling it was trained with."""
    ours = TextEncoder(model, device="cpu")
    theirs = SentenceTransformer(source_of(ours.backbone.name), device="cpu")
    return {
        BACKBONE: lambda: theirs.encode(list(sentences), batch_size=batch_size, show_progress_bar=False),
        "**`TextEncoder.encode`, the default encoder**": lambda: ours.encode(sentences, batch_size=batch_size),
    }


def run(pairs: PairData, model: str, repeats: int = 7) -> str:
    """The table of text."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    sentences = pairs.text().first[:SENTENCES]
    rows = []
    for batch_size in (32, 1):
        timings = time_in_turn(ways_of_encoding(model, sentences, batch_size), repeats)
        for name, timing in timings.items():
            rate = f"{len(sentences) / timing.median:,.0f}"
            share = f"{timings[BACKBONE].median / timing.median:.3f}"
            rows.append((name, str(batch_size), timing.milliseconds(), rate, share))
    torch.set_num_threads(threads)
    header = (f"one thread, {len(sentences):,} sentences", "batch", "ms, median (range)", "sentences/s", "backbone = 1")
    return table(header, rows)
