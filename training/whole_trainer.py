"""The training loop of whole encoders: epochs in stages, validation after each, the best weights kept."""

from __future__ import annotations

import copy
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from common.errors import InputError
from common.progress import Progress
from evaluation.scores import Scores
from schedulers import CosineAnnealingWarmupLR
from tokens.text_pairs import TextPairs
from training.whole_encoder import WholeEncoder, validate


@dataclass(frozen=True)
class Stage:
    """Epochs with an optimiser and a learning-rate schedule of their own.

    Attributes:
        name: what it learns from.
        epochs: passes over its data.
        batches: per epoch.
        learning_rate: the peak, after a warm-up of a tenth of the steps; then a cosine to 0.
    """

    name: str
    epochs: int
    batches: int
    learning_rate: float


class WholeTrainer(ABC):
    """Trains an encoder; subclasses say on what batches and with which loss. It may be stopped and resumed after any batch.

    Attributes:
        epoch: finished epochs, of all stages.
        losses: of the batches of the epoch under way.
        history: the validation scores after each epoch, first those before training.
        best: index into `history` of the weights that are kept.
    """

    dropout: ClassVar[bool] = False

    def __init__(self, encoder: WholeEncoder, validation: TextPairs, stages: Sequence[Stage], seed: int) -> None:
        """Prepare the training.

        Args:
            encoder: changed in place.
            validation: pairs that choose the best epoch.
            stages: one after the other.
            seed: of all random choices.
        """
        self.encoder, self.validation, self.seed = encoder, validation, seed
        self.stages = [stage for stage in stages for _ in range(stage.epochs)]  # of each epoch
        self.total_batches = sum(stage.batches for stage in self.stages)
        self.device = torch.device(encoder.backbone.device)
        self.epoch, self.best = 0, 0
        self.losses: list[float] = []
        self.history: list[Scores] = []
        self.on_batch: Callable[[str, float, float], None] = lambda stage, loss, score: None
        self.on_safe_point: Callable[[], None] = lambda: None
        if self.stages:
            self._begin_stage()

    @abstractmethod
    def batches(self) -> Iterator[Any]:
        """The batches of the current epoch, from its number and the seed alone."""

    @abstractmethod
    def loss(self, batch: Any) -> Tensor:
        """The loss of a batch, a scalar."""

    @staticmethod
    def quality(scores: Scores) -> float:
        """What the best epoch has most of."""
        return scores.spearman

    @property
    def batches_done(self) -> int:
        """Finished batches of the whole run."""
        return sum(stage.batches for stage in self.stages[: self.epoch]) + len(self.losses)

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to resume."""
        return {
            "encoder": self.encoder.model.state_dict(),
            "best encoder": self._best_weights,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "epoch": self.epoch,
            "losses": self.losses,
            "history": [asdict(scores) for scores in self.history],
            "best": self.best,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state of a trainer of the same settings and data."""
        self.epoch, self.losses = state["epoch"], list(state["losses"])
        if self.epoch < len(self.stages):
            self._begin_stage()
            self.optimizer.load_state_dict(state["optimizer"])
            self.schedule.load_state_dict(state["schedule"])
        self.encoder.model.load_state_dict(state["encoder"])
        self._best_weights = state["best encoder"]
        self.history, self.best = [Scores(**scores) for scores in state["history"]], state["best"]

    def save_best(self, folder: Path) -> Path | None:
        """Nothing: the best weights are in the state."""
        return None

    def run(self) -> WholeEncoder:
        """Train all epochs, or the rest of them after resuming; returns the encoder with its best weights.

        Raises:
            InputError: if training diverged.
        """
        if not self.history:
            self._validate("before training")
        while self.epoch < len(self.stages):
            stage = self.stages[self.epoch]
            if not self.losses and self.epoch and self.stages[self.epoch - 1] != stage:
                self._begin_stage()
            self.encoder.model.train(self.dropout)
            for batch in islice(self.batches(), len(self.losses), None):
                if self.dropout:
                    torch.manual_seed(self.seed * self.total_batches + self.batches_done)
                self._step(batch)
                self.on_batch(stage.name, self.losses[-1], self.history[-1].spearman)
                self.on_safe_point()
            mean = float(np.mean(self.losses))
            self.epoch, self.losses = self.epoch + 1, []
            self._validate(f"epoch {self.epoch} of {len(self.stages)} ({stage.name}), loss {mean:.4f}")
            self.on_safe_point()
        self.encoder.model.load_state_dict(self._best_weights)
        return self.encoder

    def _begin_stage(self) -> None:
        stage = self.stages[self.epoch]
        steps = stage.epochs * stage.batches
        fused = torch.__version__ >= "2.4"  # before, on CUDA only
        self.optimizer = torch.optim.AdamW(self.encoder.parameters(), lr=stage.learning_rate, fused=fused)
        self.schedule = CosineAnnealingWarmupLR(self.optimizer, warmup_steps=steps // 10, total_steps=steps)

    def _step(self, batch: Any) -> None:
        loss = self.loss(batch)
        loss.backward()
        nn.utils.clip_grad_norm_(self.encoder.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        self.losses.append(loss.item())

    def _validate(self, when: str) -> None:
        scores = validate(self.encoder, self.validation)
        if np.isnan(scores.spearman):
            raise InputError(f"training diverged {when} (embeddings are not finite); choose a lower learning rate")
        self.history.append(scores)
        if len(self.history) == 1 or self.quality(scores) > self.quality(self.history[self.best]):
            self.best = len(self.history) - 1
            self._best_weights = copy.deepcopy(self.encoder.model.state_dict())
        line = f"validation Spearman {scores.spearman:.4f}, error {scores.mse:.4f}, unrelated {scores.unrelated:.2f}"
        Progress.write(f"{when[:1].upper()}{when[1:]}: {line}", file=sys.stdout)
        sys.stdout.flush()
