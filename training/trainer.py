"""The training loop: the phases of a recipe, one after the other, from mean pooling to the best encoder."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from common.errors import InputError
from data import PairBatch, PairData, count_batches, training_batches
from evaluation.encoding import device_of, encode_pairs
from evaluation.scores import Scores, score, score_vectors
from model import SentenceEncoder, mean_pooling
from schedulers import CosineAnnealingWarmupLR
from training import processes
from training.gradient_cache import backward_in_parts, random_state, set_random_state
from training.objective import Columns, guide_names, in_columns, nested_loss
from training.recipe import Phase, Recipe, check_encoder


@dataclass(frozen=True)
class EpochRecord:
    """What one epoch came to. Epoch 0 is the encoder before the first step.

    Attributes:
        epoch: counted over all phases.
        phase: the phase's name; empty for epoch 0.
        loss: mean training loss of the epoch.
        validation_loss: the phase's loss on the validation pairs.
        validation_spearman: rank correlation on the validation pairs.
        learning_rate: at the end of the epoch.
        selected: whether this epoch's weights were the best so far.
    """

    epoch: int
    phase: str
    loss: float
    validation_loss: float
    validation_spearman: float
    learning_rate: float
    selected: bool


@dataclass(frozen=True)
class Trained:
    """What training came to.

    Attributes:
        encoder: the result, in evaluation mode: the best weights, or mean pooling where they were not better.
        epoch: the epoch of these weights, 0 for the start.
        fell_back: whether the result is mean pooling because training did not do better.
        baseline: mean pooling on the validation pairs.
        validation: the result on the validation pairs.
        history: one record for each epoch.
    """

    encoder: SentenceEncoder
    epoch: int
    fell_back: bool
    baseline: Scores
    validation: Scores
    history: list[EpochRecord]

    @property
    def diverged_in(self) -> int | None:
        """The first epoch whose loss was not a number, None where there is none."""
        return next((record.epoch for record in self.history if record.epoch and not np.isfinite(record.loss)), None)


@dataclass
class _Best:
    """The best weights so far and what they were chosen by; a smaller value is better."""

    criterion: str
    value: float
    epoch: int
    weights: dict[str, Tensor]


class Trainer:
    """Trains one encoder by a recipe.

    Attributes:
        epoch: epochs that are done, of all phases.
        losses: of the batches that are done of the epoch after these.
        history: a record of each epoch that is done.
        best: the best weights so far.
        on_step: called after each batch with the phase's name, the loss, and the last validation Spearman.
        on_safe_point: called where `state_dict` holds all there is: after each step of the optimiser and each epoch.
    """

    def __init__(
        self,
        recipe: Recipe,
        training: PairData,
        validation: PairData,
        *,
        device: torch.device | str = "cpu",
    ) -> None:
        """Set everything up and score mean pooling, `baseline`; nothing is trained yet.

        Phases without pairs are left out; `left_out` says which and why.

        Args:
            recipe: what to do.
            training: pairs to learn from.
            validation: pairs to choose the best weights by; no sentence of them should be in `training`.
            device: where the encoder runs.

        Raises:
            InputError: where no phase has pairs to train on, or there is a teacher and no loss for it, or the other way round.
        """
        if training.targets is not None and not any("teacher" in guide_names(phase) for phase in recipe.phases.values()):
            raise InputError("there is a teacher, and no loss of the recipe learns from it; choose --preset distilled")
        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        self.training = training
        self.validation = validation
        self.on_step: Callable[[str, float, float], None] | None = None
        self.on_safe_point: Callable[[], None] | None = None
        config = replace(recipe.encoder, input_dim=training.tokens.dim)
        check_encoder(config)
        self.encoder = SentenceEncoder(config).to(device)
        description = training.tokens.description
        self.encoder.tokens_from = {key: description.get(key) for key in ("backbone", "layers")}
        if description.get("pooled"):
            self.encoder.tokens_from["pooled"] = True
        if recipe.start != "random":
            vectors = encode_pairs(mean_pooling(training.tokens.dim), training)
            self.encoder.start_as_mean_pooling(torch.cat(vectors), centred=recipe.start == "centred")
        processes.copy_from_first(self.encoder.parameters())
        self.left_out: list[str] = []
        self.phase_pairs = {name: self._pairs_of(name, phase) for name, phase in recipe.phases.items()}
        self.phases = {name: phase for name, phase in recipe.phases.items() if len(self.phase_pairs[name]) >= 2}
        if not self.phases:
            raise InputError(f"nothing to train on: {'; '.join(self.left_out)}")
        fused = torch.__version__ >= "2.4" or device_of(self.encoder).type == "cuda"  # older ones have it on GPUs only
        self.optimizer = torch.optim.AdamW(
            self.encoder.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=fused
        )
        longest = max(self.phases, key=lambda name: len(self.phase_pairs[name]))
        self.schedule = CosineAnnealingWarmupLR(
            self.optimizer,
            warmup_steps=min(self.total_steps, round(recipe.warmup_epochs * self._steps_per_epoch(longest))),
            total_steps=self.total_steps,
            min_lr=recipe.min_learning_rate,
        )
        self.baseline = score(mean_pooling(validation.tokens.dim), validation)
        self.epoch = 0
        self.losses: list[float] = []
        self.history: list[EpochRecord] = []
        self.best: _Best | None = None
        self.latest_spearman = 0.0

    def _pairs_of(self, name: str, phase: Phase) -> PairData:
        if self.training.targets is None and "teacher" in guide_names(phase):
            raise InputError(f"phase {name} learns from a teacher and there is none; give train.py --teacher, or another recipe")
        pairs = self.training.select(self.training.labels >= phase.min_label)
        if phase.epochs and len(pairs) < 2:
            self.left_out.append(
                f"phase {name} is left out: {len(pairs)} of {len(self.training)} training pairs have a label of at least "
                f"{phase.min_label:g}, and it needs 2 (--phases.{name}.min_label)"
            )
        return pairs

    def _batches_per_epoch(self, phase: str) -> int:
        return count_batches(len(self.phase_pairs[phase]), self.recipe.batch_size)

    def _steps_per_epoch(self, phase: str) -> int:
        return -(-self._batches_per_epoch(phase) // self.recipe.accumulation)

    @property
    def total_batches(self) -> int:
        """Batches in the whole run."""
        return sum(phase.epochs * self._batches_per_epoch(name) for name, phase in self.phases.items())

    @property
    def total_steps(self) -> int:
        """Steps of the optimiser in the whole run."""
        return sum(phase.epochs * self._steps_per_epoch(name) for name, phase in self.phases.items())

    @property
    def batches_done(self) -> int:
        """Batches that are done, of the whole run."""
        of_epochs = [self._batches_per_epoch(name) for name, phase in self.phases.items() for _ in range(phase.epochs)]
        return sum(of_epochs[: self.epoch]) + len(self.losses)

    def state_dict(self) -> dict[str, Any]:
        """All that decides how the run goes on, as tensors, numbers and text; only at a safe point.

        The order of the pairs needs no state: it follows from the seed and the epoch.
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
            "latest_spearman": self.latest_spearman,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a trainer of the same recipe and data was: `run` does what was left to do, to the same bits."""
        self.encoder.load_state_dict(state["encoder"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.epoch, self.losses = state["epoch"], list(state["losses"])
        self.history = [EpochRecord(**record) for record in state["history"]]
        self.best = _Best(**state["best"]) if state["best"] else None
        self.latest_spearman = state["latest_spearman"]
        set_random_state(state["random"])

    def best_encoder(self) -> SentenceEncoder:
        """The best encoder so far."""
        encoder = copy.deepcopy(self.encoder)
        if self.best is not None:
            encoder.load_state_dict(self.best.weights)
        return encoder.eval()

    def run(self) -> Trained:
        """Train all phases, or what is left of them, and give the best encoder."""
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
                    self._safe_point()
        if self.best is not None:
            self.encoder.load_state_dict(self.best.weights)
            epoch = self.best.epoch
        validation = score(self.encoder, self.validation)
        is_no_worse = validation.spearman >= self.baseline.spearman  # never where the vectors are no numbers
        fell_back = self.recipe.never_below_baseline and not is_no_worse
        if np.isnan(validation.spearman) and not fell_back:
            raise InputError(f"training came to no numbers in epoch {epoch}; choose a lower --learning_rate")
        result = self.encoder
        if fell_back:
            result, epoch, validation = mean_pooling(self.validation.tokens.dim), 0, self.baseline
            result.tokens_from = self.encoder.tokens_from
        return Trained(result.eval(), epoch, fell_back, self.baseline, validation, self.history)

    def _begin_phase(self, name: str, phase: Phase, epoch: int) -> None:
        """The weights a phase starts from compete with those it makes, and they are the best so far."""
        if self.best is not None:
            self.encoder.load_state_dict(self.best.weights)
        if epoch == 0:
            self._finish_epoch(name, phase, epoch, loss=float("nan"))
        elif phase.select != "none" and (self.best is None or self.best.criterion != _criterion(name, phase)):
            self._consider(name, phase, epoch, *self._validate(phase))

    def _train_epoch(self, name: str, phase: Phase, epoch: int) -> float:
        """One pass over the phase's pairs; the mean loss."""
        # A generator for each epoch: the order does not depend on what was drawn before.
        rng = np.random.default_rng([self.recipe.seed, epoch])
        pairs, recipe = self.phase_pairs[name], self.recipe
        self.encoder.train()
        batches = training_batches(
            pairs,
            recipe.batch_size,
            rng,
            bucket_size=recipe.sentences_at_a_time or None,
            unlabelled=phase.unlabelled,
            without_duplicates=phase.without_duplicates,
            share=(processes.rank(), processes.count()),
        )
        for number, batch in islice(enumerate(batches, start=1), len(self.losses), None):
            self.losses.append(self._backward(phase, batch, number))
            ends_step = number % recipe.accumulation == 0
            if ends_step:
                self._step()
            if self.on_step:
                self.on_step(name, self.losses[-1], self.latest_spearman)
            if ends_step:
                self._safe_point()
        if len(self.losses) % recipe.accumulation:
            self._step()
        loss, self.losses = float(np.mean(self.losses)), []
        return loss

    def _safe_point(self) -> None:
        if self.on_safe_point:
            self.on_safe_point()

    def _backward(self, phase: Phase, batch: PairBatch, number: int) -> float:
        """Add the gradient of a batch to the weights; its loss."""
        device = device_of(self.encoder)
        if processes.count() > 1:  # what is dropped differs between processes, and needs no state to go on from
            torch.manual_seed(_seed_of(self.recipe.seed, self.epoch, number, processes.rank()))
        guides = {name: in_columns(vectors, batch) for name, vectors in self._guides_of(phase, batch).items()}
        position, labels = batch.position.to(device), batch.labels.to(device)

        def loss_of(vectors: Tensor) -> Tensor:
            columns = in_columns(vectors[position], batch)
            return nested_loss(self.recipe.nested, phase, columns, labels, guides, number) / self.recipe.accumulation

        def with_noise(bucket: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            tokens, lengths = (side.to(device) for side in bucket)
            return add_noise(tokens, lengths, self.recipe.noise_alpha), lengths

        def encode(bucket: tuple[Tensor, Tensor]) -> Tensor:
            return self.encoder(*with_noise(bucket))

        if self.recipe.sentences_at_a_time:
            loss = backward_in_parts(batch.buckets, encode, lambda own: loss_of(processes.gather(own, len(position))))
        else:
            total = loss_of(self._vectors(self.encoder, map(with_noise, batch.buckets), len(position)))
            total.backward()
            loss = total.item()
        return loss * self.recipe.accumulation

    def _step(self) -> None:
        processes.sum_gradients(self.encoder.parameters())
        nn.utils.clip_grad_norm_(self.encoder.parameters(), self.recipe.clip_norm)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()

    def _vectors(self, encoder: SentenceEncoder, buckets: Iterable[tuple[Tensor, Tensor]], total: int) -> Tensor:
        """The `total` sentence vectors of a batch, bucket after bucket; the head sees those of a process together."""
        device = device_of(self.encoder)
        pooled = torch.cat([encoder.pool(tokens.to(device), lengths.to(device)) for tokens, lengths in buckets])
        return processes.gather(encoder.project(pooled), total)

    def _guides_of(self, phase: Phase, batch: PairBatch) -> dict[str, Tensor]:
        """What mean pooling and the teacher make of a batch, in the order of `position`, where a loss of the phase asks for it."""
        guides, wanted, device = {}, guide_names(phase), device_of(self.encoder)
        if "baseline" in wanted:
            baseline = self._vectors(mean_pooling(self.training.tokens.dim), batch.buckets, len(batch.position))
            guides["baseline"] = baseline[batch.position.to(device)]
        if "teacher" in wanted and batch.teacher is not None:
            guides["teacher"] = batch.teacher.to(device)
        return guides

    def _finish_epoch(self, name: str, phase: Phase, epoch: int, loss: float) -> None:
        validation_loss, self.latest_spearman = self._validate(phase)
        self.history.append(
            EpochRecord(
                epoch=epoch,
                phase=name if epoch else "",
                loss=loss,
                validation_loss=validation_loss,
                validation_spearman=self.latest_spearman,
                learning_rate=self.optimizer.param_groups[0]["lr"],
                selected=self._consider(name, phase, epoch, validation_loss, self.latest_spearman),
            )
        )

    def _validate(self, phase: Phase) -> tuple[float, float]:
        """The phase's loss and Spearman on the validation pairs; one process finds them, so that all choose the same weights."""
        loss = spearman = 0.0
        if processes.is_first():
            vectors = encode_pairs(self.encoder, self.validation)
            loss, spearman = self._loss_of(phase, *vectors), score_vectors(*vectors, self.validation.labels).spearman
        loss, spearman = processes.agree([loss, spearman], device_of(self.encoder))
        return loss, spearman

    def _consider(self, name: str, phase: Phase, epoch: int, loss: float, spearman: float) -> bool:
        """Keep the present weights if they are the best so far by the phase's criterion."""
        if phase.select == "none":
            return False
        value = loss if phase.select == "loss" else -spearman
        criterion = _criterion(name, phase)
        better = self.best is None or self.best.criterion != criterion or value < self.best.value
        better = better and bool(np.isfinite([value, spearman]).all())
        if better:
            self.best = _Best(criterion, value, epoch, copy.deepcopy(self.encoder.state_dict()))
        return better

    def _loss_of(self, phase: Phase, first: Tensor, second: Tensor) -> float:
        """A phase's loss on the validation pairs: the mean over batches in their order, a last one of a single pair left out.

        Only terms that every training batch has: one added now and then would count or not by a batch's number. There is no
        teacher for these pairs, and its terms are left out.
        """
        sides = [first, second, torch.from_numpy(self.validation.labels)]
        if "baseline" in guide_names(phase):
            sides += encode_pairs(mean_pooling(self.validation.tokens.dim), self.validation)
        losses: list[float] = []
        for a, b, labels, *baseline in zip(*(side.split(self.recipe.batch_size) for side in sides), strict=True):
            if len(labels) == 1 and losses:  # nothing to compare it with, as in training
                continue
            guides = {"baseline": Columns(*baseline)} if baseline else {}
            losses.append(nested_loss(self.recipe.nested, phase, Columns(a, b), labels, guides, number=1).item())
        return float(np.mean(losses))


def _seed_of(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


def _criterion(name: str, phase: Phase) -> str:
    """What values can be compared with each other: Spearman in all phases, a loss only within its phase."""
    return phase.select if phase.select == "spearman" else f"loss of {name}"


def add_noise(tokens: Tensor, lengths: Tensor, alpha: float) -> Tensor:
    """Add uniform noise to the tokens of each sentence; padding stays zero.

    `x + U(-1, 1) * alpha / sqrt(L D)` with L tokens of width D in the sentence: on average the noise of a whole sentence is
    `alpha / sqrt(3)` long, however many tokens it has.

    Source: Jain et al. 2023, NEFTune: Noisy Embeddings Improve Instruction Finetuning, algorithm 1.

    Args:
        tokens: `(B, T, D)`, right-padded with all-zero rows.
        lengths: `(B,)`, the number of tokens L of each sentence.
        alpha: how much; 0 gives the tokens back as they are.

    Returns:
        `(B, T, D)`, in memory of its own where alpha is not 0.
    """
    if not alpha:
        return tokens
    scale = alpha / (lengths.clamp(min=1) * tokens.shape[2]).sqrt()
    is_token = torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]
    noise = torch.empty_like(tokens).uniform_(-1, 1)
    return tokens + noise * (scale[:, None] * is_token)[:, :, None]
