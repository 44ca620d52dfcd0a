"""Smaller embeddings: fewer dimensions, or one byte or one bit per dimension."""

from __future__ import annotations

import numpy as np

from common.errors import InputError


def truncate(embeddings: np.ndarray, length: int) -> np.ndarray:
    """The first `length` dimensions of embeddings `(n, K)`, float32, scaled back to unit length: `(n, length)`.

    Only embeddings of an encoder trained with `nested` stay meaningful.

    Raises:
        InputError: if the embeddings have fewer dimensions.
    """
    if not 1 <= length <= embeddings.shape[1]:
        raise InputError(f"length is {length}, expected 1 to {embeddings.shape[1]}, the dimensions of the embeddings")
    return unit_length(embeddings[:, :length])


def int8_range(embeddings: np.ndarray) -> np.ndarray:
    """The minimum and maximum of each dimension of embeddings `(n, K)`: `(2, K)`, float32."""
    return np.stack([embeddings.min(axis=0), embeddings.max(axis=0)])


def to_int8(embeddings: np.ndarray, value_range: np.ndarray) -> np.ndarray:
    """Quantize each dimension to 256 steps between its minimum and maximum; values outside are clipped.

    Matches sentence-transformers' `quantize_embeddings(precision="int8")`.

    Args:
        embeddings: `(n, K)`, float32, to codes `(n, K)`, int8, -128 to 127.
        value_range: `(2, K)`, `int8_range` of other embeddings, such as the training sentences'.
    """
    lowest, highest = value_range
    step = (highest - lowest) / 255
    step = np.where(step == 0, 1, step)
    return (np.floor((embeddings - lowest) / step).clip(0, 255) - 128).astype(np.int8)


def from_int8(codes: np.ndarray, value_range: np.ndarray) -> np.ndarray:
    """Restore embeddings `(n, K)`, float32, unit length, from int8 codes `(n, K)`: the middle of each step."""
    lowest, highest = value_range
    return unit_length(lowest + (codes.astype(np.float32) + 128.5) * (highest - lowest) / 255)


def unit_length(embeddings: np.ndarray) -> np.ndarray:
    """Scale embeddings `(n, K)` to length 1; zeros stay zeros."""
    return embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True).clip(min=np.finfo(np.float32).tiny)


def to_bits(embeddings: np.ndarray) -> np.ndarray:
    """One bit per dimension, set if it is positive, packed into bytes: `(n, K)` to `(n, ceil(K / 8))`, uint8.

    Matches sentence-transformers' `quantize_embeddings(precision="ubinary")`.
    """
    return np.packbits(embeddings > 0, axis=1)


def bit_similarity(first: np.ndarray, second: np.ndarray, length: int) -> np.ndarray:
    """Similarity of n pairs of binary embeddings, `cos(pi * share of bits that differ)`, -1 to 1: `(n,)`, float64.

    The angle between two vectors is about pi times the share of hyperplanes that separate them. Source: Charikar 2002,
    Similarity Estimation Techniques from Rounding Algorithms.

    Args:
        first: `(n, ceil(length / 8))`, uint8, from `to_bits`.
        second: the same for the second sentences.
        length: the number of bits K.

    Raises:
        InputError: if the embeddings do not have that many bits.
    """
    for codes in (first, second):
        if codes.shape[1] != -(-length // 8):
            raise InputError(f"length is {length}, expected the number of bits in {codes.shape[1]} bytes")
    return np.cos(np.pi * np.unpackbits(first ^ second, axis=1).sum(axis=1, dtype=np.int64) / length)
