"""Files of text pairs."""

from __future__ import annotations

import gzip

import pytest

from common.errors import InputError
from tokens.text_files import read_text_pairs


def read(tmp_path, name: str, content: str | bytes):
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return read_text_pairs(tmp_path / name)


def test_csv_with_quotes_and_commas(tmp_path):
    pairs = read(tmp_path, "x.csv", '"A man, a plan","He said ""go""",4.5\nplain,text,0\n')
    assert (pairs.first, pairs.second) == (["A man, a plan", "plain"], ['He said "go"', "text"])
    assert pairs.labels.tolist() == [4.5, 0]


def test_tsv_keeps_quotes(tmp_path):
    pairs = read(tmp_path, "x.tsv", 'He said "go"\t"\t5\n')
    assert (pairs.first, pairs.second) == (['He said "go"'], ['"'])


@pytest.mark.parametrize("name", ["x.csv", "x.tsv"])
def test_a_header_is_left_out(tmp_path, name):
    separator = "," if name.endswith("csv") else "\t"
    pairs = read(tmp_path, name, f"sentence1{separator}sentence2{separator}score\na{separator}b{separator}3\n")
    assert len(pairs) == 1 and pairs.labels.tolist() == [3]


def test_compressed(tmp_path):
    assert len(read(tmp_path, "x.tsv.gz", gzip.compress(b"a\tb\t1\n"))) == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", "a,b,1\na,b\n", r"x.csv:2: 2 columns, expected 3 separated by commas"),
        ("x.csv", 'a,b,1\n"a"x,b,2\n', r"x.csv:2: not a row of comma-separated values"),
        ("x.csv", 'a,b,1\n"a,b,2\n', r"x.csv:2: not a row of comma-separated values"),
        ("x.tsv", "a\tb\t1\na\tb\t2\t3\n", r"x.tsv:2: 4 columns, expected 3 separated by tabs"),
        ("x.tsv", "a\tb\tscore\n", r"no pairs after the header"),
        ("x.tsv", "a\tb\t1_0\n", r"x.tsv:1: label '1_0' is not a number, expected 0 to 5"),
        ("x.tsv", "a\tb\tinf\n", r"x.tsv:1: label inf is out of range, expected 0 to 5"),
        ("x.tsv", b"a\tb\t1\n\xff\tb\t1\n", r"x.tsv:2: not UTF-8 \(byte 1 of the line\)"),
        ("x.tsv", "", r"x.tsv: the file is empty"),
        ("x.tsv", "a\tb\t1\n\na\tb\t1\n", r"x.tsv:2: blank line"),
    ],
)
def test_bad_files_are_named_with_their_line(tmp_path, name, content, message):
    with pytest.raises(InputError, match=message):
        read(tmp_path, name, content)


def test_folders_and_missing_files(tmp_path):
    with pytest.raises(InputError, match="is a folder"):
        read_text_pairs(tmp_path)
    with pytest.raises(InputError, match="no such file"):
        read_text_pairs(tmp_path / "x.csv")
