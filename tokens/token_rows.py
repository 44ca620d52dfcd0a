"""Rows of a file of token embeddings: `n_tokens dim v v v ...`, decimal text.

Every process that parses a part of a file loads this module, so it imports little.
"""

from __future__ import annotations

import os
import warnings
from typing import Any

import numpy as np
import simdjson

from common.errors import InputError


def parse_token_row(row: bytes, dim: int | None, path: str | os.PathLike[str], number: int) -> np.ndarray:
    """The token embeddings `(n_tokens, dim)`, float32, of one row `n_tokens dim v v v ...`.

    Args:
        row: the row without its line end.
        dim: the dim it must state; None accepts any.
        path: the file and
        number: the line, for the message of an error.
    """
    counts = row.lstrip()[:64].split(None, 2)[:2]
    try:
        if any(b"_" in count for count in counts):  # Python's int would take 1_0 for 10
            raise ValueError
        n_tokens, width = int(counts[0]), int(counts[1])
    except (ValueError, IndexError):
        shown = row[:40].decode("utf-8", "replace")
        raise InputError(f"row begins with {shown!r}, expected 'n_tokens dim v v ...'", path=path, line=number) from None
    if n_tokens < 0 or width < 1:
        raise InputError(f"n_tokens is {n_tokens} and dim is {width}, expected no negative counts", path=path, line=number)
    if dim is not None and width != dim:
        raise InputError(f"dim is {width}, expected {dim}", path=path, line=number)
    values = _parse_numbers(row)
    if values.size != 2 + n_tokens * width or not np.isfinite(values[2:]).all():
        raise InputError(_what_is_wrong(row.split()[2:], n_tokens, width), path=path, line=number)
    return values[2:].reshape(n_tokens, width)


def _parse_numbers(text: bytes, parser: simdjson.Parser = simdjson.Parser()) -> np.ndarray:  # noqa: B008
    """Decimal numbers separated by white space, `(n,)`, float32; empty where something else is among them."""
    # Numbers are a JSON array once their spaces are commas, and the JSON parser reads several times as fast as NumPy; one
    # parser for all rows, because a new one begins without memory. It refuses what JSON has no word for, such as +1 or two
    # spaces; commas and brackets would be more of the array, and -0 it reads as the integer 0: these are left to NumPy.
    if b"," not in text and b"[" not in text:
        try:
            array: Any = parser.parse(b"[%b]" % text.replace(b" ", b","))
            with np.errstate(over="ignore"):  # too large for float32 becomes infinite, and is refused as such
                values = np.frombuffer(array.as_buffer(of_type="d"), dtype=np.float64).astype(np.float32)
            if values.all() or b"-0" not in text:
                return values
        except (ValueError, TypeError, RuntimeError):  # RuntimeError: an integer of more than 64 bits
            pass
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", DeprecationWarning)  # how NumPy 1 says that it stopped before the end
            values = np.fromstring(text, dtype=np.float32, sep=" ")  # type: ignore[call-overload]
    except (ValueError, DeprecationWarning):
        values = np.empty(0, np.float32)
    # NumPy takes control characters for white space, which separates nothing elsewhere.
    return values if len(values) == len(text.split()) else np.empty(0, np.float32)


def _what_is_wrong(fields: list[bytes], n_tokens: int, dim: int) -> str:
    for position, field in enumerate(fields, start=1):
        if not is_number(field) or not _fits_float32(float(field)):
            shown = field[:40].decode("utf-8", "replace")
            return f"value {position} is {shown!r}, expected a finite number in the range of float32"
    return f"{len(fields)} numbers after n_tokens and dim, expected n_tokens * dim = {n_tokens} * {dim} = {n_tokens * dim}"


def _fits_float32(value: float) -> bool:
    with np.errstate(over="ignore"):
        return bool(np.isfinite(np.float32(value)))


def is_number(field: bytes) -> bool:
    """Whether a field is a number as C's strtod reads it, in decimal; Python's own underscores are none."""
    try:
        float(field)
    except ValueError:
        return False
    return b"_" not in field


def format_token_row(tokens: np.ndarray) -> bytes:
    """The row of a token file for token embeddings `(T, D)`; nine digits bring back every float32."""
    numbers = " ".join([f"{value:.9g}" for value in tokens.ravel().tolist()])
    return f"{tokens.shape[0]} {tokens.shape[1]} {numbers}\n".encode("ascii")
