"""A corpus is encoded once, whatever stops it, and read back as it was; other data or another model do not mix with it."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from conftest import ROOT, WORDS, last_line, run_script

from corpus.encoding import PartEncoder
from corpus.index import FORMATS, PRECISIONS, CorpusFolder
from corpus.on_ray import encode_on_ray
from evaluation.quantization import bit_similarity, from_int8, to_bits, to_int8
from portable.small_encoder import SmallEncoder

N = 300
READ_PARQUET = """
import os, sys
import pyarrow.parquet
from corpus.index import CorpusFolder
from corpus.records import Records

before = len(os.listdir("/proc/self/task"))
folder = CorpusFolder.open(sys.argv[1])
print(len(folder.vectors(0)), len(folder.rows(0)[0]), len(list(Records(str(folder.path / "part-00000.parquet")))))
print(len(os.listdir("/proc/self/task")) - before)
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "lines.txt"
    rng = np.random.default_rng(0)
    path.write_text("".join(" ".join(rng.choice(WORDS, rng.integers(1, 15))) + "\n" for _ in range(N)))
    return path


@pytest.fixture
def encoded(tiny_small, data, tmp_path, run_here):
    """Runs encode.py, checks that it succeeds, and gives the folder."""

    def run(name: str, *options: str) -> CorpusFolder:
        done = run_here("encode.py", "--data", data, "--model", tiny_small, "--out", tmp_path / name, "--part_rows", "64", *options)
        assert done.returncode == 0, done.stderr
        return CorpusFolder.open(tmp_path / name)

    return run


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_vectors_are_the_models_in_every_format_and_precision(encoded, tiny_small, data, file_format, precision):
    folder = encoded("out", "--format", file_format, "--precision", precision, "--processes", "1")
    lines = data.read_text().splitlines()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # truncated
        wanted = SmallEncoder(tiny_small).encode(lines)
    ours = np.concatenate([folder.vectors(number) for number in range(folder.plan.parts)])
    if precision == "bits":
        np.testing.assert_array_equal(to_bits(ours), to_bits(wanted))
        angles = np.arccos(bit_similarity(*np.split(to_bits(wanted), 2), 16))
        np.testing.assert_allclose((ours[:150] * ours[150:]).sum(1), 1 - 2 * angles / np.pi, atol=1e-5)
    elif precision == "int8":
        bounds = np.array(folder.plan.value_range, np.float32)
        np.testing.assert_allclose(ours, from_int8(to_int8(wanted, bounds), bounds), atol=1e-2)
    else:
        np.testing.assert_allclose(ours, wanted, atol=1e-6 if precision == "float32" else 1e-3)
    rows = [folder.rows(number) for number in range(folder.plan.parts)]
    assert [own for ids, _ in rows for own in ids] == list(range(N))
    assert [text for _, texts in rows for text in texts] == lines


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads as Linux shows them")
def test_reading_parquet_starts_no_threads(encoded):
    folder = encoded("out", "--format", "parquet", "--processes", "1")
    done = subprocess.run([sys.executable, "-c", READ_PARQUET, folder.path], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["64", "64", "64", "0"]  # rows, and threads, which may abort the process as it ends


def wait_for_end(group: int) -> None:
    """Wait until no process of a group is left; fails where one stays."""
    deadline = time.monotonic() + 60
    with pytest.raises(ProcessLookupError):
        while time.monotonic() < deadline:
            os.killpg(group, 0)
            time.sleep(0.05)


def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(tiny_small, data, tmp_path):
    command = ["encode.py", "--data", data, "--model", tiny_small, "--part_rows", "16", "--processes", "2", "--out"]
    assert run_script(*command, tmp_path / "whole").returncode == 0
    chance = random.Random(0)
    for _ in range(4):
        process = subprocess.Popen([sys.executable, *map(str, command), str(tmp_path / "killed")], cwd=ROOT, start_new_session=True)
        time.sleep(chance.uniform(0.5, 4))
        process.send_signal(signal.SIGKILL)
        process.wait()
        wait_for_end(process.pid)
    done = run_script(*command, tmp_path / "killed")
    assert done.returncode == 0, done.stderr
    ours = {name: own for name, own in contents(tmp_path / "killed").items() if not name.startswith(".")}
    assert ours == contents(tmp_path / "whole")
    assert "are there already" in run_script(*command, tmp_path / "killed").stdout


def test_ctrl_c_ends_all_processes_at_once_with_one_line(tiny_small, data, tmp_path):
    lines = tmp_path / "long.txt"
    lines.write_text(data.read_text() * 400)
    command = [
        "encode.py",
        "--data",
        lines,
        "--model",
        tiny_small,
        "--part_rows",
        "8",
        "--processes",
        "2",
        "--out",
        tmp_path / "out",
    ]
    process = subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    while not list((tmp_path / "out").glob("part-*.npy")):
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and errors == "stopped; the same command resumes\n"
    wait_for_end(process.pid)


def test_another_corpus_model_or_setting_is_refused_and_says_what_differs(tiny_small, data, tmp_path, encoded, run_here):
    encoded("out", "--processes", "1")
    before = contents(tmp_path / "out")
    other, model = tmp_path / "other.txt", tmp_path / "model"
    other.write_text(data.read_text() + "cat\n")
    shutil.copytree(tiny_small, model)
    (model / "__pycache__").mkdir()
    (model / "__pycache__" / "small_encoder.pyc").write_text("as Python leaves it")
    (model / "README.md").write_text("another card")
    options = ["--data", data, "--part_rows", "64", "--out", tmp_path / "out"]
    assert "300 of 300 sentences are there already" in run_here("encode.py", *options, "--model", model).stdout
    (model / "note").write_text("another")
    for changed, message in (
        (["--data", other], "data_identity was .*rows was 300, is 301"),
        (["--model", model], "model_identity was"),
        (["--precision", "float16"], 'precision was "float32", is "float16"'),
    ):
        options = ["--data", data, "--model", tiny_small, "--part_rows", "64", "--out", tmp_path / "out", *changed]
        assert re.search(message, last_line(run_here("encode.py", *options)))
    assert contents(tmp_path / "out") == before
    (tmp_path / "mine").mkdir()
    for folder, out in ((tmp_path, "out"), (tmp_path / "mine" / "..", "out"), (tmp_path, "mine/../out")):
        inside = run_here("encode.py", "--data", folder, "--model", tiny_small, "--out", tmp_path / out)
        assert "is inside --data" in last_line(inside)
    beside = run_here("encode.py", "--data", tmp_path / "mine", "--model", tiny_small, "--out", tmp_path / "mine" / ".." / "new")
    assert "is inside --data" not in last_line(beside)
    (tmp_path / "mine" / "letter").write_text("dear")
    assert "holds something else" in last_line(
        run_here("encode.py", "--data", data, "--model", tiny_small, "--out", tmp_path / "mine")
    )


def test_truncated_and_left_out_sentences_are_counted(tiny_small, tmp_path, run_here):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text, "id": i}) + "\n" for i, text in enumerate(["cat", "", "dog " * 40])))
    options = ["--data", path, "--model", tiny_small, "--out", tmp_path / "out", "--processes", "1"]
    assert "a.jsonl:2: column 1 is empty" in last_line(run_here("encode.py", *options))
    done = run_here("encode.py", *options, "--skip_bad_rows")
    assert "1 bad rows left out" in done.stdout and "1 of 2 sentences were longer" in done.stdout, done.stdout + done.stderr
    assert CorpusFolder.open(tmp_path / "out").rows(0)[0] == ["0", "2"]


def test_on_the_cpu_all_cores_encode_whatever_the_device_is_called(tiny_small, tiny_bert, data, tmp_path, monkeypatch, run_here):
    called = mock.Mock(return_value=iter(()))
    monkeypatch.setattr("encode.encode_here", called)
    monkeypatch.setattr("os.cpu_count", lambda: 3)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    for model in (tiny_small, tiny_bert):
        run_here("encode.py", "--data", data, "--model", model, "--device", "auto", "--out", tmp_path / model.name)
        assert called.call_args.args[2:] == (3, "cpu")


def test_a_damaged_part_or_description_is_one_clear_line(encoded, run_here):
    folder = encoded("out", "--processes", "1")
    part, description = folder.path / "part-00001.npy", folder.path / "corpus.json"
    for path, message in ((part, "damaged; delete it"), (description, "is damaged, or of another version")):
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        assert message in last_line(run_here("search.py", "--index", folder.path, "cat"))
        path.write_bytes(whole)
    part.with_suffix(".jsonl").unlink()
    assert "1 of 5 parts are missing; run encode.py again" in last_line(run_here("search.py", "--index", folder.path, "cat"))


def test_parts_can_be_asked_for_in_any_order(encoded, tmp_path):
    folder = encoded("out", "--processes", "1")
    (tmp_path / "again").mkdir()
    again = CorpusFolder(tmp_path / "again", folder.plan)
    encode = PartEncoder(again.path, folder.plan)
    for number in (3, 1, 4, 0, 2):
        encode(number)
    assert contents(again.path) == {name: own for name, own in contents(folder.path).items() if name != "corpus.json"}


def test_ray_gives_the_same_vectors(encoded, tmp_path):
    pytest.importorskip("ray")
    folder = encoded("out", "--processes", "1")
    (tmp_path / "ray").mkdir()
    on_ray = CorpusFolder(tmp_path / "ray", folder.plan)
    assert sorted(number for number, _ in encode_on_ray(on_ray, on_ray.missing(), 2, "local")) == list(range(5))
    for number in range(5):
        np.testing.assert_allclose(on_ray.vectors(number), folder.vectors(number), atol=1e-6)
        assert on_ray.rows(number) == folder.rows(number)
