"""Pairs per second in training: this project in one process and in two, a plain loop, and fine-tuning the backbone."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import CoSENTLoss
from timing import rate_rows, run_script, time_interleaved
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from common.cli import make_parser
from common.text_tables import markdown
from data import PairData, open_pairs
from tokens.backbone import DEFAULT_BACKBONE, source_of
from training import processes
from training.objective import BatchEmbeddings, phase_loss
from training.recipe import Phase, Recipe, add_recipe_arguments, parse_recipe
from training.trainer import Trainer

FINE_TUNED_BATCHES = 8


class PlainTrainer(Trainer):
    """The same recipe with a plain training loop: a list of tensors, and a DataLoader that shuffles and pads."""

    def __init__(self, recipe: Recipe, training: PairData, validation: PairData) -> None:
        super().__init__(recipe, training, validation)
        sentences = [torch.from_numpy(np.array(training.tokens.sentence(i))) for i in range(len(training.tokens))]
        self.examples = [
            (sentences[first], sentences[second], label)
            for first, second, label in zip(training.first, training.second, training.labels.tolist(), strict=True)
        ]

    def _train_epoch(self, name: str, phase: Phase, epoch: int) -> float:
        examples: Any = [example for example in self.examples if example[2] >= phase.min_label]
        single = len(examples) % self.recipe.batch_size == 1  # losses over a batch learn nothing from one pair
        loader: Any = DataLoader(examples, self.recipe.batch_size, shuffle=True, collate_fn=_pad, drop_last=single)
        losses = []
        self.encoder.train()
        for number, (first, second, labels) in enumerate(loader, start=1):
            loss = phase_loss(phase, BatchEmbeddings(self.encoder(first), self.encoder(second)), labels, {}, number)
            self.optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.encoder.parameters(), self.recipe.clip_norm)
            self.optimizer.step()
            self.schedule.step()
            losses.append(loss.item())
        return float(np.mean(losses))


def _pad(examples: list[tuple[Tensor, Tensor, float]]) -> tuple[Tensor, Tensor, Tensor]:
    first = pad_sequence([first for first, _, _ in examples], batch_first=True)
    second = pad_sequence([second for _, second, _ in examples], batch_first=True)
    return first, second, torch.tensor([label for _, _, label in examples])


def fine_tuning(pairs: PairData, batch_size: int) -> Callable[[], object]:
    """A function that fine-tunes the whole backbone with sentence-transformers and CoSENT for a few steps."""
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


def graded_epoch(trainer: Trainer) -> Callable[[], object]:
    """A function that trains one epoch of the recipe's last phase."""
    name, phase = list(trainer.recipe.phases.items())[-1]
    return lambda: trainer._train_epoch(name, phase, 1)


def default_recipe(*options: str) -> Recipe:
    """The default preset, with fields changed as on the command line."""
    parser = make_parser("recipe", "")
    add_recipe_arguments(parser)
    return parse_recipe(parser, ["--preset", "default", *options])[0]


def run(training: PairData, validation: PairData, repeats: int = 3) -> str:
    """The tables of training in one process, on one thread as in train.py by default."""
    recipe = default_recipe()
    trainers = {"the same encoder, plain loop": PlainTrainer, "**this project**": Trainer}
    fine_tuned = "fine-tuning the backbone, sentence-transformers"
    epochs = {name: graded_epoch(trainer(recipe, training, validation)) for name, trainer in trainers.items()}
    seconds = time_interleaved({fine_tuned: fine_tuning(training, recipe.batch_size), **epochs}, repeats)
    pairs = {name: len(training) for name in trainers} | {fine_tuned: FINE_TUNED_BATCHES * recipe.batch_size}
    rates = {name: [pairs[name] / value for value in values] for name, values in seconds.items()}
    header = ("graded phase, one thread", "pairs/s, median (range)", "plain loop = 1")
    speeds = markdown(header, rate_rows(rates, "the same encoder, plain loop"))
    runs = []
    for name, trainer in trainers.items():
        begin = time.perf_counter()
        trained = trainer(recipe, training, validation).run()
        runs.append((name, f"{time.perf_counter() - begin:.0f}", f"{trained.validation.spearman:.4f}"))
    return "\n".join([speeds, markdown(("the whole default recipe", "seconds", "validation Spearman"), runs)])


def run_processes(stsb: Path, repeats: int = 2, epochs: int = 2) -> str:
    """The table of one process and two that share each batch, one thread each."""
    n_pairs = len(open_pairs([stsb / "train.store"]))
    rows: list[tuple[str, str, str]] = []
    for batch_size in (64, 256):
        names = {1: f"batches of {batch_size}, 1 process", 2: f"batches of {batch_size}, 2 processes"}
        rates: dict[str, list[float]] = {name: [] for name in names.values()}
        for _ in range(repeats):
            for count, name in names.items():
                seconds = run_script(__file__, str(stsb), str(batch_size), str(epochs), n_processes=count)
                rates[name] += [n_pairs / value for value in seconds]
        rows += rate_rows(rates, names[1])
    return markdown(("graded phase, gloo, one thread per process", "pairs/s, median (range)", "one process = 1"), rows)


def _measure(stsb: Path, batch_size: str, epochs: int) -> None:
    torch.set_num_threads(1)
    processes.join(torch.device("cpu"))
    training, validation = (open_pairs([stsb / f"{part}.store"]) for part in ("train", "dev"))
    trainer = Trainer(default_recipe("--batch_size", batch_size), training, validation)
    print(json.dumps(time_interleaved({"epoch": graded_epoch(trainer)}, epochs)["epoch"]))
    processes.leave()


if __name__ == "__main__":
    _measure(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
