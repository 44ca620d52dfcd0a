"""Runs that are stopped, caches that are shared or damaged, disks that are full."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, last_line, random_sentences, store_parts

import train as train_module
from common.cli import run_command
from common.errors import InputError
from common.files import write_atomically
from data import open_pairs
from evaluation.checkpoint import load_encoder
from model import EncoderConfig
from tokens.dat_files import read_token_file
from tokens.token_rows import format_token_row
from tokens.token_store import cached_store, create_store
from training import resume
from training.recipe import LossTerm, Phase, Recipe
from training.resume import SavedRun, arguments_to_save, identity_of_run, read_arguments
from training.trainer import Trainer

sys.path.insert(0, str(ROOT / "benchmarks" / "trust"))

import kill_and_resume

SMALL = ("--encoder.output_dim", "16", "--encoder.heads", "4", "--encoder.hidden_dim", "16", "--device", "cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return store_parts(tmp_path_factory.mktemp("stores"), train=120, dev=40)


def recipe(**changes) -> Recipe:
    phases = {
        "contrastive": Phase(epochs=1, losses={"nt_xent": LossTerm()}, min_label=3),
        "graded": Phase(epochs=2, losses={"cosent": LossTerm()}, select="loss"),
    }
    encoder = EncoderConfig(output_dim=16, heads=4, hidden_dim=16, dropout=0.2)
    return Recipe(**{"encoder": encoder, "phases": phases, "learning_rate": 3e-3, "batch_size": 32, "accumulation": 2} | changes)


class StoppedError(Exception):
    pass


def test_a_run_stopped_at_any_safe_point_resumes_to_the_same_bits(folder, tmp_path):
    """At each of them in turn; with dropout, accumulation and two criteria of selection."""
    sides = [open_pairs([folder / f"{name}.store"]) for name in ("train", "dev")]
    identity = identity_of_run(recipe(), *sides)
    undisturbed = Trainer(recipe(), *sides)
    points = []
    undisturbed.on_safe_point = lambda: points.append(1)
    expected = undisturbed.run()
    assert len(points) > 6
    for stop in range(1, len(points) + 1):
        saved = SavedRun(tmp_path / f"{stop}", identity, save_seconds=0)
        first = Trainer(recipe(), *sides)
        passed = []

        def save(saved=saved, first=first, passed=passed, stop=stop) -> None:
            saved._at_safe_point(first)
            passed.append(1)
            if len(passed) == stop:
                raise StoppedError

        first.on_safe_point = save
        with pytest.raises(StoppedError):
            first.run()
        second = Trainer(recipe(), *sides)
        torch.rand(stop)  # whatever happened to the generator between
        assert saved.begin(second, resume=True).startswith("Resuming in")
        found = second.run()
        assert repr(found.history) == repr(expected.history) and found.epoch == expected.epoch
        weights = found.encoder.state_dict()
        assert all(torch.equal(weights[name], value) for name, value in expected.encoder.state_dict().items())


def test_killed_runs_end_as_undisturbed_ones():
    counts = kill_and_resume.kill_and_resume(kills=2, seed=1)
    assert counts["identical"] == counts["runs"] > 0


@pytest.fixture
def train(folder, tmp_path, monkeypatch, capsys):
    """train.py within this process; what it printed, the errors it ended with, and its exit status."""

    def run(*options: str) -> tuple[str, str, int]:
        pairs = ("--data", folder / "train.store", "--validation", folder / "dev.store")
        places = ("--run_dir", tmp_path / "run", "--out", tmp_path / "model.bin")
        monkeypatch.setattr(sys, "argv", ["train.py", *map(str, (*pairs, *places)), *SMALL, *options])
        status = 0
        try:
            run_command(train_module.main)
        except SystemExit as end:
            status = end.code
        return *capsys.readouterr(), status

    return run


def test_ctrl_c_keeps_the_best_and_says_how_to_resume(train, tmp_path, monkeypatch):
    save, steps = SavedRun._at_safe_point, []

    def interrupted(saved, trainer) -> None:
        steps.append(1)
        if len(steps) == 5:
            os.kill(os.getpid(), signal.SIGINT)
        save(saved, trainer)

    monkeypatch.setattr(SavedRun, "_at_safe_point", interrupted)
    _, errors, status = train()
    assert status == 130 and len(steps) == 5 and "Traceback" not in errors
    assert "stopped in epoch 3." in errors and errors.endswith(" --resume\n") and f"--run_dir {tmp_path / 'run'}" in errors
    assert load_encoder(tmp_path / "run" / "best.bin").config.output_dim == 16
    assert not (tmp_path / "model.bin").exists()
    _, errors, status = train("--resume", "--batch_size", "32")
    assert status == 2 and "state.pt: this folder holds a different run: batch_size was 64, now 32." in errors
    before = run_files(tmp_path / "run")
    _, errors, status = train("--data", "nowhere.csv")
    assert status == 2 and "nowhere.csv: no such file" in errors and run_files(tmp_path / "run") == before
    printed, _, status = train("--resume")
    assert status == 0 and "Resuming in" in printed and (tmp_path / "model.bin").exists()


def run_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def train_until(moment: str, arguments: list[str]) -> None:
    """Run train.py, in a process of its own, which is killed at that moment."""

    def killed(*_, **__) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def killed_after_two(saved: SavedRun, contents: dict) -> None:
        save(saved, contents)
        if (saved.path.parent / "twice").exists():
            killed()
        (saved.path.parent / "twice").touch()

    if moment == "opening pairs":
        train_module.open_pairs = killed
    elif moment == "first step":
        SavedRun._at_safe_point = killed
    else:
        save, SavedRun._write = SavedRun._write, killed_after_two
    kill_and_resume.train_quietly(arguments)


@pytest.fixture
def places(folder, tmp_path, monkeypatch):
    """A working directory and another one; a run that is killed in the first; train.py in the second, as in `train`."""
    here, there = tmp_path / "here", tmp_path / "there"
    for place in (here, there):
        place.mkdir()
        (place / "model.bin").write_bytes(b"another model")
    (here / "stores").symlink_to(folder)
    pairs = ("--data", "stores/train.store", "--validation", "stores/dev.store", "--test=stores/dev.store")
    options = (*pairs, "--out", "a.bin", *SMALL, "--seed", "3", "--phases.graded.epochs", "4", "--save_seconds", "0")

    def kill(moment: str, *changes: str) -> None:
        arguments = [*options, "--run_dir", "run", *changes]
        with monkeypatch.context() as patch:
            patch.chdir(here)
            process = kill_and_resume.CONTEXT.Process(target=train_until, args=(moment, arguments))
            process.start()
        process.join(100)
        assert process.exitcode == -signal.SIGKILL

    monkeypatch.chdir(there)
    return here, there, kill, options


@pytest.mark.parametrize("moment", ["opening pairs", "first step", "second save"])
def test_a_killed_run_resumes_with_its_own_arguments_from_anywhere(moment, places, run_here, monkeypatch):
    here, there, kill, options = places
    kill(moment)
    resumed = run_here("train.py", "--run_dir", here / "run", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert ("Resuming in" in resumed.stdout) == (moment == "second save")
    assert "is finished: " in run_here("train.py", "--run_dir", here / "run", "--resume").stdout
    assert all((place / "model.bin").read_bytes() == b"another model" for place in (here, there))
    assert "test" in json.loads((here / "run" / "metrics.json").read_text()) and not list(there.glob("*/"))
    monkeypatch.chdir(here)
    assert run_here("train.py", *options, "--run_dir", "undisturbed", "--out", "expected.bin").returncode == 0
    assert (here / "a.bin").read_bytes() == (here / "expected.bin").read_bytes()


def test_what_is_given_in_resuming_wins_and_is_kept(places, run_here, monkeypatch):
    here, there, kill, _ = places
    kill("second save")
    monkeypatch.setattr(SavedRun, "run", lambda saved, trainer: saved._request_stop() or saved._at_safe_point(trainer))
    stopped = run_here("train.py", "--run_dir", here / "run", "--resume", "--out", "b.bin", "--threads", "2")
    assert stopped.returncode == 130
    assert stopped.stderr.endswith(f"To resume: python train.py --run_dir {here / 'run'} --resume\n")
    monkeypatch.undo()
    monkeypatch.chdir(here)
    assert "b.bin: " in run_here("train.py", "--run_dir", "run", "--resume").stdout
    assert (there / "b.bin").exists() and not (here / "a.bin").exists() and not (here / "b.bin").exists()


def test_a_new_run_killed_before_its_first_save_is_not_taken_for_the_one_before(places, run_here, monkeypatch):
    """Neither for a finished one nor, opening its pairs, for an unfinished one."""
    here, _, kill, options = places
    monkeypatch.chdir(here)
    assert run_here("train.py", *options, "--run_dir", "run").returncode == 0
    kill("first step", "--phases.graded.epochs", "2")
    unfinished = run_here("train.py", "--run_dir", "run", "--resume")
    assert unfinished.returncode == 0 and "No saved run in run/" in unfinished.stdout, unfinished.stderr
    kill("second save")
    arguments = (here / "run" / "arguments.json").read_bytes()
    kill("opening pairs", "--seed", "4", "--out", "c.bin")
    assert (here / "run" / "arguments.json").read_bytes() == arguments
    resumed = run_here("train.py", "--run_dir", "run", "--resume")
    assert "its state is kept as state.pt.previous. No saved run in run/" in resumed.stdout, resumed.stderr
    assert (here / "run" / "arguments.json.previous").read_bytes() == arguments
    assert json.loads((here / "run" / "metrics.json").read_text())["seed"] == 4 and (here / "c.bin").exists()
    assert not (here / "run" / "arguments.json.new").exists()


@pytest.mark.parametrize("content", [b"", b'["--seed", "1"', b'{"--seed": 1}', b"[1]", b"\xff", b"[" * 100_000])
def test_damaged_arguments_are_one_line(content, tmp_path, run_here):
    (tmp_path / "arguments.json").write_bytes(content)
    error = last_line(run_here("train.py", "--run_dir", tmp_path, "--resume"))
    assert error.startswith(f"error: {tmp_path / 'arguments.json'}: damaged, expected the run's arguments")


def test_a_folder_without_a_run_is_not_resumed(tmp_path, run_here):
    error = last_line(run_here("train.py", "--run_dir", tmp_path / "x", "--resume"))
    assert f"{tmp_path / 'x'}: no run to resume in this folder" in error and not (tmp_path / "x").exists()


def test_a_given_recipe_wins_over_the_one_of_the_run(tmp_path):
    (tmp_path / "arguments.json").write_text('["--seed", "1", "--config", "/mine.yaml", "--out", "/a.bin"]')
    given = ["--run_dir", str(tmp_path), "--resume"]
    assert "/mine.yaml" in train_module.with_saved_arguments(given)
    arguments = train_module.with_saved_arguments([*given, "--preset", "published"])
    assert "/mine.yaml" not in arguments and {"/a.bin", "published"} < set(arguments)
    (tmp_path / "arguments.json").write_text('["--preset", "ranks"]')
    assert "ranks" not in train_module.with_saved_arguments([*given, "--config", "/mine.yaml"])


def test_saved_arguments_name_files_absolutely_and_datasets_as_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    typed = ["--data", "hf:some/name", "--run_dir=x", "--seed", "1", "--validation", "a.dat", "b.dat", "--phases.graded.epochs=2"]
    _, options = train_module.parse_options(typed)
    train_module.choose_files(options)
    assert arguments_to_save(typed, options, train_module.FILES) == [
        *("--seed", "1", "--phases.graded.epochs=2", "--data", "hf:some/name"),
        *("--validation", str(tmp_path / "a.dat"), str(tmp_path / "b.dat"), "--out", str(tmp_path / "model.bin")),
    ]


HOLD = """
import sys, time
from pathlib import Path
from training.resume import SavedRun
saved = SavedRun(Path(sys.argv[1]), {})
with saved.hold(["--seed", "7"], resume=False):
    print("locked", flush=True)
    time.sleep(300)
"""


def test_two_runs_do_not_share_a_folder_and_a_killed_one_does_not_block(train, tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path / "run"], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "locked\n"
    before = run_files(tmp_path / "run")
    _, errors, status = train()
    assert status == 2 and f"run: process {process.pid} is running in this folder; wait for it or give another" in errors
    assert not (tmp_path / "model.bin").exists() and read_arguments(tmp_path / "run") == ["--seed", "7"]
    assert run_files(tmp_path / "run") == before
    process.kill()
    process.communicate()
    assert train()[2] == 0
    assert not list((tmp_path / "run").glob(".*"))


@pytest.mark.parametrize("full", ["model.bin", "*.bin"])
def test_a_full_disk_at_the_end_loses_nothing(full, train, tmp_path, monkeypatch):
    save = resume.save_encoder

    def on_full_disk(path: Path, encoder) -> int:
        if path.match(full):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return save(path, encoder)

    with monkeypatch.context() as patch:
        patch.setattr(resume, "save_encoder", on_full_disk)
        _, errors, status = train()
    assert status == 2 and errors.startswith(f"error: {tmp_path / 'model.bin'}: cannot be written (no space left on device); ")
    assert errors.endswith("--resume\n") and not (tmp_path / "model.bin").exists()
    kept = tmp_path / "run" / "best.bin"
    assert kept.exists() == (full == "model.bin") == (f"the trained encoder is in {kept}" in errors)
    assert train("--resume")[2] == 0
    if kept.exists():
        assert kept.read_bytes() == (tmp_path / "model.bin").read_bytes()


def test_a_finished_run_says_so_and_other_data_are_refused(train, folder, tmp_path):
    printed, _, status = train("--resume")
    assert status == 0 and "No saved run in" in printed
    before = (tmp_path / "model.bin").stat().st_mtime_ns
    assert "is finished: " in train("--resume")[0]
    assert (tmp_path / "model.bin").stat().st_mtime_ns == before
    (tmp_path / "run" / "metrics.json").unlink()  # a study takes a run without it for unfinished
    assert "starting a new one" in train("--resume")[0] and (tmp_path / "run" / "metrics.json").exists()
    _, errors, status = train("--resume", "--data", str(folder / "dev.store"))
    assert status == 2 and "the training pairs differ" in errors
    assert "An unfinished run was in" not in train("--seed", "1")[0]  # it was finished
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["data"]["training"]["identity"] == open_pairs([folder / "train.store"]).identity()
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (metrics["commit"] or "").removesuffix("-dirty") == head.stdout.strip()


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04"])
def test_a_damaged_state_is_one_line_and_a_new_run_backs_it_up(content, tmp_path):
    (tmp_path / "state.pt").write_bytes(content)
    saved = SavedRun(tmp_path, {})
    with pytest.raises(InputError, match=r"state.pt: not a saved run, or damaged"):
        saved.read()
    assert saved.back_up() == tmp_path / "state.pt.previous"
    assert (tmp_path / "state.pt.previous").read_bytes() == content


def test_the_same_data_have_the_same_identity_and_others_do_not(folder, make_pairs):
    pairs = open_pairs([folder / "train.store"])
    assert pairs.identity() == open_pairs([folder / "train.store"]).identity()
    others = [open_pairs([folder / "dev.store"]), pairs.select(np.arange(119)), pairs.select(np.arange(120)[::-1])]
    assert len({other.identity() for other in (pairs, *others)}) == 4


@pytest.fixture
def token_file(tmp_path) -> Path:
    rows = [format_token_row(tokens) for tokens in random_sentences(np.random.default_rng(0), 40, dim=8)]
    (tmp_path / "x.dat").write_bytes(b"".join(rows))
    return tmp_path / "x.dat"


READ = """
import sys
sys.path.insert(0, sys.argv[1])
from tokens.dat_files import read_token_file
for path in sys.argv[3:]:
    store = read_token_file(path, dim=8)
    assert sum(float(store.sentence(i).sum()) for i in range(len(store))) == float(sys.argv[2]), "other numbers"
"""


def test_processes_that_make_the_same_caches_at_the_same_time(token_file, tmp_path):
    """All read right, whoever was first, and no temporary file is left."""
    store = read_token_file(token_file, dim=8, cache_dir=tmp_path / "apart")
    total = sum(float(store.sentence(i).sum()) for i in range(len(store)))
    paths = [tmp_path / "many" / f"{i}.dat" for i in range(20)]
    paths[0].parent.mkdir()
    for path in paths:
        path.write_bytes(token_file.read_bytes())
    command = [sys.executable, "-c", READ, str(ROOT), repr(total), *map(str, paths)]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    for process in processes:
        _, errors = process.communicate(timeout=100)
        assert process.returncode == 0, errors
    assert {path.name for path in paths[0].parent.iterdir()} == {f"{i}.dat{end}" for i in range(20) for end in ("", ".store")}


@pytest.mark.parametrize("rivals", [1, 5])
def test_a_cache_replaced_by_another_process_is_never_taken_for_the_own(tmp_path, rivals):
    written = []

    def write(path: Path, source: str, value: float) -> None:
        with create_store(path, 1) as writer:
            writer.append(np.full((1, 1), value, np.float32))
            writer.finish({}, {"source": source})

    def build(path: Path) -> None:
        write(path, "own", 1.0)
        if len(written) < rivals:
            write(path, "rival", 2.0)
        written.append(1)

    if rivals == 1:
        assert cached_store(tmp_path / "x.store", {"source": "own"}, build).sentence(0) == 1.0
    else:
        with pytest.raises(InputError, match="another process keeps replacing this token store"):
            cached_store(tmp_path / "x.store", {"source": "own"}, build)
    assert len(written) == 2


def test_a_full_disk_leaves_nothing_half_written_and_says_so(token_file):
    """The system refuses to write more than 512 bytes into a file."""
    code = f"""
import resource, signal, sys
sys.path.insert(0, {str(ROOT)!r})
from common.cli import run_command
from tokens.dat_files import read_token_file
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (512, 512))
run_command(lambda: read_token_file({str(token_file)!r}, dim=8))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False)
    assert "x.dat.store: file too large, nothing was written there" in last_line(result)
    assert [path.name for path in token_file.parent.iterdir()] == ["x.dat"]


def test_a_write_that_fails_keeps_what_was_there_and_names_the_file(tmp_path):
    (tmp_path / "x").write_text("before")
    with pytest.raises(OSError, match="No space left") as error, write_atomically(tmp_path / "x") as file:
        file.write(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert error.value.filename == str(tmp_path / "x")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("x", "before")]


def test_a_row_that_claims_a_million_million_tokens_takes_no_memory(tmp_path):
    (tmp_path / "x.dat").write_text("1000000000000 768 1 2\n")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match=r"x.dat:1: 2 numbers after n_tokens and dim, expected n_tokens \* dim = 1000000000000"):
        read_token_file(tmp_path / "x.dat")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kilobytes
