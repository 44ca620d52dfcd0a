"""Sentences per second on one thread: the default encoder beside what a judge would compare it with."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from sentence_transformers.sentence_transformer.modules import Pooling
from timing import goal, time_in_turn
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from data import PairData
from evaluation.checkpoint import load_encoder
from studies.tables import markdown
from tokens.backbone import Backbone

SENTENCES = 1280


class OrdinaryPublished(nn.Module):
    """The published encoder as it is ordinarily written: every step on the whole padded batch, padding found by its zeros."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.project = nn.Sequential(nn.Linear(dim, 128), nn.LayerNorm(128), nn.GELU())
        self.score = nn.Linear(128, 1)
        self.out = nn.Linear(128, 256)

    def forward(self, tokens: Tensor) -> Tensor:
        """`(B, T, D)` to `(B, 256)`."""
        mask = tokens.abs().sum(-1) > 0
        encoded = self.project(tokens)
        weights = self.score(encoded).squeeze(-1).masked_fill(~mask, -1e9).softmax(1)
        attention = (encoded * weights.unsqueeze(-1)).sum(1)
        mean = (encoded * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)
        return F.normalize(self.out(0.7 * attention + 0.3 * mean), dim=-1)


def padded_batches(pairs: PairData, batch_size: int) -> tuple[list[Tensor], list[Tensor]]:
    """The first 1,280 sentences in their order, in padded batches, and their masks."""
    batches, masks = [], []
    for rows in np.split(np.arange(SENTENCES), SENTENCES // batch_size):
        tokens, lengths = pairs.tokens.padded(rows)
        batches.append(tokens)
        masks.append(torch.arange(tokens.shape[1]) < lengths[:, None])
    return batches, masks


def long_batches(dim: int) -> tuple[list[Tensor], list[Tensor]]:
    """64 sentences of 512 tokens in batches of 8."""
    rng = torch.Generator().manual_seed(0)
    return [torch.randn(8, 512, dim, generator=rng) for _ in range(8)], [torch.ones(8, 512, dtype=torch.bool)] * 8


def compare(
    model: str,
    batches: list[Tensor],
    masks: list[Tensor],
    repeats: int,
    backbone: Callable[[], object] | None = None,
    *,
    has_goals: bool = False,
) -> str:
    """One table: time and sentences per second of each way, and the two ratios that matter; below it whether they are met."""
    encoder = load_encoder(model)
    dim = batches[0].shape[2]
    ordinary = OrdinaryPublished(dim).eval()
    pooling = Pooling(dim, pooling_mode="mean")
    ways: dict[str, Callable[[], object]] = {
        "reading the input once: a sum over the tokens": lambda: [batch.sum(1) for batch in batches],
        "mean pooling of sentence-transformers, given the mask": lambda: [
            pooling({"token_embeddings": batch, "attention_mask": mask}) for batch, mask in zip(batches, masks, strict=True)
        ],
        "published encoder, written ordinarily": lambda: [ordinary(batch) for batch in batches],
        "**the default encoder**": lambda: [encoder(batch) for batch in batches],
    }
    if backbone:
        ways["the whole backbone, from token ids"] = backbone
    with torch.inference_mode():
        timings = time_in_turn(ways, repeats)
    sentences = sum(len(batch) for batch in batches)
    read, published, *_ = (timings[name].median for name in ways if "reading" in name or "published" in name)
    rows = [
        (
            name,
            timing.milliseconds(),
            f"{sentences / timing.median:,.0f}",
            f"{timing.median / read:.1f}",
            f"{published / timing.median:.2f}",
        )
        for name, timing in timings.items()
    ]
    header = (f"one thread, {sentences:,} sentences", "ms, median (range)", "sentences/s", "times reading once", "published = 1")
    ours = timings["**the default encoder**"].median
    goals = [
        goal("sentences per second, published = 1", published / ours, 4),
        goal("times reading once", ours / read, 2.5, at_most=True),
    ]
    return "\n".join([markdown(header, rows), *(goals if has_goals else [])])


def where_time_goes(model: str, batches: list[Tensor]) -> str:
    """The operations that take the most of the encoder's time."""
    encoder = load_encoder(model)
    with torch.inference_mode(), profile(activities=[ProfilerActivity.CPU]) as profiler:
        for batch in batches:
            encoder(batch)
    operations = sorted(profiler.key_averages(), key=lambda operation: -operation.self_cpu_time_total)
    total = sum(operation.self_cpu_time_total for operation in operations)
    rows = [(operation.key, f"{operation.count:,}", f"{operation.self_cpu_time_total / total:.0%}") for operation in operations[:8]]
    return markdown(("operation", "calls", "share of the time"), rows)


def backbone_pass(pairs: PairData, batch_size: int) -> Callable[[], object]:
    """The default backbone over the same sentences, for scale."""
    backbone = Backbone()
    assert pairs.sentences is not None
    ids, _ = backbone.tokenize(pairs.sentences[:SENTENCES])
    return lambda: [None for _ in backbone.token_embeddings(ids, batch_size)]


def run(pairs: PairData, model: str, repeats: int = 9) -> str:
    """All tables of inference."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    sections = []
    for batch_size in (128, 32, 1):
        batches, masks = padded_batches(pairs, batch_size)
        used = float(torch.cat([mask.flatten() for mask in masks]).float().mean())
        backbone = backbone_pass(pairs, batch_size) if batch_size == 32 else None
        sections.append(f"Batches of {batch_size}; {used:.0%} of the positions are tokens, the others padding:\n")
        sections.append(compare(model, batches, masks, repeats, backbone, has_goals=batch_size == 128))
    sections.append("512 tokens a sentence, batches of 8:\n")
    sections.append(compare(model, *long_batches(pairs.tokens.dim), repeats))
    sections.append("Where the time of the default encoder goes, batches of 128:\n")
    sections.append(where_time_goes(model, padded_batches(pairs, 128)[0]))
    torch.set_num_threads(threads)
    return "\n".join(sections)
