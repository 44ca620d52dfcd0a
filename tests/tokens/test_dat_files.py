"""The challenge's files: written files read back bit for bit, and errors name the line."""

from __future__ import annotations

import gzip
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import last_line, random_sentences, run_script
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from common.errors import InputError
from data import open_pairs
from tokens.dat_files import find_dat_files, read_label_file, read_token_file, read_token_files, recognise
from tokens.token_rows import format_token_row, parse_token_row

finite = st.floats(allow_nan=False, allow_infinity=False, width=32)


@given(hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=6), elements=finite))
@settings(deadline=None)
def test_a_row_reads_back_bit_for_bit(tokens):
    row = format_token_row(tokens).rstrip(b"\n")
    assert parse_token_row(row, tokens.shape[1], "x", 1).tobytes() == tokens.tobytes()


separators = st.sampled_from([" ", " ", " ", "  ", "\t"])
forms = st.sampled_from(["{:.9g}", "{:.17g}", "{:+.6e}", "{:.3f}", "{:.0f}", "{!r}", "{:.0f}."])


@given(st.lists(st.tuples(st.floats(-1e30, 1e30), forms, separators), min_size=1, max_size=12))
@settings(deadline=None)
def test_numbers_in_any_form_are_what_python_reads(values):
    text = "".join(form.format(value) + separator for value, form, separator in values).strip()
    expected = np.array([float(number) for number in text.split()]).astype(np.float32)
    assert parse_token_row(f"1 {len(values)} {text}".encode(), len(values), "x", 1).tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    "text", ["1,2 3", "1 [2 3]", '1 "2" 3', "1 2 true", "1 2 null", "1 2 3]", "1 2 0x3", "1 2 1_0", "1 2 3e", "1 - 3"]
)
def test_non_numbers_are_refused(text):
    with pytest.raises(InputError, match="expected"):
        parse_token_row(f"1 3 {text}".encode(), 3, "x", 1)


@pytest.mark.parametrize("row", ["0 3 -", "0 3 \x1c", "-0 3 1_0", "0_0 3", "1_0 1 1 2 3 4 5 6 7 8 9 10", "0 3 \xff"])
def test_a_row_without_tokens_has_nothing_after_its_counts(row):
    with pytest.raises(InputError, match="expected"):
        parse_token_row(row.encode("latin-1"), None, "x", 1)
    assert parse_token_row(b"0 3", None, "x", 1).shape == parse_token_row(b" " * 70 + b"0 3 ", None, "x", 1).shape == (0, 3)


@pytest.mark.parametrize("text", ["1e0", "+1", "1.", "01.000", "1E+00", "100e-2"])
def test_numbers_in_other_forms(text):
    assert parse_token_row(f"1 2 {text} -{text.lstrip('+')}".encode(), 2, "x", 1).tolist() == [[1.0, -1.0]]


def test_four_files_read_back_bit_for_bit(challenge):
    rng = np.random.default_rng(1)
    first, second = random_sentences(rng, 12), random_sentences(rng, 12)
    pairs = open_pairs([challenge])
    for i in range(12):
        assert np.array_equal(pairs.tokens.sentence(pairs.first[i]), first[i])
        assert np.array_equal(pairs.tokens.sentence(pairs.second[i]), second[i])
        assert pairs.sentences[pairs.first[i]] == f"first {i}"
        assert pairs.sentences[pairs.second[i]] == f"second {i}"
    assert np.array_equal(pairs.labels, np.linspace(0, 5, 12, dtype=np.float32))


def same(a, b) -> bool:
    return (
        np.array_equal(a.labels, b.labels)
        and all(np.array_equal(a.tokens.sentence(i), b.tokens.sentence(j)) for i, j in zip(a.first, b.first, strict=True))
        and all(np.array_equal(a.tokens.sentence(i), b.tokens.sentence(j)) for i, j in zip(a.second, b.second, strict=True))
    )


def test_files_are_recognised_under_any_name_plain_or_compressed(challenge, tmp_path):
    expected = open_pairs([challenge])
    renamed = tmp_path / "renamed"
    renamed.mkdir()
    for name, target in (("sentences", "d"), ("tokens1", "a"), ("tokens2", "b"), ("labels", "c")):
        content = (challenge / f"{name}.dat").read_bytes()
        (renamed / f"{target}.dat.gz").write_bytes(gzip.compress(content))
    assert same(open_pairs([renamed]), expected)


def test_windows_line_ends_byte_order_mark_and_blank_last_lines(challenge, tmp_path):
    expected = open_pairs([challenge])
    for path in challenge.glob("*.dat"):
        path.write_bytes(
            b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b" \r\n" if "tokens" in path.name else b"\r\n") + b"\r\n\n"
        )
    assert same(open_pairs([challenge], cache_dir=tmp_path), expected)


@pytest.mark.parametrize("missing", ["sentences", "labels"])
def test_either_source_of_labels_is_enough(challenge, missing):
    expected = open_pairs([challenge])
    (challenge / f"{missing}.dat").unlink()
    pairs = open_pairs([challenge])
    assert same(pairs, expected)
    assert (pairs.sentences is None) == (missing == "sentences")


def test_explicit_paths_keep_the_order_given(challenge):
    paths = [challenge / f"{name}.dat" for name in ("tokens2", "tokens1", "labels")]
    swapped, plain = open_pairs(paths), open_pairs([challenge])
    assert np.array_equal(swapped.tokens.sentence(swapped.first[3]), plain.tokens.sentence(plain.second[3]))


def test_a_label_with_an_underscore_is_refused(tmp_path):
    (tmp_path / "labels.dat").write_text("0.1_8 0\n1 1\n")
    with pytest.raises(InputError, match=r"labels.dat:1: '0.1_8 0' is not two numbers"):
        read_label_file(tmp_path / "labels.dat")


@pytest.mark.parametrize("rows", ["0\t0.5\n1\t0\n2\t5\n", "0.5 1\n0 2\n5 3\n", "1,0.5\n2,0\n3,5\n"])
def test_labels_in_either_column_with_index_from_0_or_1(rows, tmp_path):
    (tmp_path / "labels.dat").write_text(rows)
    assert read_label_file(tmp_path / "labels.dat").tolist() == [0.5, 0.0, 5.0]


def test_labels_that_could_be_either_column_need_the_other_file(tmp_path):
    (tmp_path / "labels.dat").write_text("0 1\n1 2\n2 3\n")
    with pytest.raises(InputError, match="ambiguous"):
        read_label_file(tmp_path / "labels.dat")
    assert read_label_file(tmp_path / "labels.dat", known=np.array([1, 2, 3], np.float32)).tolist() == [1, 2, 3]
    assert read_label_file(tmp_path / "labels.dat", known=np.array([0, 1, 2], np.float32)).tolist() == [0, 1, 2]


def test_a_second_opening_does_not_read_the_file_again(challenge, monkeypatch):
    before = open_pairs([challenge])
    monkeypatch.setattr("tokens.dat_files.parse_token_row", lambda *_: pytest.fail("read again"))
    assert same(open_pairs([challenge]), before)


def test_large_files_read_concurrently_are_the_same(challenge, monkeypatch, tmp_path):
    """Errors are the same too."""
    paths = [challenge / "tokens1.dat", challenge / "tokens2.dat"]
    in_turn = read_token_files(paths, cache_dir=tmp_path / "in turn")
    monkeypatch.setattr("tokens.dat_files.LARGE_FILE", 1)
    monkeypatch.setattr("tokens.dat_files.cpu_count", lambda: 2)
    together = read_token_files(paths, cache_dir=tmp_path / "together")
    for one, other in zip(in_turn, together, strict=True):
        assert np.array_equal(one.tokens[0], other.tokens[0]) and np.array_equal(one.digests, other.digests)
    rows = paths[1].read_text().splitlines()
    paths[1].write_text("\n".join([*rows[:2], rows[2].replace(" 768 ", " 767 ", 1), *rows[3:]]))
    with pytest.raises(InputError, match=r"tokens2.dat:3: dim is 767, expected 768$"):
        read_token_files(paths, cache_dir=tmp_path / "together")


def test_a_changed_file_or_a_damaged_store_is_read_again(challenge):
    path = challenge / "tokens1.dat"
    before = read_token_file(path).sentence(0).copy()
    rows = path.read_text().splitlines()
    path.write_text("\n".join(rows[::-1]))
    assert np.array_equal(read_token_file(path).sentence(11), before)
    store = challenge / "tokens1.dat.store"
    whole = store.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:100], b"", b"\x93NUMPY\x01\x00", whole[:-7], b"x" + whole[1:]):
        store.write_bytes(damaged)
        assert np.array_equal(read_token_file(path).sentence(11), before)


def test_a_store_is_kept_in_the_cache_folder(challenge, tmp_path):
    open_pairs([challenge], cache_dir=tmp_path / "cache")
    assert not list(challenge.glob("*.store"))
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["tokens1.dat.store", "tokens2.dat.store"]


def damage(path: Path, line: int, change) -> None:
    rows = path.read_text().splitlines()
    rows[line - 1] = change(rows[line - 1])
    path.write_text("\n".join(rows) + "\n")


def drop_last(row: str) -> str:
    return row.rsplit(" ", 1)[0]


BAD_ROWS = {
    "too few numbers": ("tokens1", 5, drop_last, r"tokens1.dat:5: \d+ numbers after n_tokens and dim, expected n_tokens \* dim ="),
    "too many numbers": ("tokens2", 2, lambda row: row + " 1.5", r"tokens2.dat:2: \d+ numbers .* expected n_tokens \* dim ="),
    "first row too short": ("tokens1", 1, drop_last, r"tokens1.dat:1: \d+ numbers"),
    "another dim": ("tokens1", 7, lambda _: "1 3 0.5 0.5 0.5", r"tokens1.dat:7: dim is 3, expected 768"),
    "another dim in the first row": ("tokens1", 1, lambda _: "1 3 0.5 0.5 0.5", r"tokens1.dat:1: dim is 3, expected 768"),
    "not a number": ("tokens1", 3, lambda row: drop_last(row) + " abc", r"tokens1.dat:3: value \d+ is 'abc', expected a finite"),
    "NaN": ("tokens1", 3, lambda row: drop_last(row) + " nan", r"tokens1.dat:3: value \d+ is 'nan', expected a finite number"),
    "infinity": ("tokens1", 3, lambda row: drop_last(row) + " -inf", r"tokens1.dat:3: value \d+ is '-inf', expected a finite"),
    "beyond float32": ("tokens1", 3, lambda row: drop_last(row) + " 1e39", r"value \d+ is '1e39', .* range of float32"),
    "negative count": (
        "tokens1",
        4,
        lambda row: "-" + row,
        r"tokens1.dat:4: n_tokens is -\d+ .* expected n_tokens >= 0 and dim >= 1",
    ),
    "count that is not an integer": (
        "tokens1",
        4,
        lambda row: "x" + row,
        r"tokens1.dat:4: row begins with 'x.* expected 'n_tokens dim",
    ),
    "a huge count": ("tokens1", 4, lambda _: "1000000000000 768 1 2", r"tokens1.dat:4: 2 numbers"),
    "blank line": ("tokens1", 4, lambda _: "", r"tokens1.dat:4: blank line"),
    "label above 5": ("sentences", 6, lambda row: row.rsplit("\t", 1)[0] + "\t5.5", r"sentences.dat:6: label 5.5 is out of range"),
    "negative label": ("sentences", 6, lambda row: row.rsplit("\t", 1)[0] + "\t-1", r"sentences.dat:6: label -1 is out of range"),
    "label that is not a number": ("sentences", 6, lambda row: row + "x", r"sentences.dat:6: label '.*x' is not a number"),
    "NaN label": ("sentences", 6, lambda row: row.rsplit("\t", 1)[0] + "\tnan", r"sentences.dat:6: label 'nan' is not a number"),
    "two columns": (
        "sentences",
        9,
        lambda row: row.rsplit("\t", 1)[0],
        r"sentences.dat:9: 2 columns, expected 3",
    ),
    "two columns in row 1": ("sentences", 1, lambda row: row.rsplit("\t", 1)[0], r"sentences.dat:1: 2 columns, expected 3"),
    "four columns": ("sentences", 9, lambda row: row + "\t1", r"sentences.dat:9: 4 columns, expected 3"),
    "empty sentence": (
        "sentences",
        2,
        lambda row: "\t" + row.split("\t", 1)[1],
        r"sentences.dat:2: column 1 is empty, expected a sentence",
    ),
    "labels with one column": ("labels", 3, lambda row: row.split("\t")[0], r"labels.dat:3: 1 columns, expected 2"),
    "labels with a word": ("labels", 3, lambda row: row + "x", r"labels.dat:3: .* is not two numbers"),
    "labels out of range": ("labels", 3, lambda row: "7\t" + row.split("\t")[1], r"labels.dat:3: label 7 is out of range"),
    "index that jumps": (
        "labels",
        8,
        lambda row: row.split("\t")[0] + "\t70",
        r"labels.dat:8: .* neither column continues the row index",
    ),
    "labels that disagree": ("labels", 8, lambda row: "4.25\t" + row.split("\t")[1], r"labels.dat:8: label 4.25, but .* says"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_bad_rows_are_named_and_leave_nothing_behind(case, challenge):
    name, line, change, message = BAD_ROWS[case]
    path = challenge / f"{name}.dat"
    damage(path, line, change)
    with pytest.raises(InputError, match=message) as error:
        open_pairs([challenge])
    assert "\n" not in str(error.value)
    assert not (challenge / f"{name}.dat.store").exists()
    assert not list(challenge.glob(".*"))


@pytest.mark.parametrize("name", ["sentences", "labels"])
def test_options_without_effect_on_these_files_are_not_advised(name, challenge):
    for line in (3, 4):
        damage(challenge / f"{name}.dat", line, lambda row: re.sub(r"\d\.\d+", "7", row))
    with pytest.raises(InputError, match=r"dat:3: label 7 is out of range, expected 0 to 5(; 2 bad rows in all .*)?$") as error:
        open_pairs([challenge])
    assert "--" not in str(error.value)


@pytest.mark.parametrize("name", ["tokens1", "tokens2", "labels", "sentences"])
def test_files_of_different_length(name, challenge):
    path = challenge / f"{name}.dat"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(InputError, match=r"1[12] rows, expected 1[12] as in"):
        open_pairs([challenge])


def test_token_files_of_different_width(challenge):
    path = challenge / "tokens2.dat"
    path.write_text("1 3 0.5 0.5 0.5\n" * 12)
    with pytest.raises(InputError, match="dim is 3, expected 768 as in"):
        open_pairs([challenge], dim=None)


def test_ambiguity_names_the_candidates(challenge):
    shutil.copy(challenge / "tokens1.dat", challenge / "tokens3.dat")
    with pytest.raises(InputError, match=re.escape("3 files of tokens (tokens1.dat, tokens2.dat, tokens3.dat), expected 2")):
        find_dat_files([challenge])
    (challenge / "tokens3.dat").unlink()
    shutil.copy(challenge / "labels.dat", challenge / "labels2.dat")
    with pytest.raises(InputError, match=re.escape("2 files of labels (labels.dat, labels2.dat)")):
        find_dat_files([challenge])


def test_a_folder_or_a_dataset_is_given_alone(challenge, tmp_path):
    """What came after a folder was not even looked for."""
    for paths in (
        [challenge, challenge / "nowhere"],
        [challenge / "tokens1.dat", challenge],
        ["hf:some/data", "x.csv"],
        [challenge, challenge],
    ):
        with pytest.raises(InputError, match=r"(challenge|hf:some/data): is a .*, expected it alone; only the challenge's"):
            open_pairs(paths)


def test_a_file_given_twice(challenge):
    again = challenge / ".." / challenge.name / "tokens1.dat"
    with pytest.raises(InputError, match=r"tokens1.dat: given twice, expected different files"):
        open_pairs([challenge / "tokens1.dat", again, challenge / "labels.dat"])


def test_missing_files(challenge, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty: no .dat or .dat.gz file in this folder"):
        open_pairs([tmp_path / "empty"])
    with pytest.raises(InputError, match="no such file"):
        open_pairs([challenge / "tokens1.dat", challenge / "nowhere.dat"])
    (challenge / "tokens1.dat").unlink()
    with pytest.raises(InputError, match=r"expected 2 files of token embeddings, .* found tokens2.dat"):
        open_pairs([challenge])


def test_no_labels_at_all(challenge):
    (challenge / "sentences.dat").unlink()
    (challenge / "labels.dat").unlink()
    with pytest.raises(InputError, match="no labels"):
        open_pairs([challenge])


def test_sentences_without_labels_beside_a_file_of_labels(challenge):
    path = challenge / "sentences.dat"
    path.write_text("".join(line.rpartition("\t")[0] + "\n" for line in path.read_text().splitlines()))
    with pytest.raises(InputError, match=r"sentences\.dat:1: 2 columns, expected 3 separated by tabs: two sentences and a label"):
        open_pairs([challenge])


@pytest.mark.parametrize(
    ("rows", "kind"),
    [
        ("0 768\n1 768" + " 0.5" * 768, "tokens"),
        ("0 3\n0 3\n", "tokens"),
        ("0 3\n1 3\n", "labels"),
        ("0 3\n", "labels"),
        ("0,5\n1,5\n", "labels"),
        ("0 0\n0 1\n", "labels"),
    ],
)
def test_a_first_sentence_without_tokens_is_no_label(rows, kind, tmp_path):
    (tmp_path / "x.dat").write_text(rows)
    assert recognise(tmp_path / "x.dat") == kind


def test_labels_with_a_header_are_told_so(challenge):
    path = challenge / "labels.dat"
    path.write_text("label\tindex\n" + path.read_text())
    with pytest.raises(InputError, match=r"labels\.dat:1: 'label index' is not two numbers, .* without a header"):
        open_pairs([challenge])


def test_a_file_of_another_kind(tmp_path):
    (tmp_path / "x.dat").write_text("Dear diary,\n")
    with pytest.raises(InputError, match=r"x.dat:1: not one of the challenge's files"):
        recognise(tmp_path / "x.dat")
    (tmp_path / "empty.dat").write_text("\n")
    with pytest.raises(InputError, match="the file is empty"):
        recognise(tmp_path / "empty.dat")


def test_damaged_compression(challenge):
    content = gzip.compress((challenge / "tokens1.dat").read_bytes())
    (challenge / "tokens1.dat").unlink()
    (challenge / "tokens1.dat.gz").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="damaged compression"):
        open_pairs([challenge])
    assert not list(challenge.glob("*.store"))


def test_the_command_ends_with_one_line_and_status_2(challenge, tmp_path):
    damage(challenge / "tokens1.dat", 5, drop_last)
    message = last_line(run_script("train.py", "--data", challenge, "--run_dir", tmp_path / "run", "--out", tmp_path / "model.bin"))
    assert re.search(r"^error: .*tokens1.dat:5: \d+ numbers", message)
    assert not (tmp_path / "run").exists() and not (tmp_path / "model.bin").exists()
