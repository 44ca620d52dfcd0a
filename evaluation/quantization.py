"""Small vectors stored smaller: fewer numbers, a byte for each number, a bit for each number.

short = truncate(vectors, 32)                      the first numbers of nested vectors
codes = to_int8(vectors, int8_range(training))     a quarter of the memory
codes = to_bits(vectors)                           a 32nd of it
"""

from __future__ import annotations

import numpy as np

from common.errors import InputError


def truncate(vectors: np.ndarray, length: int) -> np.ndarray:
    """The first `length` numbers of vectors `(n, K)`, float32, at unit length again: `(n, length)`.

    Only vectors of an encoder trained with `nested` keep their meaning so.

    Raises:
        InputError: where there are not so many.
    """
    if not 1 <= length <= vectors.shape[1]:
        raise InputError(f"length is {length}, expected 1 to {vectors.shape[1]}, the numbers of a vector")
    short = vectors[:, :length]
    return short / np.linalg.norm(short, axis=1, keepdims=True).clip(min=np.finfo(np.float32).tiny)


def int8_range(vectors: np.ndarray) -> np.ndarray:
    """The lowest and the highest value of each number over many vectors `(n, K)`: `(2, K)`, float32."""
    return np.stack([vectors.min(axis=0), vectors.max(axis=0)])


def to_int8(vectors: np.ndarray, value_range: np.ndarray) -> np.ndarray:
    """Each number as one of 256 steps between its lowest and highest value.

    As sentence-transformers' `quantize_embeddings(precision="int8")`; a value outside the range becomes its end.

    Args:
        vectors: `(n, K)`, float32.
        value_range: `(2, K)`, of `int8_range` on other vectors, such as the training sentences'.

    Returns:
        `(n, K)`, int8, -128 to 127.
    """
    lowest, highest = value_range
    step = (highest - lowest) / 255
    step = np.where(step == 0, 1, step)
    return (np.floor((vectors - lowest) / step).clip(0, 255) - 128).astype(np.int8)


def from_int8(codes: np.ndarray, value_range: np.ndarray) -> np.ndarray:
    """The vectors `(n, K)`, float32, at unit length, that int8 codes `(n, K)` stand for: the middle of each step."""
    lowest, highest = value_range
    vectors = lowest + (codes.astype(np.float32) + 128.5) * (highest - lowest) / 255
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(min=np.finfo(np.float32).tiny)


def to_bits(vectors: np.ndarray) -> np.ndarray:
    """Whether each number is above 0, eight to a byte: `(n, K)` to `(n, ceil(K / 8))`, uint8.

    As sentence-transformers' `quantize_embeddings(precision="ubinary")`.
    """
    return np.packbits(vectors > 0, axis=1)


def bit_similarity(first: np.ndarray, second: np.ndarray, length: int) -> np.ndarray:
    """The similarity of n pairs of bit vectors: `cos(pi * share of bits that differ)`, -1 to 1.

    The angle between two vectors is about pi times the share of hyperplanes that part them. Source: Charikar 2002, Similarity
    Estimation Techniques from Rounding Algorithms.

    Args:
        first: `(n, ceil(length / 8))`, uint8, of `to_bits`.
        second: the same for the others.
        length: the number of bits K.

    Returns:
        `(n,)`, float64.

    Raises:
        InputError: where the vectors do not have that many bits.
    """
    for codes in (first, second):
        if codes.shape[1] != -(-length // 8):
            raise InputError(f"length is {length}, expected the number of bits in {codes.shape[1]} bytes")
    return np.cos(np.pi * np.unpackbits(first ^ second, axis=1).sum(axis=1, dtype=np.int64) / length)
