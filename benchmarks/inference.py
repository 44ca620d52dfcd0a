"""Sentences per second on one thread: model.bin, the published one, plain mean pooling and the backbone."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from published import PlainPublished
from sentence_transformers.sentence_transformer.modules import Pooling
from timing import goal, rate_rows, ratios, run_script, time_interleaved
from torch import Tensor

from common.text_tables import markdown
from data import PairData
from evaluation.checkpoint import load_encoder
from model import SentenceEncoder
from tokens.backbone import Backbone

SENTENCES = 1280
PUBLISHED, OURS = "published encoder, plain PyTorch", "**model.bin**"
GOALS = {128: 2.0, 32: 2.0, 1: 1.0}  # by batch size: at least so many times the published encoder's sentences per second
Batches = list[tuple[Tensor, Tensor]]  # tokens (B, T, D) and mask (B, T)


def padded_batches(pairs: PairData, batch_size: int) -> Batches:
    """The first 1,280 sentences in padded batches."""
    batches = []
    for rows in np.arange(SENTENCES).reshape(-1, batch_size):
        tokens, lengths = pairs.tokens.padded(rows)
        batches.append((tokens, torch.arange(tokens.shape[1]) < lengths[:, None]))
    return batches


def compare(
    encoder: SentenceEncoder,
    batches: Batches,
    repeats: int,
    backbone: Callable[[], object] | None = None,
    bound: float | None = None,
) -> str:
    """The table of one kind of batches, and the goal if there is a `bound`."""
    dim = batches[0][0].shape[2]
    published = PlainPublished(dim).eval()
    pooling = Pooling(dim, pooling_mode="mean")
    functions: dict[str, Callable[[], object]] = {
        PUBLISHED: lambda: [published(tokens) for tokens, _ in batches],
        OURS: lambda: [encoder(tokens) for tokens, _ in batches],
        "mean pooling, sentence-transformers, mask given": lambda: [
            pooling({"token_embeddings": tokens, "attention_mask": mask}) for tokens, mask in batches
        ],
        "sum over the tokens: reads the input once": lambda: [tokens.sum(1) for tokens, _ in batches],
    }
    if backbone:
        functions["the backbone, from token ids"] = backbone
    with torch.inference_mode():
        seconds = time_interleaved(functions, repeats)
    n_sentences = sum(len(tokens) for tokens, _ in batches)
    rates = {name: [n_sentences / value for value in values] for name, values in seconds.items()}
    header = (f"one thread, {n_sentences:,} sentences", "sentences/s, median (range)", "published = 1")
    table = markdown(header, rate_rows(rates, PUBLISHED))
    return table if bound is None else f"{table}\n{goal('sentences/s, published = 1', ratios(rates, PUBLISHED)[OURS], bound)}"


def backbone_pass(pairs: PairData, batch_size: int) -> Callable[[], object]:
    """A function that runs the default backbone on the same sentences."""
    backbone = Backbone()
    assert pairs.sentences is not None
    ids, _ = backbone.tokenize(pairs.sentences[:SENTENCES])
    return lambda: [None for _ in backbone.token_embeddings(ids, batch_size)]


def compare_in(python: str, model: str, batches: Batches, repeats: int) -> float:
    """Our sentences per second in another Python, as a multiple of the published encoder's there."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "batches.pt"
        torch.save([tokens for tokens, _ in batches], path)
        script = str(Path(__file__).with_name("published.py"))
        published, ours = run_script(script, str(path), model, str(repeats), python=python)
    return statistics.median(published) / statistics.median(ours)


def run(pairs: PairData, model: str, judge: str | None = None, repeats: int = 15) -> str:
    """All tables of inference; with the interpreter `judge`, the ratio there too."""
    encoder = load_encoder(model)
    sections = []
    for batch_size, bound in GOALS.items():
        batches = padded_batches(pairs, batch_size)
        used = float(torch.cat([mask.flatten() for _, mask in batches]).float().mean())
        backbone = backbone_pass(pairs, batch_size) if batch_size == 32 else None
        sections.append(f"Batches of {batch_size}; {used:.0%} of the positions are tokens, the rest padding:\n")
        sections.append(compare(encoder, batches, repeats, backbone, bound))
        if judge:
            ratio = compare_in(judge, model, batches, repeats)
            sections.append(goal("the same with Python 3.12 and torch 2.3.0", ratio, bound))
    rng = torch.Generator().manual_seed(0)
    long = [(torch.randn(8, 512, pairs.tokens.dim, generator=rng), torch.ones(8, 512, dtype=torch.bool)) for _ in range(8)]
    sections.append("512 tokens per sentence, batches of 8:\n")
    sections.append(compare(encoder, long, repeats))
    return "\n".join(sections)
