"""Progress of long work, in a terminal and in a log."""

from __future__ import annotations

import io
import sys

import pytest

from common import progress
from common.progress import Progress


class Terminal(io.StringIO):
    """Standard error on a terminal."""

    def isatty(self) -> bool:
        return True


def work(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, **settings: bool) -> str:
    monkeypatch.setattr(sys, "stderr", stream)
    with Progress(total=4, unit="batch", desc="teacher", mininterval=0, file=stream, **settings) as bar:
        for _ in range(4):
            bar.set_postfix(loss="0.5", refresh=False)
            bar.update()
            bar.write("an epoch", file=stream)
    return stream.getvalue()


def test_a_log_gets_plain_lines_with_the_time_left(monkeypatch):
    monkeypatch.setattr(progress, "SECONDS", 0.0)
    written = work(monkeypatch, io.StringIO())
    assert "\r" not in written and "\x1b" not in written
    assert "teacher:  50%| 2 of 4, 00:00 so far, 00:00 left, loss=0.5\n" in written


def test_short_work_leaves_nothing_in_a_log(monkeypatch):
    assert work(monkeypatch, io.StringIO()) == 4 * "an epoch\n"


def test_a_terminal_gets_a_bar(monkeypatch):
    written = work(monkeypatch, Terminal())
    assert "\rteacher:  75%|" in written and "3/4" in written


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_nothing_is_shown_where_it_is_disabled(monkeypatch, stream):
    monkeypatch.setattr(progress, "SECONDS", 0.0)
    assert work(monkeypatch, stream(), disable=True) == 4 * "an epoch\n"
