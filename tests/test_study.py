"""A study on small data: every run once, resumed, summed up."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
from conftest import last_line, run_script, store_parts

from errors import InputError
from study import read_study

SMALL = "--encoder.output_dim 8 --encoder.heads 4 --phases.contrastive.epochs 0 --phases.graded.epochs 1"


@pytest.fixture
def study(tmp_path) -> Path:
    """Two arms, one kind of tokens, two seeds."""
    store_parts(tmp_path / "mine", train=80, dev=40, test=40)
    (tmp_path / "small.yaml").write_text(
        f"out: {tmp_path}/runs\nseeds: [0, 1]\ntokens: {{noisy: {tmp_path}/mine}}\n"
        f"arms:\n  plain: {SMALL}\n  small_steps: {SMALL} --learning_rate 1e-9\n"
    )
    return tmp_path / "small.yaml"


def test_runs_are_made_once_and_summed_up(study, tmp_path, monkeypatch, run_here, run_all_here):
    monkeypatch.setattr("study.run_all", run_all_here)
    result = run_here("study.py", study, "--results", tmp_path / "results")
    assert result.returncode == 0, result.stderr
    assert "4 of 4 runs" in result.stdout
    rows = list(csv.DictReader((tmp_path / "results" / "small.csv").open()))
    assert [(row["arm"], row["seed"]) for row in rows] == [
        ("plain", "0"),
        ("small_steps", "0"),
        ("plain", "1"),
        ("small_steps", "1"),
    ]
    for row in rows:
        folder = tmp_path / "runs" / "mine" / row["arm"] / f"seed-{row['seed']}"
        metrics = json.loads((folder / "metrics.json").read_text())
        assert float(row["test spearman"]) == pytest.approx(metrics["test"]["encoder"]["spearman"], abs=1e-6)
        assert float(row["mean pooling validation mae"]) == pytest.approx(metrics["validation"]["mean pooling"]["mae"], abs=1e-6)
        assert metrics["seed"] == int(row["seed"])
    means = [np.mean([float(row["test spearman"]) for row in rows if row["arm"] == arm]) for arm in ("plain", "small_steps")]
    table = (tmp_path / "results" / "small.md").read_text()
    assert table in result.stdout
    assert all(f"{mean:.4f} ± " in table for mean in means) and "| noisy | mean pooling, nothing learned |" in table
    assert "| noisy | small steps |" in table
    assert (tmp_path / "results" / "small.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"

    done = tmp_path / "runs" / "mine" / "plain" / "seed-0" / "metrics.json"
    missing = tmp_path / "runs" / "mine" / "plain" / "seed-1" / "metrics.json"
    before = os.stat(done).st_mtime_ns
    missing.unlink()
    partial = run_here("study.py", study, "--results", tmp_path / "results", "--no_runs")
    assert "3 of 4 runs" in partial.stdout
    assert "4 of 4 runs" in run_here("study.py", study, "--results", tmp_path / "results").stdout
    assert os.stat(done).st_mtime_ns == before and missing.exists()
    assert (tmp_path / "results" / "small.md").read_text().split("| seconds")[0] == table.split("| seconds")[0]


def test_a_run_that_fails_is_named_with_its_last_line(study, tmp_path):
    (tmp_path / "mine" / "train.store").write_bytes(b"nothing")
    message = last_line(run_script("study.py", study, "--results", tmp_path / "results", "--workers", "1"))
    assert "log.txt: plain on noisy, seed 0 ended with status 2: error: " in message
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("text", ["", "[", "out: x", "out: x\nseeds: 3\ntokens: {}\narms: {}", "- 1"])
def test_files_that_are_no_study(tmp_path, text):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(InputError, match=r"bad\.yaml:(\d+:)? (not a study|not YAML|expected a study)"):
        read_study(tmp_path / "bad.yaml")
