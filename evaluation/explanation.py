"""How much each token adds to the similarity of two sentences.

A sentence vector is a sum over tokens, once what the whole sentence decides is held at the value it has there: attention
weights, the deviation in a layer norm, the gate Phi(x) of a GELU x * Phi(x), and the length that the sum is divided by. All
other steps are linear. So the parts of a sum are sent through the encoder one by one, and their sum stays the encoder's output,
exactly. The dot product of two such sums is a table of token against token, and its sum is the cosine.

Source: Ali et al. 2022, XAI for Transformers: Better Explanations through Conservative Propagation, which holds attention and
layer norms in this way.

A token embedding has seen the whole sentence: a share belongs to a token in its context, not to the word alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from common.files import write_figure_atomically
from model import GatedHead, HybridPooling, PublishedPooling, ResidualHead, SentenceEncoder


@dataclass(frozen=True)
class Explanation:
    """Where the similarity of two sentences of S and T tokens comes from.

    Attributes:
        similarity: their cosine.
        first: the S tokens of the first sentence, special ones too.
        second: the T tokens of the second.
        shares: `(S, T)`, what each token of the first adds together with each of the second; the sum is `similarity`.
        first_weights: `(S,)`, how much pooling listens to each token, the mean over heads, sums to 1.
        second_weights: `(T,)`, the same for the second sentence.
    """

    similarity: float
    first: list[str]
    second: list[str]
    shares: np.ndarray
    first_weights: np.ndarray
    second_weights: np.ndarray

    @property
    def first_shares(self) -> np.ndarray:
        """What each token of the first sentence adds: `(S,)`, sums to `similarity`."""
        return self.shares.sum(1)

    @property
    def second_shares(self) -> np.ndarray:
        """What each token of the second sentence adds: `(T,)`, sums to `similarity`."""
        return self.shares.sum(0)


@torch.inference_mode()
def token_parts(encoder: SentenceEncoder, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """A sentence's vector as a sum over its tokens.

    What no token gives, the encoder's biases, is shared out among the tokens by their weights.

    Args:
        encoder: of any architecture, in evaluation mode.
        tokens: `(T, D)`, one sentence without padding, T at least 1.

    Returns:
        `(T, output_dim)`, sums to the sentence's vector; and how much pooling listens to each token, `(T,)`, sums to 1.
    """
    parts, weights = _pooled_parts(encoder.pooling, tokens)
    parts = _through(encoder.head, torch.cat([parts, torch.zeros_like(parts[:1])]))
    parts = parts[:-1] + weights[:, None] * parts[-1]
    return parts / parts.sum(0).norm(), weights


def _pooled_parts(pooling: nn.Module, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens `(T, D)` to the parts `(T, P)` of the pooled vector, and to their weights `(T,)`."""
    lengths = torch.tensor([len(tokens)], device=tokens.device)
    if isinstance(pooling, HybridPooling):
        weights = pooling.token_weights(tokens[None], lengths)[0].T
        parts = (weights[:, :, None] * tokens.unflatten(1, (pooling.heads, -1))).flatten(1)
    elif isinstance(pooling, PublishedPooling):
        encoded = pooling.token_encoder(tokens)
        weights = pooling.token_weights(encoded[None], lengths)[0].T
        parts = weights * encoded
    else:  # mean
        weights = torch.full((len(tokens), 1), 1 / len(tokens), device=tokens.device)
        parts = weights * tokens
    return parts, weights.mean(1)


def _through(module: nn.Module, parts: Tensor) -> Tensor:
    """The parts of a sum through a module: `(T + 1, P)` to `(T + 1, Q)`.

    The last part is what no token gives. The sum of the result is the module's output for the sum of `parts`.
    """
    if isinstance(module, nn.Sequential):
        for step in module:
            parts = _through(step, parts)
        return parts
    if isinstance(module, nn.Linear):
        return _with_constant(parts @ module.weight.T, module.bias)
    if isinstance(module, nn.LayerNorm):
        deviation = (parts.sum(0).var(correction=0) + module.eps).sqrt()
        return _with_constant((parts - parts.mean(1, keepdim=True)) / deviation * module.weight, module.bias)
    if isinstance(module, nn.GELU):
        return parts * torch.special.ndtr(parts.sum(0))
    if isinstance(module, nn.ReLU):
        return parts * (parts.sum(0) > 0)
    if isinstance(module, ResidualHead):
        projected = _through(module.projection, parts)
        return projected if module.departure is None else projected + _through(module.departure, projected)
    if isinstance(module, GatedHead):
        normed = _through(module.norm, parts)
        return _through(module.mlp, normed) + module.gate.sigmoid() * _through(module.linear, normed)
    if isinstance(module, (nn.Dropout, nn.Identity)):
        return parts
    raise TypeError(f"cannot take {type(module).__name__} apart")


def _with_constant(parts: Tensor, constant: Tensor) -> Tensor:
    return torch.cat([parts[:-1], parts[-1:] + constant])


def draw_explanation(path: Path, explanation: Explanation) -> None:
    """Draw the shares as a heat map, PNG: tokens of the first sentence down, of the second across, with their sums."""
    from matplotlib.figure import Figure  # here, because who encodes text draws nothing, and importing it takes most of a second

    rows, columns = explanation.shares.shape
    figure = Figure(figsize=(2.6 + 0.5 * columns, 1.9 + 0.34 * rows), layout="constrained")
    axes = figure.subplots()
    largest = np.abs(explanation.shares).max()
    image = axes.imshow(explanation.shares, cmap="RdBu_r", vmin=-largest, vmax=largest, aspect="auto")
    sides = ((explanation.first, explanation.first_shares), (explanation.second, explanation.second_shares))
    (first, second) = ([f"{token}  {share:+.2f}" for token, share in zip(*side, strict=True)] for side in sides)
    axes.set_yticks(range(rows), first, fontsize=9)
    axes.set_xticks(range(columns), second, fontsize=9, rotation=90)
    axes.xaxis.tick_top()
    axes.set_title(f"cosine {explanation.similarity:.3f}, the sum of all cells", fontsize=10, pad=12)
    figure.colorbar(image, ax=axes, pad=0.01, aspect=25)
    write_figure_atomically(path, figure)
