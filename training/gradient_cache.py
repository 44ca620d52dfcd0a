"""Large batches in little memory: encode a part of the batch at a time, and keep only its vectors.

A loss over a batch needs the vectors of all its sentences at once, and what the encoder keeps for the gradient is much
larger than these. So each part is encoded twice: first for its vectors alone, from which the loss and its gradient with
respect to them follow, then again, to carry that gradient into the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import get_device_states, set_device_states

Part = TypeVar("Part")


def backward_in_parts(parts: Sequence[Part], encode: Callable[[Part], Tensor], loss_of: Callable[[Tensor], Tensor]) -> float:
    """The same gradients as `loss_of(torch.cat([encode(part) for part in parts])).backward()`, dropout included.

    Source: Gao et al. 2021, Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup, as in
    sentence-transformers' CachedMultipleNegativesRankingLoss.

    Args:
        parts: the batch in parts.
        encode: one part to its vectors `(b, K)`.
        loss_of: all vectors, in the order of the parts, to the loss.

    Returns:
        The loss.
    """
    states, vectors = [], []
    with torch.no_grad():
        for part in parts:
            states.append(random_state())
            vectors.append(encode(part))
    leaf = torch.cat(vectors).requires_grad_()
    loss = loss_of(leaf)
    loss.backward()
    assert leaf.grad is not None
    after = random_state()
    for part, state, gradient in zip(parts, states, leaf.grad.split([len(part) for part in vectors]), strict=True):
        set_random_state(state)  # the same values are dropped again
        encode(part).backward(gradient)
    set_random_state(after)
    return loss.item()


def random_state():  # type: ignore[no-untyped-def]
    """The states of torch's random generators, of the CPU and of the current GPU, as tensors."""
    devices = torch.empty(0, device="cuda") if torch.cuda.is_initialized() else torch.empty(0)
    return torch.get_rng_state(), get_device_states(devices)


def set_random_state(state) -> None:  # type: ignore[no-untyped-def]
    """Go back to what `random_state` gave."""
    torch.set_rng_state(state[0])
    set_device_states(*state[1])
