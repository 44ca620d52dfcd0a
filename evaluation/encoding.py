"""Sentence embeddings of a token store."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from common.errors import InputError
from data import PairData
from model import SentenceEncoder
from tokens.token_store import TokenStore

if TYPE_CHECKING:  # a small encoder needs packages that train.py does without
    from portable.small_encoder import SmallEncoder


@torch.inference_mode()
def encode(encoder: SentenceEncoder, tokens: TokenStore, indices: np.ndarray, *, batch_size: int = 128) -> torch.Tensor:
    """Encode sentences of a token store in batches of similar length, each distinct sentence once.

    Args:
        encoder: runs on its own device, in evaluation mode.
        tokens: the token store.
        indices: `(n,)`, sentence numbers; repeats are allowed.
        batch_size: sentences per batch.

    Returns:
        `(n, output_dim)`, float32, on the CPU; row i belongs to `indices[i]`.
    """
    was_training = encoder.training
    encoder.eval()
    device = device_of(encoder)
    # Distinct by tokens, not by number: the result must not depend on how often a store repeats a sentence.
    _, sample, inverse = np.unique(tokens.digests[indices], return_index=True, return_inverse=True)
    unique = indices[sample]
    order = np.argsort(tokens.lengths[unique], kind="stable")
    embeddings = torch.empty(len(unique), encoder.config.output_dim)
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        batch, lengths = tokens.padded(unique[rows])
        embeddings[torch.from_numpy(rows)] = encoder(batch.to(device), lengths.to(device)).cpu()
    encoder.train(was_training)
    return embeddings[torch.from_numpy(inverse)]


def encode_numbers(encoder: SentenceEncoder | SmallEncoder, pairs: PairData, numbers: np.ndarray) -> torch.Tensor:
    """Embeddings `(n, output_dim)` of the sentences of some pairs, by their numbers `(n,)`, from their tokens or their text.

    Raises:
        InputError: if the encoder is a whole one and the text of the pairs is not known.
    """
    if isinstance(encoder, SentenceEncoder):
        return encode(encoder, pairs.tokens, numbers)
    unique, inverse = np.unique(numbers, return_inverse=True)
    return torch.from_numpy(encoder.encode(pairs.sentences_of(unique))[inverse])


def encode_pairs(encoder: SentenceEncoder | SmallEncoder, pairs: PairData) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings `(n, output_dim)` of the first and of the second sentences of n pairs."""
    embeddings = encode_numbers(encoder, pairs, np.concatenate([pairs.first, pairs.second]))
    return embeddings[: len(pairs)], embeddings[len(pairs) :]


def device_of(encoder: SentenceEncoder) -> torch.device:
    """The device of an encoder's weights; the CPU if it has none."""
    return next((parameter.device for parameter in encoder.parameters()), torch.device("cpu"))


def check_tokens(encoder: SentenceEncoder, dim: int, description: Mapping[str, Any], found: str) -> None:
    """Check that tokens are of the kind an encoder was trained on.

    Args:
        encoder: the encoder.
        dim: width of the tokens.
        description: their `backbone`, `layers` and `pooled`, if known; `.dat` files do not say.
        found: how the error message introduces these tokens: `these data have`.

    Raises:
        InputError: if the width, backbone or layers differ, or if only one side is sentence embeddings.
    """
    if encoder.config.input_dim != dim:
        raise InputError(
            f"the encoder takes token embeddings {encoder.config.input_dim} wide, {found} {dim}; prepare them with "
            "the backbone and layers it was trained on"
        )
    if difference := difference_of_tokens(encoder.tokens_from, description):
        what, expected, actual = difference
        raise InputError(f"the encoder was trained on {'tokens of ' if what else ''}{what}{expected}, {found} {what}{actual}")


def difference_of_tokens(expected: Mapping[str, Any], actual: Mapping[str, Any]) -> tuple[str, str, str] | None:
    """Where two descriptions of tokens contradict each other: `backbone ` or `layers `, and both values; None if nowhere.

    If one side is sentence embeddings, the first is empty. What a description leaves out contradicts nothing.
    """
    for name in ("backbone", "layers"):
        values = expected.get(name), actual.get(name)
        if None not in values and values[0] != values[1]:
            return f"{name} ", str(values[0]), str(values[1])
    kinds = ["sentence embeddings (--pooled)" if tokens.get("pooled") else "tokens" for tokens in (expected, actual)]
    if expected.get("backbone") and actual.get("backbone") and kinds[0] != kinds[1]:
        return "", kinds[0], kinds[1]
    return None


def check_fits(encoder: SentenceEncoder | SmallEncoder, pairs: PairData) -> None:
    """Raise InputError if the tokens of these pairs are not of the kind the encoder was trained on, or their text is missing."""
    if not isinstance(encoder, SentenceEncoder):
        pairs.text()
        return
    check_tokens(encoder, pairs.tokens.dim, pairs.tokens.description, "these data have")
