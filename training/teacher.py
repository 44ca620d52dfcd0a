"""A teacher for distillation: the whole backbone, fine-tuned on the training pairs."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from common.progress import Progress
from evaluation.scores import Scores
from losses import cosent, cosine_mse
from schedulers import CosineAnnealingWarmupLR
from tokens.text_pairs import TextPairs
from training.whole_encoder import WholeEncoder, validate

LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "squared": lambda first, second, labels: 100 * cosine_mse(first, second, labels, lowest=0),  # 100: gradients are clipped at 1
    "cosent": cosent,
}


def fine_tune(
    teacher: WholeEncoder,
    training: TextPairs,
    validation: TextPairs,
    *,
    loss: str,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
) -> Scores:
    """Fine-tune and keep the weights with the best Spearman on the validation pairs.

    Args:
        teacher: changed in place.
        training: pairs.
        validation: pairs that choose the weights; they should share no sentence with `training`.
        loss: squared, the squared error between the plain cosine and label / 5; or cosent, for ranks only.
        epochs: passes over the training pairs.
        batch_size: pairs per batch.
        learning_rate: the peak, after a warm-up of a tenth of the steps; then a cosine to 0.
        seed: of the order of the pairs and of dropout.

    Returns:
        The scores of these weights on the validation pairs.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    labels = torch.from_numpy(training.labels)
    ids = [teacher.backbone.tokenize(side)[0] for side in (training.first, training.second)]
    steps = len(labels) // batch_size * epochs
    optimizer = torch.optim.AdamW(teacher.parameters(), lr=learning_rate)
    schedule = CosineAnnealingWarmupLR(optimizer, warmup_steps=steps // 10, total_steps=steps)
    best, weights = validate(teacher, validation), copy.deepcopy(teacher.model.state_dict())
    print(f"Backbone, before training: validation Spearman {best.spearman:.4f}, error {best.mse:.4f}", flush=True)
    with Progress(total=steps, unit="batch", desc="teacher") as bar:
        for epoch in range(1, epochs + 1):
            teacher.model.train()
            order = rng.permutation(len(labels))
            for rows in np.split(order[: len(order) // batch_size * batch_size], len(order) // batch_size):
                first, second = teacher.embed([ids[side][row] for side in (0, 1) for row in rows], batch_size // 2).chunk(2)
                LOSSES[loss](first, second, labels[rows].to(first.device)).backward()
                nn.utils.clip_grad_norm_(teacher.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                bar.update()
            scores = validate(teacher, validation)
            bar.write(
                f"Epoch {epoch} of {epochs}: validation Spearman {scores.spearman:.4f}, error {scores.mse:.4f}", file=sys.stdout
            )
            if scores.spearman > best.spearman:
                best, weights = scores, copy.deepcopy(teacher.model.state_dict())
    teacher.model.load_state_dict(weights)
    return best
