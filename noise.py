"""NEFTune: noise on token embeddings in training, so that an encoder does not learn single sentences by heart."""

from __future__ import annotations

import torch
from torch import Tensor


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
