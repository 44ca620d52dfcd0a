"""The sentences of a corpus are read from any form of file, in order, once each, and bad ones are named or left out."""

from __future__ import annotations

import gzip
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.errors import InputError
from corpus.records import Record, Records

WANTED = [Record("a1", "The cat sat."), Record("b2", "A dog, ran; far"), Record("c3", "¿Dónde está?")]
TEXTS = [record.text for record in WANTED]


def write_all(folder):
    """The same three sentences in every form; gives files, options, and whether they have ids."""
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [{"id": record.id, "text": record.text} for record in WANTED]
    (folder / "lines.txt").write_text("\n".join(TEXTS) + "\n\n", encoding="utf-8")
    (folder / "packed.txt.gz").write_bytes(gzip.compress("\n".join(TEXTS).encode()))
    (folder / "table.csv").write_text("id,text\n" + "".join(f'{row["id"]},"{row["text"]}"\n' for row in rows), encoding="utf-8")
    (folder / "plain.tsv").write_text("".join(f"{row['id']}\t7\t{row['text']}\n" for row in rows), encoding="utf-8")
    (folder / "other.csv").write_text("key;title\n" + "".join(f'{row["id"]};"{row["text"]}"\n' for row in rows), encoding="utf-8")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "rows.parquet")
    (folder / "numbers.csv").write_text((folder / "table.csv").read_text(encoding="utf-8"), encoding="utf-8")
    columns = {"plain.tsv": "text=3,id=1", "numbers.csv": "text=2,id=1", "other.csv": "text=title,id=key"}
    return [(folder / name, columns.get(name), "txt" not in name) for name in sorted(path.name for path in folder.iterdir())]


def test_every_form_gives_the_same_sentences(tmp_path):
    for path, columns, has_ids in write_all(tmp_path):
        records = Records(str(path), columns)
        assert list(records) == list(records) == (WANTED if has_ids else [Record(i, text) for i, text in enumerate(TEXTS)]), path
        survey = records.survey()
        assert (survey.rows, survey.skipped) == (3, 0)


def test_a_folder_is_read_in_the_order_of_names_and_numbered_through(tmp_path):
    for name, lines in (
        ("b.TXT", "three, 3\nfour, 4\n"),
        ("a.txt", "one\ntwo\n"),
        (".hidden.txt", "no\n"),
        (".cache/a.txt", "no\n"),
        ("_SUCCESS", ""),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(lines)
    assert list(Records(str(tmp_path))) == [Record(i, text) for i, text in enumerate(["one", "two", "three, 3", "four, 4"])]


def test_columns_say_whether_a_first_row_of_unknown_names_is_a_header(tmp_path):
    (tmp_path / "a.csv").write_text("nr,Frage\n1,Was ist das?\n2,Wer ist da?\n")
    assert [record.text for record in Records(str(tmp_path / "a.csv"), "text=Frage")] == ["Was ist das?", "Wer ist da?"]
    assert next(iter(Records(str(tmp_path / "a.csv"), "text=2"))).text == "Frage"  # it is said to be no header
    (tmp_path / "b.csv").write_text("id,Frage\n7,Was ist das?\n")
    assert list(Records(str(tmp_path / "b.csv"), "text=Frage")) == [Record("7", "Was ist das?")]
    assert [record.id for record in Records(str(tmp_path / "b.csv"), "text=2")] == [0, 1]


def test_files_with_and_without_ids_do_not_mix(tmp_path):
    (tmp_path / "a.txt").write_text("one\n")
    (tmp_path / "b.csv").write_text("id,text\n7,two\n")
    with pytest.raises(InputError, match="some files have ids and others none"):
        Records(str(tmp_path)).survey()


def test_a_csv_file_of_one_column_is_read_as_pandas_wrote_it(tmp_path):
    pandas = pytest.importorskip("pandas")
    texts = ["The cat sat.", "A dog, ran", 'She said "no"', "two\nlines"]
    pandas.DataFrame({"text": texts}).to_csv(tmp_path / "a.csv", index=False)
    assert [record.text for record in Records(str(tmp_path / "a.csv"))] == texts


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=8).map(str.strip), min_size=1))
def test_lines_come_back_and_blank_ones_between_are_bad(tmp_path, lines):
    path = tmp_path / "lines.txt"
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    kept = [line for line in lines if line]
    records = Records(str(path), skip_bad_rows=True)
    assert [record.text for record in records] == kept
    while lines and not lines[-1]:
        lines = lines[:-1]
    if len(kept) == len(lines) > 0:
        assert list(Records(str(path))) == list(records)
    elif lines:
        assert records.survey().skipped == len(lines) - len(kept)
        with pytest.raises(InputError, match=r"lines\.txt:\d+: blank line"):
            list(Records(str(path)))


@pytest.mark.parametrize(
    ("name", "contents", "message"),
    [
        ("a.csv", "id,text\n1,one\n2,\n3\n", r"a.csv:3: column 2 is empty.*2 bad rows.*line 4: 1 columns"),
        ("a.jsonl", '{"text": "one"}\n{"text": 3}\nno\n', r"a.jsonl:2: column 1 is 3.*line 3: not JSON"),
        ("a.jsonl", '{"text": "\\ud800"}\n', r"half a character"),
        ("a.jsonl", '{"text": "one"}\n{"id": "b", "text": "two"}\n', r"a.jsonl:1: column 2 is empty, expected an id"),
        ("a.csv", "id,text\n,one\n", r"column 1 is empty, expected an id"),
        ("a.csv", "question1,question2\nare you?,am I?\n", r"cannot tell which column has the sentences.*--columns text="),
        ("a.csv", "nr,Frage\n1,Was ist das?\n2,Wer ist da?\n", r"row 1 looks like a header of unknown.*--columns text="),
        ("a.txt", "", r"no sentences"),
        ("a.jsonl", '"caf\\u00e9"\n"b, c"\n\n', r"a.jsonl:1: each line is a JSON string, expected an object per line, such as"),
        ("a.json", '["a b", "c", "d"]\n', r"a.json:1: the whole file is one array of strings, expected an object per line"),
        ("a.txt", b"caf\xe9\n", r"a.txt:1: not UTF-8"),
        ("a.txt", "one\n".encode("utf-16-le"), r"a.txt:1: has a NUL byte"),
    ],
)
def test_a_bad_row_is_named(tmp_path, name, contents, message):
    (tmp_path / name).write_bytes(contents if isinstance(contents, bytes) else contents.encode())
    with pytest.raises(InputError, match=message):
        Records(str(tmp_path / name)).survey()


def test_unknown_columns_and_empty_folders_are_errors(tmp_path):
    (tmp_path / "a.csv").write_text("id,text\n1,one\n")
    for columns, message in (
        ("text=nothing", "no column"),
        ("text=2,text=1", "2 columns as text"),
        ("label=1", "text=NAME or id=NAME"),
    ):
        with pytest.raises(InputError, match=message):
            list(Records(str(tmp_path / "a.csv"), columns))
    (tmp_path / "a.txt").write_text("id\ttext\n1\tone\n")
    with pytest.raises(InputError, match="leave out --columns, or name a table"):
        Records(str(tmp_path / "a.txt"), "text=2,id=1")
    assert len(list(Records(str(tmp_path), "text=text"))) == 3  # a row of the table, two lines
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no files"):
        Records(str(tmp_path / "empty"))
