from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import InputError
from tokens import sentence_files
from tokens.sentence_files import SentenceFiles

LINES = st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r\n\v\f\x1c\x1d\x1e\x85\u2028\u2029")))


@given(st.lists(LINES, min_size=1, max_size=3), st.integers(1, 5), st.integers(1, 3), st.sampled_from(["\n", "\r\n"]))
def test_every_sentence_is_read_once_with_its_number(tmp_path_factory, files, block, pool, end):
    folder, expected, paths = tmp_path_factory.mktemp("text"), [], []
    for number, lines in enumerate(files):
        paths.append(folder / f"{number}.txt")
        paths[-1].write_bytes(end.join(lines).encode())
        expected += [line.removeprefix("\ufeff" if i == 0 else "").strip() for i, line in enumerate(lines)]
    expected = [sentence for sentence in expected if sentence]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sentence_files, "BLOCK", block)
        patch.setattr(sentence_files, "POOL", pool)
        if not expected:
            with pytest.raises(InputError, match="no sentences"):
                SentenceFiles(paths)
            return
        sentences = SentenceFiles(paths)
        assert list(sentences) == expected and len(sentences) == len(expected)
        seen = [pair for numbers, own in sentences.shuffled(np.random.default_rng(0)) for pair in zip(numbers, own, strict=True)]
        assert sorted(seen) == list(enumerate(expected))
        again = [own for _, own in sentences.shuffled(np.random.default_rng(0))]
        assert [sentence for own in again for sentence in own] == [sentence for _, sentence in seen]
        assert max(map(len, again)) <= block * pool


def test_the_identity_is_that_of_the_sentences(tmp_path):
    contents = {
        "whole": "A.\nB.\nC.\n",
        "start": "A.\nB.",
        "rest": "C.\n",
        "other": "A.\nB.C.\n",
        "loose": "\ufeff A. \r\n\nB.\r\nC.",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content.encode())
    identity = SentenceFiles([tmp_path / "whole"]).identity
    assert (
        identity == SentenceFiles([tmp_path / "start", tmp_path / "rest"]).identity == SentenceFiles([tmp_path / "loose"]).identity
    )
    assert identity != SentenceFiles([tmp_path / "other"]).identity
    assert identity == hashlib.blake2b(b"A.\nB.\nC.\n", digest_size=16).hexdigest()  # plain files keep that of their bytes


def test_the_order_is_mixed_and_the_identity_is_that_of_the_contents(tmp_path):
    (tmp_path / "a.txt").write_text("".join(f"sentence {i}\n" for i in range(20_000)))
    (tmp_path / "b.txt").write_text((tmp_path / "a.txt").read_text())
    sentences = SentenceFiles([tmp_path / "a.txt"])
    numbers = np.concatenate([own for own, _ in sentences.shuffled(np.random.default_rng(0))])
    assert abs(np.corrcoef(numbers, np.arange(20_000))[0, 1]) < 0.5
    assert sentences.identity == SentenceFiles([tmp_path / "b.txt"]).identity
    (tmp_path / "b.txt").write_text((tmp_path / "a.txt").read_text() + "one more\n")
    assert sentences.identity != SentenceFiles([tmp_path / "b.txt"]).identity


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "text.txt: no such file, expected a text file with one sentence a line"),
        (b"", "text.txt: no sentences, expected one a line"),
        (b" \n\n", "text.txt: no sentences, expected one a line"),
        (b"one\ntwo \xff\n", r"text.txt:2: not UTF-8 \(byte 5 of the line\)"),
        ("one\n".encode("utf-16-le"), "text.txt:1: has a NUL byte, as UTF-16 without its byte-order mark has; save the file as"),
        (b"\x1f\x8b\x08", "text.txt: is compressed, expected a text file"),
        (b"PK\x03\x04\x14", "text.txt: is compressed, expected a text file"),
        (b"(\xb5/\xfd\x04", "text.txt: is compressed, expected a text file"),
    ],
)
def test_bad_files_are_one_clear_line(tmp_path, content, message):
    if content is not None:
        (tmp_path / "text.txt").write_bytes(content)
    with pytest.raises(InputError, match=message):
        SentenceFiles([tmp_path / "text.txt"])


def test_text_that_begins_as_the_name_of_a_format_is_text(tmp_path):
    (tmp_path / "text.txt").write_text("PKK fighters left.\n")
    assert list(SentenceFiles([tmp_path / "text.txt"])) == ["PKK fighters left."]
