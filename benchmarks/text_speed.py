"""Sentences per second from text, on one thread: the trained encoder beside the backbone's own sentence-transformers `encode`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from sentence_transformers import SentenceTransformer
from timing import goal, time_in_turn

from data import PairData
from studies.tables import markdown
from text import TextEncoder
from tokens.backbone import source_of

SENTENCES = 640


def ways_of_encoding(model: str, sentences: Sequence[str], batch_size: int) -> dict[str, Callable[[], object]]:
    """The same sentences to vectors, each way; the backbone with the mean pooling it was trained with."""
    ours = TextEncoder(model, device="cpu")
    theirs = SentenceTransformer(source_of(ours.backbone.name), device="cpu")
    return {
        "the backbone's own `encode`, sentence-transformers": lambda: theirs.encode(
            list(sentences), batch_size=batch_size, show_progress_bar=False
        ),
        "**`TextEncoder.encode`, the default encoder**": lambda: ours.encode(sentences, batch_size=batch_size),
    }


def run(pairs: PairData, model: str, repeats: int = 7, batch_sizes: Sequence[int] = (32, 1)) -> str:
    """The table of text."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    sentences = pairs.text().first[:SENTENCES]
    rows, goals = [], []
    for batch_size in batch_sizes:
        timings = time_in_turn(ways_of_encoding(model, sentences, batch_size), repeats)
        theirs, ours = timings.values()
        for name, timing in timings.items():
            rate = f"{len(sentences) / timing.median:,.0f}"
            rows.append((name, str(batch_size), timing.milliseconds(), rate, f"{theirs.median / timing.median:.3f}"))
        if batch_size > 1:  # one at a time it is the calls that cost, not the arithmetic
            goals.append(goal(f"speed of the backbone's own in batches of {batch_size}", theirs.median / ours.median, 0.95))
    torch.set_num_threads(threads)
    header = (f"one thread, {len(sentences):,} sentences", "batch", "ms, median (range)", "sentences/s", "backbone = 1")
    return "\n".join([markdown(header, rows), *goals])
