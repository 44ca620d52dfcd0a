"""Files as people have them: what is read from each form, what is said of labels, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from forms import BINARY, FIRST, GRADED, NEGATIVES, PAIRS, SECOND, TEXT_FORMS, compressed, parquet, plain, rows_as, tabs, write_form

from common.cli import make_parser
from common.errors import InputError
from tokens.text_pairs import ReadOptions, add_read_arguments, read_options, read_text_pairs


@pytest.mark.parametrize("name", TEXT_FORMS)
def test_each_form_gives_its_pairs(name, tmp_path):
    pairs = read_text_pairs(write_form(tmp_path, name))
    labels = TEXT_FORMS[name][2]
    assert (pairs.first, pairs.second) == (FIRST, SECOND)
    assert pairs.has_labels == (labels is not None)
    np.testing.assert_allclose(pairs.labels, [5.0] * 6 if labels is None else labels, atol=1e-6)
    assert pairs.negatives == ([[NEGATIVES[i], NEGATIVES[i - 1]] for i in range(6)] if "negatives" in name else [])


@pytest.mark.parametrize("suffix", ["gz", "zst"])
@pytest.mark.parametrize("name", ["Quora", "JSON lines", "three columns"])
def test_compression_is_seen_in_the_file_and_not_in_its_name(name, suffix, tmp_path):
    path = write_form(tmp_path, name)
    assert read_text_pairs(compressed(path, suffix)).first == FIRST


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_encodings(encoding, tmp_path):
    mark = {"utf-16-le": b"\xff\xfe", "utf-16-be": b"\xfe\xff"}.get(encoding, b"")
    (tmp_path / "x.csv").write_bytes(mark + plain().encode(encoding))
    assert read_text_pairs(tmp_path / "x.csv").first == FIRST


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("make", [plain, lambda: json.dumps({"sentence1": "a", "sentence2": "b"}) + "\n"])
def test_utf16_without_its_mark_is_no_text(make, encoding, tmp_path):
    (tmp_path / "x").write_bytes(make().encode(encoding))
    for skip in (False, True):
        with pytest.raises(InputError, match=r"x:1: has a NUL byte, as UTF-16 without its byte-order mark has; save the file as"):
            read_text_pairs(tmp_path / "x", ReadOptions(skip_bad_rows=skip))


def test_parquet_and_saved_datasets(tmp_path):
    from datasets import Dataset, DatasetDict

    parquet(tmp_path / "x.bin")
    data = Dataset.from_dict({"query": FIRST, "document": SECOND, "label": GRADED})
    data.save_to_disk(tmp_path / "saved")
    DatasetDict({"train": data, "test": data.select(range(2))}).save_to_disk(tmp_path / "splits")
    for source in (tmp_path / "x.bin", tmp_path / "saved", tmp_path / "splits", f"hf:{tmp_path}/splits:train"):
        pairs = read_text_pairs(source)
        assert (pairs.first, pairs.second) == (FIRST, SECOND)
        np.testing.assert_allclose(pairs.labels, GRADED)
    assert len(read_text_pairs(f"hf:{tmp_path}/splits:test")) == 2
    with pytest.raises(InputError, match="no split 'dev', expected one of train, test"):
        read_text_pairs(f"hf:{tmp_path}/splits:dev")


@pytest.mark.parametrize("columns", ["first=uno,second=tres,label=cuatro", "first=1,second=3,label=4"])
def test_columns_by_name_and_by_number(columns, tmp_path):
    rows = [["uno", "dos", "tres", "cuatro"], *([a, "x", b, label] for (a, b), label in zip(PAIRS, GRADED, strict=True))]
    (tmp_path / "x.csv").write_text(rows_as(rows))
    pairs = read_text_pairs(tmp_path / "x.csv", ReadOptions(columns=columns))
    assert pairs.first == FIRST and pairs.second == SECOND
    np.testing.assert_allclose(pairs.labels, GRADED)
    with pytest.raises(InputError, match="cannot tell which columns"):
        read_text_pairs(tmp_path / "x.csv")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [["a b", "c d", 1, 2], ["e f", "g h", 3, 1]],
            r"x\.csv:1: the label could be column 3 or 4 \(1 'a b', 2 'c d', 3 '1', 4 '2'\); say",
        ),
        ([["a b", "c d", "e f", 1]] * 2, "cannot tell which columns are the two sentences"),
        ([["a b", "c d", 70], ["e f", "g h", 12]], "no column looks like a label of -1 to 5"),
        ([["sentence1", "sentence2", "score", "label"], ["a", "b", 1, 1]], "the label could be column 3 or 4"),
        ([["sentence1", "question1", "text2"], ["a", "b", "c"]], "the first could be column 1 or 2"),
        ([["one sentence"]], "cannot tell which columns"),
        (
            [["id", "title", "body", "stars"], [7, "a b", "c d", 4], [8, "e f", "g h", 2]],
            r"x\.csv:1: cannot tell .* row 1 looks like a header .* \(1 'id', 2 'title', 3 'body', 4 'stars'\); say",
        ),
        ([["foo", "bar", "baz"], ["a b", "c d", 4], ["e f", "g h", 2]], "row 1 looks like a header"),
    ],
)
def test_two_ways_or_none_show_the_first_row_and_the_option(rows, message, tmp_path):
    (tmp_path / "x.csv").write_text(rows_as(rows))
    with pytest.raises(InputError, match=message) as caught:
        read_text_pairs(tmp_path / "x.csv")
    assert "--columns first=..,second=..,label=.." in str(caught.value)


def as_json_lines(rows):
    return "".join(json.dumps(dict(zip(rows[0], row, strict=True))) + "\n" for row in rows[1:])


@pytest.mark.parametrize("make", [rows_as, as_json_lines])
def test_numbers_under_an_unknown_name_are_not_silently_left_out(make, tmp_path):
    names = ["text_a", "text_b", "negative", "sim"]
    rows = [[*pair, "None.", label] for pair, label in zip(PAIRS, GRADED, strict=True)]
    (tmp_path / "x").write_text(make([names, *rows]))
    without = "--columns first=text_a,second=text_b,negative=negative"
    message = (
        f"x:1: column 4 'sim' holds numbers, but its name is unknown; if they are labels say {without},label=4, if not {without}"
    )
    with pytest.raises(InputError) as caught:
        read_text_pairs(tmp_path / "x")
    assert str(caught.value) == f"{tmp_path}/{message}"
    columns = without.removeprefix("--columns ")
    unlabelled = read_text_pairs(tmp_path / "x", ReadOptions(columns=columns))
    assert (unlabelled.first, unlabelled.has_labels, unlabelled.negatives[0]) == (FIRST, False, ["None."])
    for label in ("4", "sim"):
        labelled = read_text_pairs(tmp_path / "x", ReadOptions(columns=f"{columns},label={label}"))
        np.testing.assert_allclose(labelled.labels, GRADED)


@pytest.mark.parametrize("numbers", [[0, 1, 2], [10, 20, 20], [0.5, 9, 1], ["01", "02", "01"], [1, "x", 1], [1, "", 1]])
def test_other_numbers_beside_two_sentences_are_left_out(numbers, tmp_path):
    rows = [["anchor", "positive", "sim"], *([f"a {i}", f"b {i}", number] for i, number in enumerate(numbers))]
    (tmp_path / "x.csv").write_text(rows_as(rows))
    assert not read_text_pairs(tmp_path / "x.csv").has_labels


@pytest.mark.parametrize(
    ("labels", "name", "expected", "why"),
    [
        ([0, 2.5, 4], "score", [0, 2.5, 4], "0 to 5 because some are above 1"),
        ([0, 2.5, 5], "score", [0, 2.5, 5], ""),
        ([0, 0.5, 1], "score", [0, 2.5, 5], "0 to 1 because none is above 1"),
        ([0, 1, 1], "is_duplicate", [0, 5, 5], "0 to 1 because each is 0 or 1"),
        ([-1, 0, 1], "similarity", [0, 2.5, 5], "-1 to 1 because some are below 0"),
        ([1, 3, 5], "relatedness_score", [0, 2.5, 5], "1 to 5 because SICK's"),
        ([1, 3, 5], "score", [1, 3, 5], "0 to 5 because some are above 1"),
    ],
)
def test_the_scale_of_labels_is_said(labels, name, expected, why, tmp_path):
    rows = [["sentence1", "sentence2", name], *([f"a {i}", f"b {i}", label] for i, label in enumerate(labels))]
    (tmp_path / "x.csv").write_text(rows_as(rows))
    pairs = read_text_pairs(tmp_path / "x.csv")
    np.testing.assert_allclose(pairs.labels, expected)
    assert why in pairs.scale and bool(why) == bool(pairs.scale)


def test_another_scale_by_its_option_and_labels_that_contradict(tmp_path):
    rows = [["sentence1", "sentence2", "score"], *([f"a {i}", f"b {i}", label] for i, label in enumerate((20, 100, 0)))]
    (tmp_path / "x.csv").write_text(rows_as(rows))
    np.testing.assert_allclose(read_text_pairs(tmp_path / "x.csv", ReadOptions(label_range=(0, 100))).labels, [1, 5, 0])
    for skip in (False, True):
        with pytest.raises(InputError) as caught:
            read_text_pairs(tmp_path / "x.csv", ReadOptions(skip_bad_rows=skip))
        assert str(caught.value) == (
            f"{tmp_path}/x.csv:2: label 20 is out of range, expected -1 to 5, as are 2 labels of 3; "
            "--label_range LOW,HIGH names another scale"
        )
    with pytest.raises(InputError, match=r"x\.csv:3: label 100 is out of range, expected 0 to 50"):
        read_text_pairs(tmp_path / "x.csv", ReadOptions(label_range=(0, 50)))
    rows[1:] = [["a", "b", -0.5], ["c", "d", 0.5], ["e", "f", 4]]
    (tmp_path / "x.csv").write_text(rows_as(rows))
    with pytest.raises(
        InputError, match=r"x\.csv:4: label 4 does not fit the others, which are taken as -1 to 1 because some are below"
    ):
        read_text_pairs(tmp_path / "x.csv")


def test_many_labels_outside_of_the_scale_are_of_another_scale_and_few_are_mistakes(tmp_path):
    """Left out, labels of 0 to 10 above 5 would leave the lowest ones, at twice their similarity."""
    for bad, refused in ((2, True), (1, False)):
        rows = [[f"a {i}", f"b {i}", 7 if i < bad else i % 5] for i in range(10)]
        (tmp_path / "x.csv").write_text(rows_as([["sentence1", "sentence2", "score"], *rows]))
        if refused:
            with pytest.raises(InputError, match=r"x\.csv:2: label 7 .* as are 2 labels of 10; --label_range"):
                read_text_pairs(tmp_path / "x.csv", ReadOptions(skip_bad_rows=True))
        else:
            assert read_text_pairs(tmp_path / "x.csv", ReadOptions(skip_bad_rows=True)).skipped == bad
        given = read_text_pairs(tmp_path / "x.csv", ReadOptions(label_range=(0, 5), skip_bad_rows=True))
        assert given.skipped == bad  # who names the scale decides


def test_the_help_says_how_to_write_a_range_below_0():
    parser = make_parser("x.py", "")
    add_read_arguments(parser)
    assert "with = below 0: --label_range=-1,1" in " ".join(parser.format_help().split())
    assert read_options(parser.parse_args(["--label_range=-1,1"])).label_range == (-1, 1)


def test_bad_rows_are_counted_and_the_first_five_listed(tmp_path):
    good = [[*pair, label] for pair, label in zip(PAIRS, GRADED, strict=True)]
    bad = [["a", "", 3], ["b", "c", "huh"], ["d", "e"], ["f", "g", 7], ["h", "i", ""], ["j", "k", "nan"]]
    (tmp_path / "x.csv").write_text(rows_as([*good, *bad]))
    with pytest.raises(InputError) as caught:
        read_text_pairs(tmp_path / "x.csv")
    message = str(caught.value)
    assert message.startswith(
        f"{tmp_path}/x.csv:7: column 2 is empty, expected a sentence; 6 bad rows in all (line 8: label 'huh' is"
    )
    assert "line 11" in message and "line 12" not in message and message.endswith("--skip_bad_rows leaves them out")
    pairs = read_text_pairs(tmp_path / "x.csv", ReadOptions(skip_bad_rows=True))
    assert pairs.first == FIRST and pairs.skipped == 6


def test_blank_and_undecodable_lines_are_bad_rows_and_blank_ends_are_none(tmp_path):
    lines = plain().encode().splitlines(keepends=True)
    (tmp_path / "x.csv").write_bytes(b"".join([lines[0], b"\n", lines[1], b"a \xff,b,2\n", *lines[2:], b"\n \n"]))
    with pytest.raises(
        InputError, match=r"x\.csv:2: blank line, expected a row; 2 bad rows in all \(line 4: not UTF-8 \(byte 3 of"
    ):
        read_text_pairs(tmp_path / "x.csv")
    assert read_text_pairs(tmp_path / "x.csv", ReadOptions(skip_bad_rows=True)).first == FIRST


def test_a_very_long_cell_is_read(tmp_path):
    rows = [[*PAIRS[0], 1], ["word " * 40_000, "b", 2]]
    (tmp_path / "x.csv").write_text(rows_as(rows))
    assert read_text_pairs(tmp_path / "x.csv").first == [FIRST[0], rows[1][0]]
    (tmp_path / "x.csv").write_text('a,b,1\n"c' + ("word " * 200 + "\n") * 10_000)
    with pytest.raises(InputError, match=r"x\.csv:2: cannot split the row into cells \(field larger than field limit"):
        read_text_pairs(tmp_path / "x.csv")


def test_quotes_between_tabs_are_text_unless_numbers_are_quoted(tmp_path):
    (tmp_path / "x.tsv").write_text(tabs([['"Go home', "He left", 2], ['"Stay"', "He stayed", 3.5]]))
    assert read_text_pairs(tmp_path / "x.tsv").first == ['"Go home', '"Stay"']
    (tmp_path / "x.tsv").write_text('"Stay"\t"He\nstayed"\t"3.5"\n"Go ""home"""\t"He left"\t"2"\n')
    pairs = read_text_pairs(tmp_path / "x.tsv")
    assert pairs.first == ["Stay", 'Go "home"'] and pairs.second[0] == "He\nstayed"


def test_json_rows_of_another_kind_and_missing_fields(tmp_path):
    rows = [json.dumps({"sentence1": "a b", "sentence2": "c", "score": 2}), "[1]", "{", json.dumps({"sentence1": "x"}), ""]
    (tmp_path / "x.jsonl").write_text("\n".join(rows))
    with pytest.raises(InputError, match=r"x\.jsonl:2: not a JSON object.*3 bad rows.*line 3: not JSON.*line 4: column 2 is empty"):
        read_text_pairs(tmp_path / "x.jsonl")
    (tmp_path / "y.jsonl").write_text("\n".join(json.dumps([a, b, label]) for (a, b), label in zip(PAIRS, BINARY, strict=True)))
    assert read_text_pairs(tmp_path / "y.jsonl").second == SECOND


@pytest.mark.parametrize("is_array", [False, True])
def test_a_key_missing_from_the_first_json_object_is_a_column_still(is_array, tmp_path):
    rows = [{"sentence1": a, "sentence2": b, "score": label} for (a, b), label in zip(PAIRS, GRADED, strict=True)]
    del rows[0]["score"]
    (tmp_path / "x").write_text(json.dumps(rows) if is_array else "\n".join(map(json.dumps, rows)))
    with pytest.raises(InputError, match=r"x:1: label empty is not a number"):
        read_text_pairs(tmp_path / "x")
    pairs = read_text_pairs(tmp_path / "x", ReadOptions(skip_bad_rows=True))
    assert pairs.first == FIRST[1:] and pairs.has_labels and pairs.labels.tolist() == GRADED[1:]


def test_rows_of_one_json_array_are_numbered_and_damage_has_its_line(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('[{"sentence1": "a", "sentence2": "b"},\n\n {"sentence2": "c"}, [1]]')
    with pytest.raises(InputError, match=r"x\.json:2: column 1 is empty.*2 bad rows.*line 3: not a JSON object, expected one"):
        read_text_pairs(path)
    assert len(read_text_pairs(path, ReadOptions(skip_bad_rows=True))) == 1
    path.write_text('[\n{"sentence1": "a", "sentence2": "b"},\n{"sentence1" ')
    with pytest.raises(InputError, match=r"x\.json:3: not JSON \(Expecting ':' delimiter\), expected one array of objects"):
        read_text_pairs(path)
    path.write_bytes(b'[{"sentence1": "a",\n"sentence2": "\xff"}]')
    with pytest.raises(InputError, match=r"x\.json:2: not UTF-8 \(byte 15 of the line\)"):
        read_text_pairs(path)


@pytest.mark.parametrize(
    "content",
    [b"", b"\n\n", b"sentence1,sentence2,score\n", b"\x1f\x8b\x00", b"PAR1nothing", b"\xff\xfea", b"\x28\xb5\x2f\xfd\x00"],
)
def test_files_with_nothing_in_them_or_damaged(content, tmp_path):
    (tmp_path / "x.csv").write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_text_pairs(tmp_path / "x.csv")
    assert str(caught.value).startswith(f"{tmp_path}/x.csv") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "é,à,1\nè,ç,2\n".encode("cp1252"),
            r"x:1: not UTF-8 \(byte 1 of the line\); save .*; none of the first 2 rows can be read",
        ),
        (b'{\n"sentence1": "a"}\n', r"x:1: not JSON \(.*\), expected an object or array per line; none of the first 2 rows"),
        (b"PK\x03\x04\x14\x00\n\xff", "x: is an Excel workbook or another zip file, expected a table; save it as CSV"),
        (b"\n \n", "x:1: the file has no rows"),
    ],
)
def test_a_file_of_bad_rows_alone_says_what_is_wrong_with_the_first(content, message, tmp_path):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_text_pairs(tmp_path / "x")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b,1\na,b\n", "x:2: 2 columns, expected 3"),
        ("a\tb\t1\na\tb\t2\t3\n", "x:2: 4 columns, expected 3"),
        ('a,b,1\n"a"x,b,2\n', r"x:2: cannot split the row into cells \(',' expected after '\"'\); check its quotes"),
        ('a,b,1\n"a,b,2\n', r"x:2: cannot split the row into cells \(unexpected end of data\)"),
        ("a\tb\t1\na\tb\t1_0\na\tb\t3\n", "x:2: label '1_0' is not a number"),
        ("a\tb\t1\na\tb\tinf\na\tb\t3\n", "x:2: label inf is out of range, expected -1 to 5"),
        ("a\tb\tscore\n", "cannot tell which columns are the two sentences"),
        ("a b,c d,1\ne f,g h,x\n", "no column looks like a label"),  # x is no negative
        ("id,sentence1,text,score\na b,c d,1\ne f,g h,2\n", "x:1: the header has 4 columns, the rows have 3"),
        ('{"sentence1": "\\ud800 a", "sentence2": "b", "score": 1}', r"x:1: column 1 has \\ud800, which is half a character"),
        ('["a b", "c d", 1%s]' % ("0" * 400), "no column looks like a label"),
    ],
)
def test_bad_files_are_named_with_their_line(content, message, tmp_path):
    (tmp_path / "x").write_text(content)
    with pytest.raises(InputError, match=message):
        read_text_pairs(tmp_path / "x")


def test_folders_and_missing_files(tmp_path):
    with pytest.raises(InputError, match="is a folder"):
        read_text_pairs(tmp_path)
    with pytest.raises(InputError, match="no such file"):
        read_text_pairs(tmp_path / "x.csv")


def test_text_in_brackets_is_no_json_and_json_in_utf16_is(tmp_path):
    (tmp_path / "x").write_text("[Music] A song.\tA tune.\t4\n[1] A note.\tA remark.\t3.5\n")
    assert read_text_pairs(tmp_path / "x").first == ["[Music] A song.", "[1] A note."]
    (tmp_path / "x").write_text('["a b", "c d", 1]\n', encoding="utf-16")
    assert read_text_pairs(tmp_path / "x").second == ["c d"]


@pytest.mark.parametrize("line", ["sep=;\n", "SEP=;\r\n"])
def test_the_line_in_which_excel_names_the_delimiter_is_no_row(line, tmp_path):
    content = line + "sentence1;sentence2;score\na;b;3,5\nc;d;huh\n"
    (tmp_path / "x.csv").write_text(content, encoding="utf-8-sig", newline="")
    assert read_text_pairs(tmp_path / "x.csv", ReadOptions(skip_bad_rows=True)).labels.tolist() == [3.5]
    with pytest.raises(InputError, match=r"x\.csv:4: label 'huh' is not a number"):
        read_text_pairs(tmp_path / "x.csv")


def test_commas_of_prose_are_no_columns(tmp_path):
    (tmp_path / "x").write_text("3,5;Oh, a cat;A dog\n1,25;So, a bird;A fish\n")
    pairs = read_text_pairs(tmp_path / "x")
    assert pairs.first == ["Oh, a cat", "So, a bird"] and pairs.labels.tolist() == [3.5, 1.25]


def test_columns_by_number_are_not_looked_for_among_cells(tmp_path):
    (tmp_path / "x").write_text("a\tb\t1\nc\td\t2\n")
    assert read_text_pairs(tmp_path / "x", ReadOptions(columns="first=1,second=2,label=3")).labels.tolist() == [1, 2]
    (tmp_path / "x").write_text("a\tb\t4.x\nc\td\t2\n")
    with pytest.raises(InputError, match=r"x:1: label '4\.x' is not a number"):
        read_text_pairs(tmp_path / "x", ReadOptions(columns="first=1,second=2,label=3"))


@pytest.mark.parametrize(
    ("header", "is_one"), [("id\tquestion1\tquestion2\n", True), ("\tText\tBody\n", True), ("id\tquestion\tWhy?\n", False)]
)
def test_a_header_over_columns_by_number_without_labels_is_known_by_its_names(tmp_path, header, is_one):
    (tmp_path / "x").write_text(f"{header}1\ta\tb\n")
    assert read_text_pairs(tmp_path / "x", ReadOptions(columns="first=2,second=3")).first[-1:] == ["a"]
    assert len(read_text_pairs(tmp_path / "x", ReadOptions(columns="first=2,second=3"))) == 2 - is_one


def test_the_header_is_left_out_after_a_bad_row(tmp_path):
    (tmp_path / "x").write_bytes(b"\xff\nsentence1\tsentence2\tscore\na\tb\t3\n")
    with pytest.raises(InputError, match=r"x:1: not UTF-8 \(byte 1"):
        read_text_pairs(tmp_path / "x")
    assert read_text_pairs(tmp_path / "x", ReadOptions(skip_bad_rows=True)).first == ["a"]


def test_half_a_character_is_a_bad_row(tmp_path):
    path = tmp_path / "pairs.jsonl"
    rows = ['{"sentence1": "a", "sentence2": "b", "score": 1}', '{"sentence1": "a \\ud800", "sentence2": "b", "score": 2}']
    path.write_text("\n".join(rows) + "\n")
    with pytest.raises(InputError, match=r"pairs.jsonl:2: "):
        read_text_pairs(path)
    assert read_text_pairs(path, ReadOptions(skip_bad_rows=True)).skipped == 1
