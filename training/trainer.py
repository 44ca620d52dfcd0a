"""The training loop: runs the phases of a recipe and returns the best encoder."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from common.errors import InputError
from data import LEFT_OUT, PairBatch, PairData, batches_of_pairs, count_batches, training_batches
from evaluation.checkpoint import save_encoder
from evaluation.encoding import device_of, encode_pairs
from evaluation.scores import RankingScores, Scores, score, selection_metric, worse_scores
from losses import NEED_LABELS
from model import SentenceEncoder, mean_pooling
from schedulers import CosineAnnealingWarmupLR
from training import processes
from training.gradient_cache import backward_in_parts, random_state, set_random_state
from training.objective import BatchEmbeddings, guide_names, nested_loss, split_batch
from training.recipe import Phase, Recipe, check_encoder


@dataclass(frozen=True)
class EpochRecord:
    """Losses and scores of one epoch. Epoch 0 is the encoder before the first step.

    Attributes:
        epoch: counted over all phases.
        phase: the phase's name; empty for epoch 0.
        loss: mean training loss; NaN for epoch 0.
        validation_loss: the phase's loss on the validation pairs.
        validation_score: on the validation pairs: Spearman, or without labels triplet accuracy or MRR.
        learning_rate: at the end of the epoch.
        selected: whether these weights were the best so far.
    """

    epoch: int
    phase: str
    loss: float
    validation_loss: float
    validation_score: float
    learning_rate: float
    selected: bool


@dataclass(frozen=True)
class TrainingResult:
    """The result of a training run.

    Attributes:
        encoder: in evaluation mode: the best weights, or mean pooling if they are worse.
        epoch: the epoch of these weights, 0 for the start.
        fell_back: whether the encoder is mean pooling because training did worse.
        baseline: scores of mean pooling on the validation pairs.
        trained: scores of the best weights on the validation pairs.
        history: one record per epoch.
        metric: the score that chose the weights, a field of the scores.
    """

    encoder: SentenceEncoder
    epoch: int
    fell_back: bool
    baseline: Scores | RankingScores
    trained: Scores | RankingScores
    history: list[EpochRecord]
    metric: str = "spearman"

    @property
    def validation(self) -> Scores | RankingScores:
        """Scores of the encoder on the validation pairs."""
        return self.baseline if self.fell_back else self.trained

    @property
    def worse_in(self) -> list[str]:
        """The scores in which the best weights are worse than mean pooling on the validation pairs: fields of the scores."""
        return worse_scores(self.trained, self.baseline, self.metric)

    @property
    def diverged_in(self) -> int | None:
        """The first epoch whose loss was not finite, or None."""
        return next((record.epoch for record in self.history if record.epoch and not np.isfinite(record.loss)), None)


@dataclass
class _Best:
    """The best weights so far and the value that chose them; lower is better."""

    criterion: str
    value: float
    epoch: int
    weights: dict[str, Tensor]


class Trainer:
    """Trains one encoder with a recipe.

    Attributes:
        baseline: scores of mean pooling on the validation pairs.
        skipped: one message per phase that is skipped because it has no pairs, or none that may be in one batch.
        total_batches: batches in the whole run.
        total_steps: optimiser steps in the whole run.
        epoch: finished epochs, over all phases.
        losses: of the finished batches of the current epoch.
        history: one record per finished epoch.
        best: the best weights so far.
        on_batch: called after each batch with the phase's name, the loss, and the latest validation score.
        on_safe_point: called when `state_dict` is complete: after each optimiser step and each epoch.
    """

    def __init__(self, recipe: Recipe, training: PairData, validation: PairData, *, device: torch.device | str = "cpu") -> None:
        """Build the encoder and the optimiser, and score mean pooling; says on stderr if epochs leave out pairs.

        Args:
            recipe: the settings.
            training: pairs to train on.
            validation: pairs that choose the best weights; they should share no sentence with `training`.
            device: where the encoder runs.

        Raises:
            InputError: if no phase has pairs to train on, or only one of teacher and distillation loss is given.
        """
        if training.targets is not None and not any("teacher" in guide_names(phase) for phase in recipe.phases.values()):
            raise InputError("a teacher is given, but no loss of the recipe uses it; choose --preset imitation")
        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        self.training = training
        self.validation = validation
        self.on_batch: Callable[[str, float, float], None] = lambda *_: None
        self.on_safe_point: Callable[[], None] = lambda: None
        config = replace(recipe.encoder, input_dim=training.tokens.dim)
        check_encoder(config)
        self.encoder = SentenceEncoder(config).to(device)
        self.device = device_of(self.encoder)
        description = training.tokens.description
        self.encoder.tokens_from = {key: description.get(key) for key in ("backbone", "layers")}
        if description.get("pooled"):
            self.encoder.tokens_from["pooled"] = True
        if recipe.start != "random":
            pooled = torch.cat(encode_pairs(mean_pooling(training.tokens.dim), training))
            self.encoder.start_as_mean_pooling(pooled, centred=recipe.start == "centred")
        processes.broadcast_tensors(self.encoder.parameters())
        self.skipped: list[str] = []
        self.phase_pairs = {name: self._select_pairs(name, phase) for name, phase in recipe.phases.items()}
        self.phases = {name: phase for name, phase in recipe.phases.items() if len(self.phase_pairs[name]) >= 2}
        if not self.phases:
            raise InputError(f"nothing to train on: {'; '.join(self.skipped)}")
        fused = torch.__version__ >= "2.4" or self.device.type == "cuda"  # before 2.4 on GPUs only
        self.optimizer = torch.optim.AdamW(
            self.encoder.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=fused
        )
        self._batches_of_epochs: list[int] = []
        for name, phase in self.phases.items():
            self._batches_of_epochs += self._count_batches(name, phase)
        nominal = [count_batches(len(self.phase_pairs[name]), recipe.batch_size) for name in self.phases]
        longest = max([*self._batches_of_epochs, *nominal])
        self.total_batches = sum(self._batches_of_epochs)
        self.total_steps = sum(-(-batches // recipe.accumulation) for batches in self._batches_of_epochs)
        self.schedule = CosineAnnealingWarmupLR(
            self.optimizer,
            warmup_steps=min(self.total_steps, round(recipe.warmup_epochs * -(-longest // recipe.accumulation))),
            total_steps=self.total_steps,
            min_lr=recipe.min_learning_rate,
        )
        self.metric = selection_metric(validation)
        self.baseline = score(mean_pooling(validation.tokens.dim), validation)
        self.epoch = 0
        self.losses: list[float] = []
        self.history: list[EpochRecord] = []
        self.best: _Best | None = None
        self.latest_score = 0.0

    def _select_pairs(self, name: str, phase: Phase) -> PairData:
        """The training pairs of a phase."""
        if self.training.targets is None and "teacher" in guide_names(phase):
            raise InputError(f"phase {name} needs a teacher; give --teacher to train.py, or choose another recipe")
        if phase.epochs and not self.training.has_labels and (needing := [loss for loss in phase.losses if loss in NEED_LABELS]):
            raise InputError(
                f"the training pairs have no labels, which phase {name} learns from ({', '.join(needing)}); choose --preset pairs"
            )
        pairs = self.training.select(self.training.labels >= phase.min_label)
        if phase.epochs and len(pairs) < 2:
            self.skipped.append(
                f"phase {name} is skipped: {len(pairs)} of {len(self.training)} training pairs have a label of at least "
                f"{phase.min_label:g} (--phases.{name}.min_label), expected at least 2"
            )
        elif phase.epochs and phase.without_duplicates and not self._batches(pairs, phase, epoch=1):
            self.skipped.append(
                f"phase {name} is skipped: any two of its {len(pairs):,} training pairs share a sentence, and no batch may hold a "
                "sentence twice"
            )
            return pairs.select(np.empty(0, int))
        return pairs

    def _order(self, epoch: int) -> np.random.Generator:
        """The source of the order of an epoch's pairs: one per epoch, so that resuming does not need its state."""
        return np.random.default_rng([self.recipe.seed, epoch])

    def _batches(self, pairs: PairData, phase: Phase, epoch: int) -> list[np.ndarray]:
        """The pair numbers of each batch of an epoch."""
        batch_size, without_duplicates = self.recipe.batch_size, phase.without_duplicates
        return batches_of_pairs(pairs, batch_size, self._order(epoch), without_duplicates=without_duplicates)

    def _count_batches(self, name: str, phase: Phase) -> list[int]:
        """The number of batches in each epoch of the next phase; epochs differ where sentences repeat often."""
        pairs, begin = self.phase_pairs[name], len(self._batches_of_epochs)
        sizes = [list(map(len, self._batches(pairs, phase, begin + number))) for number in range(1, phase.epochs + 1)]
        left_out = max((len(pairs) - sum(epoch) for epoch in sizes), default=0)
        if left_out > max(1, LEFT_OUT * len(pairs)) and processes.is_main():  # a few are, and others in each epoch
            note = f"phase {name}: up to {left_out:,} of {len(pairs):,} pairs are left out of each epoch, not always the same ones"
            tqdm.write(f"{note}: their sentences are in many pairs, and no batch may hold one twice", file=sys.stderr)
        return [len(epoch) for epoch in sizes]

    @property
    def batches_done(self) -> int:
        """Finished batches of the whole run."""
        return sum(self._batches_of_epochs[: self.epoch]) + len(self.losses)

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to resume, as tensors, numbers and text; call it at a safe point only.

        The order of the pairs is not part of it: it follows from the seed and the epoch.
        """
        return {
            "encoder": self.encoder.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "random": random_state(),
            "epoch": self.epoch,
            "losses": self.losses,
            "history": [asdict(record) for record in self.history],
            "best": self.best and vars(self.best),
            "latest_score": self.latest_score,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state of a trainer of the same recipe and data; `run` then gives the same bits as without a stop."""
        self.encoder.load_state_dict(state["encoder"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.epoch, self.losses = state["epoch"], list(state["losses"])
        self.history = [EpochRecord(**record) for record in state["history"]]
        self.best = _Best(**state["best"]) if state["best"] else None
        self.latest_score = state["latest_score"]
        set_random_state(state["random"])

    def best_encoder(self) -> SentenceEncoder:
        """The best encoder so far."""
        encoder = copy.deepcopy(self.encoder)
        if self.best is not None:
            encoder.load_state_dict(self.best.weights)
        return encoder.eval()

    def save_best(self, folder: Path) -> Path:
        """Write the best encoder so far to a folder, as best.bin, and return its path."""
        save_encoder(folder / "best.bin", self.best_encoder())
        return folder / "best.bin"

    def run(self) -> TrainingResult:
        """Train all phases, or the rest of them after resuming, and return the best encoder.

        Raises:
            InputError: if training diverged and the recipe does not fall back to mean pooling.
        """
        epoch = 0
        for name, phase in self.phases.items():
            if phase.epochs and epoch == self.epoch and not self.losses:
                self._begin_phase(name, phase, epoch)
            for _ in range(phase.epochs):
                epoch += 1
                if epoch > self.epoch:
                    loss = self._train_epoch(name, phase, epoch)
                    self._finish_epoch(name, phase, epoch, loss)
                    self.epoch = epoch
                    self.on_safe_point()
        if self.best is not None:
            self.encoder.load_state_dict(self.best.weights)
            epoch = self.best.epoch
        trained = score(self.encoder, self.validation)
        guard, worse = self.recipe.never_below_baseline, worse_scores(trained, self.baseline, self.metric)
        fell_back = self.metric in worse if guard == "spearman" else bool(guard and worse)
        if np.isnan(getattr(trained, self.metric)) and not fell_back:
            raise InputError(f"training diverged in epoch {epoch} (embeddings are not finite); choose a lower --learning_rate")
        result = self.encoder
        if fell_back:
            result, epoch = mean_pooling(self.validation.tokens.dim), 0
            result.tokens_from = self.encoder.tokens_from
        return TrainingResult(result.eval(), epoch, fell_back, self.baseline, trained, self.history, self.metric)

    def _begin_phase(self, name: str, phase: Phase, epoch: int) -> None:
        """Start from the best weights so far; they compete with those of the phase."""
        if self.best is not None:
            self.encoder.load_state_dict(self.best.weights)
        if epoch == 0:
            self._finish_epoch(name, phase, epoch, loss=float("nan"))
        elif phase.select != "none" and (self.best is None or self.best.criterion != _criterion(name, phase)):
            self._keep_if_best(name, phase, epoch, *self._validate(phase))

    def _train_epoch(self, name: str, phase: Phase, epoch: int) -> float:
        """Train on the phase's pairs once and return the mean loss."""
        recipe = self.recipe
        self.encoder.train()
        batches = training_batches(
            self.phase_pairs[name],
            recipe.batch_size,
            self._order(epoch),
            bucket_size=recipe.sentences_at_a_time or None,
            unlabelled=phase.unlabelled,
            without_duplicates=phase.without_duplicates,
            share=(processes.rank(), processes.world_size()),
        )
        for number, batch in islice(enumerate(batches, start=1), len(self.losses), None):
            self.losses.append(self._backward(phase, batch, number))
            ends_step = number % recipe.accumulation == 0
            if ends_step:
                self._step()
            self.on_batch(name, self.losses[-1], self.latest_score)
            if ends_step:
                self.on_safe_point()
        if len(self.losses) % recipe.accumulation:
            self._step()
        loss, self.losses = float(np.mean(self.losses)), []
        return loss

    def _backward(self, phase: Phase, batch: PairBatch, number: int) -> float:
        """Backpropagate the loss of a batch and return it."""
        if processes.world_size() > 1:  # dropout differs between processes; a seed per batch needs no saved state
            seeds = np.random.SeedSequence((self.recipe.seed, self.epoch, number, processes.rank()))
            torch.manual_seed(int(seeds.generate_state(1, np.uint64)[0]))
        guides = self._guides(phase, batch)
        position, labels = batch.position.to(self.device), batch.labels.to(self.device)

        def loss_of(embeddings: Tensor) -> Tensor:
            ordered = split_batch(embeddings[position], batch)
            return nested_loss(self.recipe.nested, phase, ordered, labels, guides, number) / self.recipe.accumulation

        def with_noise(bucket: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            tokens, lengths = (tensor.to(self.device) for tensor in bucket)
            return add_noise(tokens, lengths, self.recipe.noise_alpha), lengths

        if self.recipe.sentences_at_a_time:
            loss = backward_in_parts(
                batch.buckets,
                encode=lambda bucket: self.encoder(*with_noise(bucket)),
                loss_of=lambda own: loss_of(processes.gather(own, len(position))),
            )
        else:
            total = loss_of(self._encode(self.encoder, map(with_noise, batch.buckets), len(position)))
            total.backward()
            loss = total.item()
        return loss * self.recipe.accumulation

    def _step(self) -> None:
        """Update the weights."""
        processes.sum_gradients(self.encoder.parameters())
        nn.utils.clip_grad_norm_(self.encoder.parameters(), self.recipe.clip_norm)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()

    def _encode(self, encoder: SentenceEncoder, buckets: Iterable[tuple[Tensor, Tensor]], total: int) -> Tensor:
        """The `total` embeddings of a batch, bucket after bucket, of all processes; the head runs once for all buckets."""
        pooled = torch.cat([encoder.pool(tokens.to(self.device), lengths.to(self.device)) for tokens, lengths in buckets])
        return processes.gather(encoder.project(pooled), total)

    def _guides(self, phase: Phase, batch: PairBatch) -> dict[str, BatchEmbeddings]:
        """The embeddings of a batch by mean pooling and by the teacher, if the phase's losses use them."""
        guides, wanted = {}, guide_names(phase)
        if "baseline" in wanted:
            baseline = self._encode(mean_pooling(self.training.tokens.dim), batch.buckets, len(batch.position))
            guides["baseline"] = split_batch(baseline[batch.position.to(self.device)], batch)
        if "teacher" in wanted and batch.teacher is not None:
            guides["teacher"] = split_batch(batch.teacher.to(self.device), batch)
        return guides

    def _finish_epoch(self, name: str, phase: Phase, epoch: int, loss: float) -> None:
        validation_loss, self.latest_score = self._validate(phase)
        self.history.append(
            EpochRecord(
                epoch=epoch,
                phase=name if epoch else "",
                loss=loss,
                validation_loss=validation_loss,
                validation_score=self.latest_score,
                learning_rate=self.optimizer.param_groups[0]["lr"],
                selected=self._keep_if_best(name, phase, epoch, validation_loss, self.latest_score),
            )
        )

    def _validate(self, phase: Phase) -> tuple[float, float]:
        """The phase's loss and the score on the validation pairs, by the main process, so that all select the same weights."""
        loss = value = 0.0
        if processes.is_main():
            embeddings = encode_pairs(self.encoder, self.validation)
            loss = self._validation_loss(phase, *embeddings)
            value = getattr(score(self.encoder, self.validation, embeddings), self.metric)
        loss, value = processes.broadcast_values([loss, value], self.device)
        return loss, value

    def _keep_if_best(self, name: str, phase: Phase, epoch: int, loss: float, score: float) -> bool:
        """Keep the current weights if they are the best so far by the phase's criterion, and return whether they are."""
        if phase.select == "none":
            return False
        value = loss if phase.select == "loss" else -score
        criterion = _criterion(name, phase)
        is_best = self.best is None or self.best.criterion != criterion or value < self.best.value
        is_best = is_best and bool(np.isfinite([value, score]).all())
        if is_best:
            self.best = _Best(criterion, value, epoch, copy.deepcopy(self.encoder.state_dict()))
        return is_best

    def _validation_loss(self, phase: Phase, first: Tensor, second: Tensor) -> float:
        """The mean of a phase's loss over batches of validation pairs, in order; a single pair at the end is left out.

        Only losses of every batch count (`every` 1), and none that needs a teacher, because these pairs have no targets.
        """
        sides = [first, second, torch.from_numpy(self.validation.labels)]
        if "baseline" in guide_names(phase):
            sides += encode_pairs(mean_pooling(self.validation.tokens.dim), self.validation)
        losses: list[float] = []
        for a, b, labels, *baseline in zip(*(side.split(self.recipe.batch_size) for side in sides), strict=True):
            if len(labels) == 1 and losses:  # losses compare the pairs of a batch
                continue
            guides = {"baseline": BatchEmbeddings(*baseline)} if baseline else {}
            losses.append(nested_loss(self.recipe.nested, phase, BatchEmbeddings(a, b), labels, guides, number=1).item())
        return float(np.mean(losses))


def _criterion(name: str, phase: Phase) -> str:
    """What the values of two epochs must share to be compared: Spearman over all phases, a loss only within its phase."""
    return phase.select if phase.select == "spearman" else f"loss of {name}"


def add_noise(tokens: Tensor, lengths: Tensor, alpha: float) -> Tensor:
    """Add uniform noise to the tokens of each sentence; padding stays zero.

    `x + U(-1, 1) * alpha / sqrt(L D)` for L tokens of D dimensions: the norm of a sentence's noise is `alpha / sqrt(3)` on
    average, for any L.

    Source: Jain et al. 2023, NEFTune: Noisy Embeddings Improve Instruction Finetuning, algorithm 1.

    Args:
        tokens: `(B, T, D)`, right-padded with all-zero rows.
        lengths: `(B,)`, the number of tokens L of each sentence.
        alpha: noise level; 0 returns `tokens` unchanged.
    """
    if not alpha:
        return tokens
    scale = alpha / (lengths.clamp(min=1) * tokens.shape[2]).sqrt()
    is_token = torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]
    noise = torch.empty_like(tokens).uniform_(-1, 1)
    return tokens + noise * (scale[:, None] * is_token)[:, :, None]
