"""Learning-rate schedules."""

from __future__ import annotations

import math

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


class CosineAnnealingWarmupLR(LRScheduler):
    """Linear warm-up from 0 to each group's learning rate, then half a cosine down to `min_lr`.

    Equals torch's `LinearLR` from 0 followed by `CosineAnnealingLR`, in closed form; after `total_steps` it stays at `min_lr`.
    Source of the cosine: Loshchilov and Hutter 2017, SGDR, eq. 5, without restarts.
    """

    def __init__(self, optimizer: Optimizer, *, warmup_steps: int, total_steps: int, min_lr: float = 0.0) -> None:
        """Attach to an optimiser and set its learning rate for the first step.

        Args:
            optimizer: the `lr` of its groups is the peak.
            warmup_steps: steps from 0 to the peak, 0 or more.
            total_steps: steps of warm-up and cosine together, at least `warmup_steps`.
            min_lr: the final learning rate.

        Raises:
            ValueError: if `warmup_steps` is out of range.
        """
        if not 0 <= warmup_steps <= total_steps:
            raise ValueError(f"warmup_steps is {warmup_steps}, expected 0 to total_steps {total_steps}")
        self.warmup_steps = warmup_steps
        self.total_steps = total_steps
        self.min_lr = min_lr
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Tensor]:
        """Return the learning rate of each parameter group at the current step."""
        step = min(self.last_epoch, self.total_steps)
        if step < self.warmup_steps:
            return [peak * step / self.warmup_steps for peak in self.base_lrs]
        progress = (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps)
        cosine = (1 + math.cos(math.pi * progress)) / 2
        return [self.min_lr + (peak - self.min_lr) * cosine for peak in self.base_lrs]
