"""Sentence vectors of many stored sentences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from common.errors import InputError
from data import PairData
from model import SentenceEncoder
from tokens.token_store import TokenStore


@torch.inference_mode()
def encode(encoder: SentenceEncoder, tokens: TokenStore, indices: np.ndarray, *, batch_size: int = 128) -> torch.Tensor:
    """Encode sentences of a token store, each different one once, in batches of similar length.

    Args:
        encoder: runs on its own device, in evaluation mode.
        tokens: the token store.
        indices: `(n,)`, the sentence numbers; a number may occur more than once.
        batch_size: sentences in a batch.

    Returns:
        `(n, output_dim)`, float32, on the CPU, row i for `indices[i]`.
    """
    was_training = encoder.training
    encoder.eval()
    device = device_of(encoder)
    # Equal tokens are one sentence whatever their number: the result does not depend on how often a store repeats them.
    _, sample, inverse = np.unique(tokens.digests[indices], return_index=True, return_inverse=True)
    unique = indices[sample]
    order = np.argsort(tokens.lengths[unique], kind="stable")
    vectors = torch.empty(len(unique), encoder.config.output_dim)
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        batch, lengths = tokens.padded(unique[rows])
        vectors[torch.from_numpy(rows)] = encoder(batch.to(device), lengths.to(device)).cpu()
    encoder.train(was_training)
    return vectors[torch.from_numpy(inverse)]


def encode_pairs(encoder: SentenceEncoder, pairs: PairData) -> tuple[torch.Tensor, torch.Tensor]:
    """Sentence vectors `(n, output_dim)` of the first and of the second sentences of n pairs."""
    vectors = encode(encoder, pairs.tokens, np.concatenate([pairs.first, pairs.second]))
    return vectors[: len(pairs)], vectors[len(pairs) :]


def device_of(encoder: SentenceEncoder) -> torch.device:
    """The device an encoder's weights lie on; the CPU for one without weights."""
    return next((parameter.device for parameter in encoder.parameters()), torch.device("cpu"))


def check_tokens(encoder: SentenceEncoder, dim: int, description: Mapping[str, Any], found: str) -> None:
    """Whether tokens are of the kind that an encoder was trained on.

    Args:
        encoder: remembers width, backbone and layers of its tokens.
        dim: the width of the tokens.
        description: their `backbone` and `layers`, where these are known; tokens that came as `.dat` files do not say.
        found: begins the end of the message: `these data have`.

    Raises:
        InputError: where the width, the backbone or the layers differ, or only one side is sentence embeddings.
    """
    if encoder.config.input_dim != dim:
        raise InputError(
            f"the encoder takes token embeddings {encoder.config.input_dim} wide, {found} {dim}; prepare them with "
            "the backbone and layers that it was trained on"
        )
    for name, expected in encoder.tokens_from.items():
        actual = description.get(name)
        if expected is not None and actual is not None and actual != expected:
            raise InputError(f"the encoder was trained on tokens of {name} {expected}, {found} {name} {actual}")
    if encoder.tokens_from.get("backbone") and description.get("backbone"):
        wanted, given = (
            "sentence embeddings (--pooled)" if tokens.get("pooled") else "tokens" for tokens in (encoder.tokens_from, description)
        )
        if given != wanted:
            raise InputError(f"the encoder was trained on {wanted}, {found} {given}")


def check_fits(encoder: SentenceEncoder, pairs: PairData) -> None:
    """Raise InputError where data have other tokens than an encoder was trained on: of another width, backbone or layers."""
    check_tokens(encoder, pairs.tokens.dim, pairs.tokens.description, "these data have")
