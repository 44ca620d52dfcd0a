"""A study on small data: every run once, resumed, summed up."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from conftest import last_line, store_parts
from matplotlib.figure import Figure

from common.errors import InputError
from studies.figures import draw_scores
from studies.runs import read_study, run_all
from studies.tables import run_row, summary_table

SMALL = "--encoder.output_dim 8 --encoder.heads 4 --phases.contrastive.epochs 0 --phases.graded.epochs 1"
HEAD = """command: train.py
options: --data {data}/train.store --validation {data}/dev.store --test {data}/test.store
seeds: [0, 1]
scores: [spearman]
figure: [spearman, mse]
"""


@pytest.fixture
def study(tmp_path) -> Path:
    """An arm, and one with a grid of two values and a seed of its own, on one data set."""
    store_parts(tmp_path / "my pairs", train=80, dev=40, test=40)
    (tmp_path / "small.yaml").write_text(
        f"{HEAD}out: {tmp_path}/runs\ndata: {{noisy: {tmp_path}/my pairs}}\n"
        f"arms:\n  plain: {SMALL}\n  slow:\n    options: {SMALL}\n    grid: {{learning_rate: [1.0e-9, 1.0e-8]}}\n    seeds: [1]\n"
    )
    return tmp_path / "small.yaml"


def test_runs_are_made_once_and_summed_up(study, tmp_path, monkeypatch, run_here, run_all_here):
    monkeypatch.setattr("study.run_all", run_all_here)
    result = run_here("study.py", study, "--results", tmp_path / "results")
    assert result.returncode == 0, result.stderr
    assert "4 of 4 runs" in result.stdout
    rows = list(csv.DictReader((tmp_path / "results" / "small.csv").open()))
    assert [(row["encoder"], row["seed"]) for row in rows] == [
        ("plain", "0"),
        ("plain", "1"),
        ("slow, learning_rate 1e-09", "1"),
        ("slow, learning_rate 1e-08", "1"),
    ]
    runs = read_study(study).runs
    for row, run in zip(rows, runs, strict=True):
        metrics = json.loads((run.folder / "metrics.json").read_text())
        assert float(row["test encoder spearman"]) == pytest.approx(metrics["test"]["encoder"]["spearman"], abs=1e-6)
        assert float(row["validation mean pooling mae"]) == pytest.approx(metrics["validation"]["mean pooling"]["mae"], abs=1e-6)
        assert metrics["seed"] == int(row["seed"])
    assert len({run.folder for run in runs}) == 4
    assert all(run.options[1] == f"{tmp_path}/my pairs/train.store" for run in runs)
    mean = np.mean([float(row["test encoder spearman"]) for row in rows if row["encoder"] == "plain"])
    table = (tmp_path / "results" / "small.md").read_text()
    assert table in result.stdout
    assert f"{mean:.4f} ± " in table and "| noisy | mean pooling, nothing learned |" in table
    assert (tmp_path / "results" / "small.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"

    done, missing = (runs[i].folder / "metrics.json" for i in (0, 1))
    before = os.stat(done).st_mtime_ns
    missing.unlink()
    partial = run_here("study.py", study, "--results", tmp_path / "results", "--no_runs")
    assert "3 of 4 runs" in partial.stdout
    assert "4 of 4 runs" in run_here("study.py", study, "--results", tmp_path / "results").stdout
    assert os.stat(done).st_mtime_ns == before and missing.exists()


def test_a_run_with_other_options_is_refused_and_one_without_record_is_done(study, tmp_path, monkeypatch, run_here):
    def finish(command, **_):
        (Path(command[command.index("--run_dir") + 1]) / "metrics.json").write_text("{}")
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr("studies.runs.subprocess.run", finish)
    run_all(read_study(study).runs, 1)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    runs = read_study(study).runs
    assert all(run.is_done() for run in runs)
    study.write_text(study.read_text().replace(f"plain: {SMALL}", f"plain: {SMALL} --batch_size 8"))
    changed = [run for run in read_study(study).runs if run.arm == "plain"]
    for run in changed:
        with pytest.raises(InputError, match=f"^{run.folder}: a run with other options"):
            run.is_done()
    for extra in ([], ["--no_runs"]):
        done = run_here("study.py", study, "--results", tmp_path / "results", *extra)
        assert "a run with other options than the study's now; delete this folder" in last_line(done)
    for run in changed:
        (run.folder / "options.txt").unlink()  # as runs of earlier versions
    assert all(run.is_done() for run in read_study(study).runs)


def test_a_stopped_run_resumes_unless_its_options_have_changed(study, monkeypatch):
    commands: list[list[str]] = []

    def stop(command, **_):
        commands.append(command)
        return subprocess.CompletedProcess(command, 130)

    monkeypatch.setattr("studies.runs.subprocess.run", stop)
    for changed in (study.read_text(), study.read_text(), study.read_text().replace("--encoder.heads 4", "--encoder.heads 2")):
        study.write_text(changed)
        with pytest.raises(InputError, match="ended with status 130"):
            run_all(read_study(study).runs[:1], 1)
    assert ["--resume" in command for command in commands] == [False, True, False]


def test_a_run_that_fails_is_named_with_its_last_line(study, tmp_path, run_here):
    (tmp_path / "my pairs" / "train.store").write_bytes(b"nothing")
    message = last_line(run_here("study.py", study, "--results", tmp_path / "results", "--workers", "1"))
    assert "log.txt: plain, seed 0, ended with status 2: error: " in message
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("text", ["", "[", "out: x", f"{HEAD}out: x\ndata: 3\narms: {{}}", "- 1"])
def test_files_that_are_no_study(tmp_path, text):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(InputError, match=r"bad\.yaml:(\d+:)? (not a study|not YAML|expected a study)"):
        read_study(tmp_path / "bad.yaml")


@pytest.mark.parametrize("text", ["sedes: [0]", "arms: {plain: {optoins: x}}"])
def test_a_misspelt_key_is_named(tmp_path, text):
    (tmp_path / "bad.yaml").write_text(f"{HEAD}out: x\ndata: {{}}\n{text}\n")
    with pytest.raises(InputError, match=r"has no key '(sedes|optoins)', expected one of"):
        read_study(tmp_path / "bad.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("scores: [spearmann]", "there is no score 'spearmann', expected one of spearman, "),
        ("figure: [spearman, maw]", "there is no score 'maw', expected one of spearman, "),
        ("report: compresion", "there is no report 'compresion', expected one of compression"),
        ("arms: {a: {seeds: [1, 2]}}", "arm a: the study has no seed 2, expected one of 0, 1"),
        ("arms: {a b: x, a_b: y}", "two runs have the folder x/mine/a_b/seed-0; leave one out or rename its arm or data"),
    ],
)
def test_a_study_that_would_lose_runs_or_end_without_its_table_is_refused_before_it_runs(tmp_path, text, message):
    key = text.split(":")[0]
    lines = [line for line in f"{HEAD}out: x\ndata: {{mine: x}}\narms: {{a: x}}".splitlines() if not line.startswith(key)]
    (tmp_path / "bad.yaml").write_text("\n".join([*lines, text]))
    with pytest.raises(InputError, match=rf"bad\.yaml: {re.escape(message)}"):
        read_study(tmp_path / "bad.yaml")


def test_the_studies_that_ship_can_be_read_and_their_results_are_theirs():
    """Each row of a committed table belongs to an arm of its study, and is what the committed CSV says."""
    for path in (Path(__file__).parents[2] / "studies").glob("*.yaml"):
        study, results = read_study(path), path.parents[1] / "results"
        rows = [
            {key: _number(value) for key, value in row.items() if value != ""}
            for row in csv.DictReader((results / f"{path.stem}.csv").open())
        ]
        known = {(run.data, run.name, run.seed) for run in study.runs}
        assert {(row["data"], row["encoder"], row["seed"]) for row in rows} == known, path
        assert (results / f"{path.stem}.md").read_text().startswith(summary_table(rows, study.scores)), path


def _number(value: str) -> str | int | float:
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            pass
    return value


@pytest.mark.parametrize(("tests", "part"), [((1, 1), "test"), ((1, 0), "validation"), ((0, 0), "validation")])
def test_the_figure_shows_validation_where_not_every_run_has_a_test_part(tmp_path, monkeypatch, tests, part):
    drawn: list[Figure] = []
    monkeypatch.setattr("studies.figures.write_figure_atomically", lambda path, figure: drawn.append(figure))
    scores = {"mean pooling": {"spearman": 0.5}, "encoder": {"spearman": 0.6}}
    rows = [run_row("x", "a", seed, {"validation": scores} | ({"test": scores} if has else {})) for seed, has in enumerate(tests)]
    draw_scores(tmp_path / "a.png", rows, ["spearman"])
    assert drawn[0].get_supxlabel().startswith(f"on the {part} part")
    with pytest.raises(InputError, match=r"no figure: not every run has the scores spearman, mrr"):
        draw_scores(tmp_path / "a.png", rows, ["spearman", "mrr"])


@pytest.mark.parametrize(("other", "shown"), [(0.862657, "0.8626"), (0.8826, "0.8726 ± 0.0141")])
def test_mean_pooling_is_averaged_over_splits_but_not_over_processors(other, shown):
    rows = [
        {"data": "x", "encoder": name, "seed": 0, "validation mean pooling mrr": value, "validation encoder mrr": 0.9, "seconds": 1}
        for name, value in (("a", 0.862647), ("b", other), ("c", 0.862647))
    ]
    assert f"| x | mean pooling, nothing learned | {shown} |" in summary_table(rows, ["mrr"])
