"""Pairs per second in training: this project's loop, a plain loop on the same encoder, and fine-tuning the backbone."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import CoSENTLoss
from timing import goal, time_in_turn
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from data import PairData
from studies.tables import markdown
from tokens.backbone import DEFAULT_BACKBONE, source_of
from training.objective import Columns, phase_loss
from training.recipe import Phase, Recipe
from training.trainer import Trainer

FINE_TUNED_BATCHES = 8


class PlainTrainer(Trainer):
    """The same recipe by a loop as one would write it first: a list of tensors, a DataLoader that shuffles and pads."""

    def __init__(self, recipe: Recipe, training: PairData, validation: PairData) -> None:
        super().__init__(recipe, training, validation)
        pairs = training
        sentences = [torch.from_numpy(np.array(pairs.tokens.sentence(i))) for i in range(len(pairs.tokens))]
        self.examples = [
            (sentences[first], sentences[second], label)
            for first, second, label in zip(pairs.first, pairs.second, pairs.labels.tolist(), strict=True)
        ]

    def _train_epoch(self, name: str, phase: Phase, epoch: int) -> float:
        wanted: Any = [example for example in self.examples if example[2] >= phase.min_label]
        single = len(wanted) % self.recipe.batch_size == 1  # no loss over a batch can learn from one pair
        loader: Any = DataLoader(wanted, self.recipe.batch_size, shuffle=True, collate_fn=_pad, drop_last=single)
        losses = []
        self.encoder.train()
        for number, (first, second, labels) in enumerate(loader, start=1):
            loss = phase_loss(phase, Columns(self.encoder(first), self.encoder(second)), labels, {}, number)
            self.optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.encoder.parameters(), self.recipe.clip_norm)
            self.optimizer.step()
            self.schedule.step()
            losses.append(loss.item())
        return float(np.mean(losses))


def _pad(examples: list[tuple[Tensor, Tensor, float]]) -> tuple[Tensor, Tensor, Tensor]:
    first = pad_sequence([example[0] for example in examples], batch_first=True)
    second = pad_sequence([example[1] for example in examples], batch_first=True)
    return first, second, torch.tensor([example[2] for example in examples])


def fine_tuning(pairs: PairData, batch_size: int) -> Callable[[], object]:
    """Some steps of fine-tuning the whole backbone with sentence-transformers, CoSENT."""
    model = SentenceTransformer(source_of(DEFAULT_BACKBONE), device="cpu")
    loss = CoSENTLoss(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5)
    text = pairs.text()

    def steps() -> None:
        model.train()
        for start in range(0, FINE_TUNED_BATCHES * batch_size, batch_size):
            rows = slice(start, start + batch_size)
            features = [model.preprocess(side[rows]) for side in (text.first, text.second)]
            loss(features, torch.from_numpy(text.labels[rows] / 5)).backward()
            optimizer.step()
            optimizer.zero_grad()

    return steps


def run(training: PairData, validation: PairData, recipe: Recipe, repeats: int = 3) -> str:
    """The tables of training, on one thread as train.py does by default."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    ours, plain = Trainer(recipe, training, validation), PlainTrainer(recipe, training, validation)
    name, phase = list(recipe.phases.items())[-1]
    ways: dict[str, Callable[[], object]] = {
        "fine-tuning the backbone, sentence-transformers": fine_tuning(training, recipe.batch_size),
        "the same encoder, plain loop": lambda: plain._train_epoch(name, phase, 1),
        "**this project**": lambda: ours._train_epoch(name, phase, 1),
    }
    timings = time_in_turn(ways, repeats)
    counts = [FINE_TUNED_BATCHES * recipe.batch_size, len(training), len(training)]
    rates = [count / timing.median for count, timing in zip(counts, timings.values(), strict=True)]
    rows = [
        (name, f"{rate:,.0f}", f"{timing.least / timing.median:.2f} - {timing.most / timing.median:.2f}", f"{rate / rates[1]:.2f}")
        for (name, timing), rate in zip(timings.items(), rates, strict=True)
    ]
    speeds = markdown(("graded phase, one thread", "pairs/s", "range of its time, median = 1", "plain loop = 1"), rows)
    seconds = {}
    runs = []
    for name, kind in (("the same encoder, plain loop", PlainTrainer), ("**this project**", Trainer)):
        begin = time.perf_counter()
        trained = kind(recipe, training, validation).run()
        seconds[name] = time.perf_counter() - begin
        runs.append((name, f"{seconds[name]:.0f}", f"{trained.validation.spearman:.4f}"))
    whole = markdown(("the whole default recipe", "seconds", "validation Spearman"), runs)
    torch.set_num_threads(threads)
    faster = goal("pairs per second, plain loop = 1", rates[2] / rates[1], 5)
    fast = goal("seconds of the whole default recipe", seconds["**this project**"], 60, at_most=True)
    return "\n".join([speeds, faster, whole, fast])
