"""A teacher for distillation: the whole backbone, fine-tuned on the training pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data import count_batches, random_batches
from losses import cosent, cosine_mse
from tokens.text_pairs import TextPairs
from training.whole_encoder import WholeEncoder
from training.whole_trainer import Stage, WholeTrainer

LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "squared": lambda first, second, labels: 100 * cosine_mse(first, second, labels, lowest=0),  # 100: gradients are clipped at 1
    "cosent": cosent,
}


@dataclass(frozen=True)
class TeacherSettings:
    """How a teacher is trained.

    Attributes:
        loss: squared, the squared error between the plain cosine and label / 5; or cosent, for ranks only.
        epochs: passes over the training pairs.
        batch_size: pairs per batch.
        learning_rate: the peak.
        seed: of the order of the pairs and of dropout.
    """

    loss: str = "squared"
    epochs: int = 2
    batch_size: int = 32
    learning_rate: float = 3e-5
    seed: int = 0


class TeacherTrainer(WholeTrainer):
    """Fine-tunes a backbone on labelled pairs, with dropout."""

    dropout = True

    def __init__(self, teacher: WholeEncoder, training: TextPairs, validation: TextPairs, settings: TeacherSettings) -> None:
        """Prepare the training.

        Args:
            teacher: changed in place.
            training: pairs.
            validation: pairs that choose the weights; they should share no sentence with `training`.
            settings: see there.
        """
        self.settings = settings
        self._labels = torch.from_numpy(training.labels)
        self._ids = [teacher.backbone.tokenize(side)[0] for side in (training.first, training.second)]
        batches = count_batches(len(training), settings.batch_size)
        stage = Stage("teacher", settings.epochs, batches, settings.learning_rate)
        super().__init__(teacher, validation, [stage], settings.seed)

    def batches(self) -> Iterator[np.ndarray]:
        """The pairs of each batch by number."""
        yield from random_batches(len(self._labels), self.settings.batch_size, np.random.default_rng([self.seed, self.epoch]))

    def loss(self, batch: np.ndarray) -> Tensor:
        """The loss of a batch of pairs."""
        ids = [side[row] for side in self._ids for row in batch]
        together = self.settings.batch_size // 2 if self.device.type == "cpu" else len(ids)  # less padding or fewer passes
        first, second = self.encoder.embed(ids, together).chunk(2)
        return LOSSES[self.settings.loss](first, second, self._labels[batch].to(first.device))
