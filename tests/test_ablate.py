"""A grid on small data: every combination once, resumed, one row each."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import pytest
import yaml
from conftest import last_line, run_script, store_parts

import ablate
from ablate import read_ablation
from errors import InputError


@pytest.fixture
def grids(tmp_path) -> Path:
    """Two grids: one with a seed of its own, one with a list for a value."""
    store_parts(tmp_path / "mine", train=60, dev=30, test=30)
    small = "--encoder.output_dim 8 --encoder.heads 4 --phases.contrastive.epochs 0 --phases.graded.epochs 1"
    (tmp_path / "small.yaml").write_text(
        f"out: {tmp_path}/runs\nstores: {tmp_path}/mine\nseeds: [0]\ngrids:\n"
        f"  noise: {{options: {small}, fields: {{noise_alpha: [5]}}, seeds: [3]}}\n"
        f"  nested: {{options: {small}, fields: {{nested: [[4, 8]]}}}}\n"
    )
    return tmp_path / "small.yaml"


def test_a_grid_is_the_product_of_its_fields_and_seeds(tmp_path):
    path = tmp_path / "grids.yaml"
    path.write_text(
        "out: runs\nstores: s\nseeds: [0, 1]\ngrids:\n"
        "  a:\n    options: --preset default --teacher t-{seed}\n"
        "    fields: {noise_alpha: [0, 1], encoder.output_dim: [8, 16, 32]}\n"
        "  b: {stores: other, seeds: [7]}\n"
    )
    runs = read_ablation(path)
    assert len(runs) == 2 * 3 * 2 + 1
    assert len({run.folder for run in runs}) == len(runs)
    assert {(run.settings["noise_alpha"], run.settings["encoder.output_dim"], run.seed) for run in runs[:-1]} == {
        (alpha, size, seed) for alpha in (0, 1) for size in (8, 16, 32) for seed in (0, 1)
    }
    run = next(run for run in runs if run.seed == 1 and run.settings == {"noise_alpha": 1, "encoder.output_dim": 16})
    options = dict(zip(run.options[::2], run.options[1::2], strict=True))
    assert (options["--noise_alpha"], options["--encoder.output_dim"], options["--seed"]) == ("1", "16", "1")
    assert (options["--teacher"], options["--data"]) == ("t-1", "s/train.store")
    assert (runs[-1].seed, runs[-1].settings) == (7, {}) and "other/dev.store" in runs[-1].options


def test_each_run_is_made_once_and_has_a_row(grids, tmp_path, monkeypatch, run_all_here):
    monkeypatch.setattr(ablate, "run_all", run_all_here)
    monkeypatch.setattr("sys.argv", ["ablate.py", str(grids), "--out", str(tmp_path / "small.csv")])
    ablate.main()
    rows = list(csv.DictReader((tmp_path / "small.csv").open()))
    assert [(row["grid"], row["noise_alpha"], row["nested"], row["seed"]) for row in rows] == [
        ("noise", "5", "", "3"),
        ("nested", "", "[4, 8]", "0"),
    ]
    runs = read_ablation(grids)
    for row, run in zip(rows, runs, strict=True):
        metrics = json.loads((run.folder / "metrics.json").read_text())
        for part in ("validation", "test"):
            for metric in ("mse", "mae", "pearson", "spearman"):
                assert float(row[f"{part} {metric}"]) == pytest.approx(metrics[part]["encoder"][metric], abs=1e-6)
        assert float(row["seconds"]) == metrics["seconds"]
        recipe = yaml.safe_load((run.folder / "recipe.yaml").read_text())
        assert (str(recipe["noise_alpha"]), str(recipe["nested"])) == (f"{float(row['noise_alpha'] or 0)}", row["nested"] or "[]")
    done = [os.stat(run.folder / "metrics.json").st_mtime_ns for run in runs]
    monkeypatch.undo()  # from here on as a user runs it, in processes
    (runs[0].folder / "metrics.json").unlink()
    result = run_script("ablate.py", grids, "--out", tmp_path / "small.csv", "--workers", "1")
    assert result.returncode == 0 and "2 runs" in result.stdout, result.stderr
    assert os.stat(runs[1].folder / "metrics.json").st_mtime_ns == done[1]
    again = list(csv.DictReader((tmp_path / "small.csv").open()))
    assert [{**row, "seconds": ""} for row in again] == [{**row, "seconds": ""} for row in rows]


def test_what_is_no_grid_is_an_error(tmp_path, run_here):
    path = tmp_path / "wrong.yaml"
    path.write_text("out: runs\nstores: s\nseeds: [0]\ngrids: {a: {fields: {noise_alpha: 3}}}\n")
    with pytest.raises(InputError, match="no grids, expected out, stores, seeds"):
        read_ablation(path)
    assert "wrong.yaml: no grids" in last_line(run_here("ablate.py", path))
    path.write_text("out: runs\nstores: s\nseeds: [0]\ngrids: {a: {feilds: {noise_alpha: [3]}}}\n")
    with pytest.raises(InputError, match="grid a has no key 'feilds', expected one of options, fields, stores, seeds"):
        read_ablation(path)
