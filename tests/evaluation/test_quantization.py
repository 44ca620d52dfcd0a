"""Vectors stored smaller, beside sentence-transformers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sentence_transformers.util.quantization import quantize_embeddings

from common.errors import InputError
from evaluation.quantization import bit_similarity, from_int8, int8_range, to_bits, to_int8, truncate


def unit_vectors(n: int, dim: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("dim", [5, 32, 64])
def test_codes_are_those_of_sentence_transformers(dim):
    vectors, others = unit_vectors(50, dim, 0), unit_vectors(200, dim, 1)
    ours = to_int8(vectors, int8_range(others))
    np.testing.assert_array_equal(ours, quantize_embeddings(vectors, "int8", calibration_embeddings=others))
    np.testing.assert_array_equal(to_bits(vectors), quantize_embeddings(vectors, "ubinary"))


def test_int8_gives_the_vectors_back_to_half_a_step():
    vectors = unit_vectors(300, 16, 2)
    value_range = int8_range(vectors)
    again = from_int8(to_int8(vectors, value_range), value_range)
    np.testing.assert_allclose(np.linalg.norm(again, axis=1), 1, atol=1e-6)
    half_a_step = (value_range[1] - value_range[0]).max() / 510
    assert np.abs(again - vectors).max() < 2 * half_a_step  # scaling to unit length moves them a little more


def test_a_number_that_never_changes_and_values_out_of_range():
    value_range = np.array([[0.5, -0.1], [0.5, 0.1]], np.float32)
    codes = to_int8(np.array([[0.5, 0.9], [0.5, -0.9]], np.float32), value_range)
    assert codes.tolist() == [[-128, 127], [-128, -128]]


@given(arrays.arrays(np.bool_, (2, 13)))
@settings(max_examples=50, deadline=None)
def test_similarity_of_bits_counts_those_that_differ(bits):
    first, second = (np.where(side, 1.0, -1.0)[None] for side in bits)
    expected = np.cos(np.pi * (bits[0] != bits[1]).mean())
    assert bit_similarity(to_bits(first), to_bits(second), 13) == pytest.approx(expected)


@given(st.integers(1, 8))
@settings(deadline=None)
def test_truncated_vectors_are_unit_vectors_in_the_same_direction(length):
    vectors = unit_vectors(20, 8, 3)
    short = truncate(vectors, length)
    np.testing.assert_allclose(np.linalg.norm(short, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(short * np.linalg.norm(vectors[:, :length], axis=1, keepdims=True), vectors[:, :length], atol=1e-6)


def test_a_vector_of_zeros_stays_finite():
    assert not truncate(np.zeros((1, 4), np.float32), 2).any()


def test_lengths_that_do_not_fit_are_refused():
    vectors = np.eye(5, 32, dtype=np.float32)
    for length in (0, -1, 33):
        with pytest.raises(InputError, match="expected 1 to 32"):
            truncate(vectors, length)
    for length in (4, 40, 999):
        with pytest.raises(InputError, match="expected the number of bits in 4 bytes"):
            bit_similarity(to_bits(vectors), to_bits(-vectors), length)
