"""The schedule against torch's own two, chained."""

from __future__ import annotations

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

from schedulers import CosineAnnealingWarmupLR


def optimizer(*rates: float) -> torch.optim.SGD:
    return torch.optim.SGD([{"params": [torch.zeros(1, requires_grad=True)], "lr": rate} for rate in rates])


def run(scheduler, steps: int) -> list[list[float]]:
    rates = []
    for _ in range(steps):
        rates.append([group["lr"] for group in scheduler.optimizer.param_groups])
        scheduler.optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize(("warmup", "total"), [(3, 100), (10, 11), (1, 50), (270, 9000)])
@pytest.mark.filterwarnings("ignore:The epoch parameter")
def test_agrees_with_linear_then_cosine(warmup, total):
    theirs = optimizer(4e-4, 1.0)
    chained = SequentialLR(
        theirs,
        # torch wants a start above 0; its warm-up is this close to one from 0
        [LinearLR(theirs, 1e-12, 1.0, warmup), CosineAnnealingLR(theirs, total - warmup, eta_min=1e-6)],
        milestones=[warmup],
    )
    ours = CosineAnnealingWarmupLR(optimizer(4e-4, 1.0), warmup_steps=warmup, total_steps=total, min_lr=1e-6)
    for a, b in zip(run(ours, total + 1), run(chained, total + 1), strict=True):
        assert a == pytest.approx(b, abs=1e-6)


def test_begins_at_zero_peaks_after_warmup_and_stays_at_the_end():
    rates = [rate for (rate,) in run(CosineAnnealingWarmupLR(optimizer(0.5), warmup_steps=4, total_steps=20, min_lr=0.1), 30)]
    assert rates[0] == 0
    assert rates[4] == 0.5 == max(rates)
    assert rates[20:] == [pytest.approx(0.1)] * 10


def test_without_warmup_it_begins_at_the_peak():
    assert CosineAnnealingWarmupLR(optimizer(0.5), warmup_steps=0, total_steps=20).get_last_lr() == [0.5]


def test_continues_from_a_saved_state():
    whole = [rate for (rate,) in run(CosineAnnealingWarmupLR(optimizer(0.5), warmup_steps=4, total_steps=20), 20)]
    first = CosineAnnealingWarmupLR(optimizer(0.5), warmup_steps=4, total_steps=20)
    run(first, 7)
    second = CosineAnnealingWarmupLR(optimizer(0.5), warmup_steps=4, total_steps=20)
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    second.load_state_dict(first.state_dict())
    assert [rate for (rate,) in run(second, 13)] == whole[7:]


def test_impossible_counts_are_refused():
    with pytest.raises(ValueError, match="warmup_steps is 5"):
        CosineAnnealingWarmupLR(optimizer(0.5), warmup_steps=5, total_steps=4)
