"""Rows of a file of token embeddings: `n_tokens dim v v v ...`, decimal text."""

from __future__ import annotations

import os
import warnings
from typing import Any

import numpy as np
import simdjson

from common.errors import InputError

PARSER = simdjson.Parser()  # one for all rows, because a new one has to allocate its memory again


def parse_token_row(row: bytes, dim: int | None, path: str | os.PathLike[str], number: int) -> np.ndarray:
    """Return the token embeddings `(n_tokens, dim)`, float32, of one row `n_tokens dim v v v ...`.

    Args:
        row: the row without its line end.
        dim: the dim it must state; None accepts any.
        path: the file, for error messages.
        number: the line, for error messages.

    Raises:
        InputError: if the row is malformed, states another dim, or has a value that is not finite.
    """
    counts = row.lstrip()[:64].split(None, 2)[:2]
    try:
        if any(b"_" in count for count in counts):  # int() reads 1_0 as 10
            raise ValueError
        n_tokens, width = int(counts[0]), int(counts[1])
    except (ValueError, IndexError):
        shown = row[:40].decode("utf-8", "replace")
        raise InputError(f"row begins with {shown!r}, expected 'n_tokens dim v v ...'", path=path, line=number) from None
    if n_tokens < 0 or width < 1:
        raise InputError(f"n_tokens is {n_tokens} and dim is {width}, expected n_tokens >= 0 and dim >= 1", path=path, line=number)
    if dim is not None and width != dim:
        raise InputError(f"dim is {width}, expected {dim}", path=path, line=number)
    values = _parse_numbers(row)
    if values.size != 2 + n_tokens * width or not np.isfinite(values[2:]).all():
        raise InputError(_describe_error(row.split()[2:], n_tokens, width), path=path, line=number)
    return values[2:].reshape(n_tokens, width)


def _parse_numbers(text: bytes) -> np.ndarray:
    """Return whitespace-separated decimal numbers `(n,)`, float32, or an empty array if anything else is among them."""
    # With commas for spaces the numbers are a JSON array, which simdjson parses several times as fast as NumPy. What JSON does
    # not allow, such as +1 or two spaces, is left to NumPy; so are commas and brackets, which would change the array, and -0,
    # which JSON reads as the integer 0.
    if b"," not in text and b"[" not in text:
        try:
            array: Any = PARSER.parse(b"[%b]" % text.replace(b" ", b","))
            with np.errstate(over="ignore"):  # values too large for float32 become infinite, which the caller refuses
                values = np.frombuffer(array.as_buffer(of_type="d"), dtype=np.float64).astype(np.float32)
            if values.all() or b"-0" not in text:
                return values
        except (ValueError, TypeError, RuntimeError):  # RuntimeError: an integer of more than 64 bits
            pass
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", DeprecationWarning)  # NumPy 1 only warns if it stops before the end
            values = np.fromstring(text, dtype=np.float32, sep=" ")  # type: ignore[call-overload]
    except (ValueError, DeprecationWarning):
        values = np.empty(0, np.float32)
    # NumPy also splits at control characters, which bytes.split does not.
    return values if len(values) == len(text.split()) else np.empty(0, np.float32)


def _describe_error(fields: list[bytes], n_tokens: int, dim: int) -> str:
    for position, field in enumerate(fields, start=1):
        with np.errstate(over="ignore"):
            if not is_number(field) or not np.isfinite(np.float32(float(field))):
                shown = field[:40].decode("utf-8", "replace")
                return f"value {position} is {shown!r}, expected a finite number in the range of float32"
    return f"{len(fields)} numbers after n_tokens and dim, expected n_tokens * dim = {n_tokens} * {dim} = {n_tokens * dim}"


def is_number(field: bytes) -> bool:
    """Return whether a field is a decimal number as C's strtod reads it, without Python's underscores."""
    try:
        float(field)
    except ValueError:
        return False
    return b"_" not in field


def format_token_row(tokens: np.ndarray) -> bytes:
    """Return the row of token embeddings `(T, D)`; nine digits preserve every float32."""
    numbers = " ".join([f"{value:.9g}" for value in tokens.ravel().tolist()])
    return f"{tokens.shape[0]} {tokens.shape[1]} {numbers}\n".encode("ascii")
