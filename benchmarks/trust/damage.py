"""Damage done to files at random, and what a reader under test has to offer."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, Protocol

NUMBERS = (
    b"0 -0 +1 1. .5 -.5e-3 01.50 1e5 1E+05 100e-2 3.4028235e38 3.5e38 1e39 -1e400 1e-46 nan inf -Infinity 0x1p3 1_0 1,5 1.2.3 --1 "
    b'1e 18446744073709551616 0.1234567890123456789 1e-400 4.9e-324 null true [1] {} "1" \xd9\xa1 \xef\xbc\x91 1\x00 \x1c 1\x0b '
).split(b" ")  # the last one is empty; two are digits of other scripts
JUNK = b'|\x00|\xff|\xef\xbb\xbf|\r|\n|\r\n|\n\n| |  |\t|\x0c|"|""|,|1000000000000'.split(b"|")
WORDS = [
    "a cat",
    "caf\u00e9",
    'he said "go"',
    "one, two",
    "'",
    "x; y",
    "\u4e2d\u6587",
    " space ",
    "line\nbreak",
    "x\r\ny",
    "a\n\nb",
]


def damage(rng: random.Random, text: bytes, separators: bytes) -> bytes:
    """A text file with some of its fields, bytes and lines changed."""
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3))):
        start = rng.choice([0, *(i + 1 for i, byte in enumerate(text) if byte in separators)])
        end = next((i for i in range(start, len(text)) if text[i] in separators), len(text))
        at, to = sorted(rng.randrange(len(text) + 1) for _ in "ab")
        lines = text.splitlines(keepends=True)
        changed = (
            text[:start] + rng.choice(NUMBERS) + text[end:],
            text[:at] + rng.choice(JUNK) + text[at:],
            text[:at] + bytes([rng.randrange(256)]) + text[at + 1 :],
            text[:at],
            text[:at] + text[to:] if to - at < 8 else text[:to] + text[at:],
            text.replace(b"\n", rng.choice((b"\r\n", b"\n\n", b" \n", b""))),
            b"".join(rng.sample(lines, len(lines))),
            rng.choice((b"\xef\xbb\xbf" + text, text + b"\n", text + b" \r\n\n", text * 2)),
        )
        text = rng.choice(changed)
    return text


def change_bytes(rng: random.Random, content: bytes, most: int) -> bytes:
    """1 to `most` bytes replaced by random ones."""
    changed = bytearray(content)
    for _ in range(rng.randint(1, most)):
        if changed:
            changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def split_lines(text: bytes) -> list[bytes]:
    """The lines of a file as the formats define them: blank ones only at the end."""
    lines = [line.rstrip(b"\r\n") for line in text.removeprefix(b"\xef\xbb\xbf").split(b"\n")]
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines or any(not line.strip() for line in lines):
        raise ValueError("blank")
    return lines


def number(field: str) -> float:
    """A decimal number."""
    if "_" in field:
        raise ValueError("underscore")
    return float(field)


class Reader(Protocol):
    """A reader under test."""

    suffix: str = ".dat"
    may_refuse: bool = False  # whether it may refuse what `expected` accepts

    def make(self, rng: random.Random) -> bytes:
        """A damaged file."""

    def read(self, path: Path) -> Any:
        """What the project reads; raises InputError if it refuses."""

    def expected(self, content: bytes) -> Any:
        """What the other reading finds; raises anything if it refuses."""

    def agrees(self, found: Any, expected: Any) -> bool:
        """Whether both found the same."""
        return found == expected
