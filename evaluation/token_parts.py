"""How much each token contributes to a sentence embedding, and so to the similarity of two sentences.

Some factors depend on the whole sentence: attention weights, the deviation in a LayerNorm, the gate Phi(x) of a GELU
x * Phi(x), and the norm of the embedding. With these held at their actual values every other step is linear, so each token's
part can be sent through the encoder by itself, and the parts sum to the embedding exactly. The dot product of two such sums is a
table of token against token, and its sum is the cosine.

Source: Ali et al. 2022, XAI for Transformers: Better Explanations through Conservative Propagation, which treats attention and
LayerNorm this way.

A token embedding depends on the whole sentence: a share belongs to a token in its context, not to the word alone.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model import ContextPooling, GatedHead, HybridPooling, MeanPooling, PublishedPooling, ResidualHead, SentenceEncoder


@torch.inference_mode()
def token_parts(encoder: SentenceEncoder, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Split a sentence embedding into a sum over tokens.

    What the encoder's biases contribute is divided among the tokens by their pooling weights.

    Args:
        encoder: of any architecture, in evaluation mode.
        tokens: `(T, D)`, one sentence without padding, T at least 1.

    Returns:
        The parts `(T, output_dim)`, which sum to the embedding, and the pooling weights `(T,)`, which sum to 1.

    Raises:
        TypeError: for a pooling or a layer that is not handled here yet.
    """
    parts, weights = _pooled_parts(encoder.pooling, tokens)
    parts = _propagate(encoder.head, torch.cat([parts, torch.zeros_like(parts[:1])]))
    parts = parts[:-1] + weights[:, None] * parts[-1]
    return parts / parts.sum(0).norm(), weights


def _pooled_parts(pooling: nn.Module, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Split the pooled tokens `(T, D)` into parts `(T, P)`, one per token; also returns the pooling weights `(T,)`."""
    lengths = torch.tensor([len(tokens)], device=tokens.device)
    if isinstance(pooling, HybridPooling):
        weights = pooling.token_weights(tokens[None], lengths)[0].T
        parts = (weights[:, :, None] * tokens.unflatten(1, (pooling.heads, -1))).flatten(1)
    elif isinstance(pooling, ContextPooling):
        hybrid, mean = _pooled_parts(pooling.hybrid, tokens)
        return torch.cat([hybrid, pooling.states(tokens[None], lengths)[0] / len(tokens)], dim=1), mean
    elif isinstance(pooling, PublishedPooling):
        encoded = pooling.token_encoder(tokens)
        weights = pooling.token_weights(encoded[None], lengths)[0].T
        parts = weights * encoded
    elif isinstance(pooling, MeanPooling):
        weights = torch.full((len(tokens), 1), 1 / len(tokens), device=tokens.device)
        parts = weights * tokens
    else:
        raise TypeError(f"cannot explain a {type(pooling).__name__}")
    return parts, weights.mean(1)


def _propagate(module: nn.Module, parts: Tensor) -> Tensor:
    """Send the parts of a sum through a module: `(T + 1, P)` to `(T + 1, Q)`.

    The last part is that of the biases. The result sums to the module's output for the sum of `parts`.
    """
    if isinstance(module, nn.Sequential):
        for step in module:
            parts = _propagate(step, parts)
        return parts
    if isinstance(module, nn.Linear):
        return _add_bias(parts @ module.weight.T, module.bias)
    if isinstance(module, nn.LayerNorm):
        deviation = (parts.sum(0).var(correction=0) + module.eps).sqrt()
        return _add_bias((parts - parts.mean(1, keepdim=True)) / deviation * module.weight, module.bias)
    if isinstance(module, nn.GELU):
        return parts * torch.special.ndtr(parts.sum(0))
    if isinstance(module, nn.ReLU):
        return parts * (parts.sum(0) > 0)
    if isinstance(module, ResidualHead):
        projected = _propagate(module.projection, parts)
        return projected if module.departure is None else projected + _propagate(module.departure, projected)
    if isinstance(module, GatedHead):
        normed = _propagate(module.norm, parts)
        return _propagate(module.mlp, normed) + module.gate.sigmoid() * _propagate(module.linear, normed)
    if isinstance(module, (nn.Dropout, nn.Identity)):
        return parts
    raise TypeError(f"cannot explain a {type(module).__name__}")


def _add_bias(parts: Tensor, bias: Tensor) -> Tensor:
    return torch.cat([parts[:-1], parts[-1:] + bias])
