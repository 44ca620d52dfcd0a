"""Large batches in little memory: encode a batch part by part and keep only its embeddings.

A loss over a batch needs all its embeddings at once, but what autograd stores to compute them is much larger. So each part
is encoded twice: first without gradients, to compute the loss and its gradient at the embeddings; then again, to
backpropagate that gradient to the weights.
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
        encode: computes a part's embeddings, `(b, K)`.
        loss_of: computes the loss from all embeddings, in the order of the parts.

    Returns:
        The loss.
    """
    states, embeddings = [], []
    with torch.no_grad():
        for part in parts:
            states.append(random_state())
            embeddings.append(encode(part))
    leaf = torch.cat(embeddings).requires_grad_()
    loss = loss_of(leaf)
    loss.backward()
    assert leaf.grad is not None
    after = random_state()
    for part, state, gradient in zip(parts, states, leaf.grad.split([len(part) for part in embeddings]), strict=True):
        set_random_state(state)  # for the same dropout masks
        encode(part).backward(gradient)
    set_random_state(after)
    return loss.item()


def random_state():  # type: ignore[no-untyped-def]
    """The state of torch's random generators, of the CPU and of the current GPU, as tensors."""
    devices = torch.empty(0, device="cuda") if torch.cuda.is_initialized() else torch.empty(0)
    return torch.get_rng_state(), get_device_states(devices)


def set_random_state(state) -> None:  # type: ignore[no-untyped-def]
    """Restore what `random_state` returned."""
    torch.set_rng_state(state[0])
    set_device_states(*state[1])
