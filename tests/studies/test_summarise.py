"""The table over runs."""

from __future__ import annotations

import json
import os
from pathlib import Path

from conftest import last_line


def write_run(folder: Path, recipe: str, layers: str, test: float, seed: int) -> None:
    folder.mkdir(parents=True)
    scores = {name: {"spearman": value, "mse": value - 0.01} for name, value in (("mean pooling", 0.8), ("encoder", test))}
    run = {"recipe": recipe, "seed": seed, "tokens": {"layers": layers}, "validation": scores, "test": scores}
    (folder / "metrics.json").write_text(json.dumps(run | {"parameters": 1234, "bytes": 2**20, "seconds": 10 * seed}))


def test_rows_are_means_and_deviations_over_seeds_beside_the_baseline(tmp_path, run_here):
    for seed, test in enumerate((0.85, 0.86, 0.87)):
        write_run(tmp_path / f"default-{seed}", "default", "2,-1", test, seed)
    write_run(tmp_path / "deep" / "published-0", "published", "2,-1", 0.7, 0)
    result = run_here("summarise.py", tmp_path, "--out", tmp_path / "table.md")
    assert (tmp_path / "table.md").read_text() == result.stdout
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in result.stdout.splitlines()]
    assert [row[1] for row in rows[2:]] == ["mean pooling, nothing learned", "published", "default"]
    assert rows[2][4] == "0.8000" and rows[3][4] == "0.7000"
    assert rows[4] == ["2,-1", "default", *["0.8600 ± 0.0100", "0.8500 ± 0.0100"] * 2, "1,234", "1.00", "10", "3"]


def test_runs_on_other_data_are_no_seeds_and_runs_of_other_programs_are_left_out(tmp_path, run_here):
    for name, test in (("here", 0.8), ("there", 0.6)):
        write_run(tmp_path / name, "default", "2,-1", test, 0)
        path = tmp_path / name / "metrics.json"
        data = {"training": {"identity": name, "tokens": {"source": f"{name}.csv"}}}
        path.write_text(json.dumps(json.loads(path.read_text()) | {"data": data}))
    write_run(tmp_path / "without-test", "published", "word", 0.7, 0)
    path = tmp_path / "without-test" / "metrics.json"
    path.write_text(json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != "test"}))
    (tmp_path / "retrieval").mkdir()
    (tmp_path / "retrieval" / "metrics.json").write_text(json.dumps({"pipeline": {}}))
    result = run_here("summarise.py", tmp_path)
    rows = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in result.stdout.splitlines()[2:]]
    assert [(row[0], row[4], row[-1]) for row in rows if row[1] == "default"] == [
        ("2,-1 of here.csv", "0.8000", "1"),
        ("2,-1 of there.csv", "0.6000", "1"),
    ]
    assert [row[2:6] for row in rows if row[1] == "published"] == [["0.7000", "0.6900", "", ""]]
    assert "left out: 1 runs of commands other than train.py" in result.stderr


def test_a_run_that_is_repeated_counts_once_by_its_latest_figures(tmp_path, run_here):
    for time, (name, test, seed) in enumerate((("b", 0.7, 0), ("c", 0.87, 1), ("a", 0.85, 0))):
        write_run(tmp_path / name, "default", "2,-1", test, seed)
        os.utime(tmp_path / name / "metrics.json", (time, time))
    done = run_here("summarise.py", tmp_path)
    row = done.stdout.splitlines()[-1].strip("| ").split(" | ")
    assert (row[1], row[4], row[-1]) == ("default", "0.8600 ± 0.0141", "2")
    assert "left out: 1 earlier runs of the same data, settings and seed" in done.stderr


def test_a_seed_without_test_does_not_move_its_encoder_among_the_others(tmp_path, run_here):
    for name, seed, test in (("published", 0, 0.7), ("default", 0, 0.85), ("default", 1, 0.87)):
        write_run(tmp_path / f"{name}-{seed}", name, "2,-1", test, seed)
    path = tmp_path / "default-1" / "metrics.json"
    path.write_text(json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != "test"}))
    rows = [line.split(" | ") for line in run_here("summarise.py", tmp_path).stdout.splitlines()[3:]]
    assert [(row[1], row[4]) for row in rows] == [("published", "0.7000"), ("default", "0.8500")]


def test_runs_of_one_recipe_with_other_fields_have_rows_that_say_so(tmp_path, run_here):
    for name, epochs, seed, test in (("a", 15, 0, 0.85), ("b", 15, 1, 0.87), ("c", 30, 0, 0.8)):
        write_run(tmp_path / name, "default", "2,-1", test, seed)
        (tmp_path / name / "recipe.yaml").write_text(f"phases: {{graded: {{epochs: {epochs}}}}}\nseed: {seed}\n")
    write_run(tmp_path / "d", "published", "2,-1", 0.7, 0)
    rows = [line.split(" | ") for line in run_here("summarise.py", tmp_path).stdout.splitlines()[3:]]
    assert [(row[1], row[4]) for row in rows] == [
        ("published", "0.7000"),
        ("default, phases.graded.epochs 30", "0.8000"),
        ("default, phases.graded.epochs 15", "0.8600 ± 0.0141"),
    ]


def test_runs_of_other_teachers_are_no_seeds_and_none_is_left_out(tmp_path, run_here):
    for name, teachers, seed, test in (
        ("a", ["/small"], 0, 0.8),
        ("b", ["/small", "/mine"], 0, 0.85),
        ("c", ["/small", "/mine"], 1, 0.87),
    ):
        write_run(tmp_path / name, "imitation", "2,-1", test, seed)
        path = tmp_path / name / "metrics.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"teachers": teachers, "sentences": []}))
        (tmp_path / name / "recipe.yaml").write_text("phases: {graded: {epochs: 15}}\n")
    rows = [line.split(" | ") for line in run_here("summarise.py", tmp_path).stdout.splitlines()[3:]]
    assert [(row[1], row[4]) for row in rows] == [
        ("imitation, teachers /small", "0.8000"),
        ("imitation, teachers /small /mine", "0.8600 ± 0.0141"),
    ]


def test_what_a_run_does_not_say_of_its_recipe_sets_it_apart_from_none(tmp_path, run_here):
    """A run without the file, and one of a version that had fewer fields."""
    for seed, text in enumerate(
        ("", "phases: {a: {losses: {cosent: }}}", "phases: {a: {epochs: 1, unlabelled: 0, losses: {cosent: {every: 1}}}}")
    ):
        write_run(tmp_path / f"{seed}", "default", "2,-1", 0.8, seed)
        if text:
            (tmp_path / f"{seed}" / "recipe.yaml").write_text(f"{text}\nseed: {seed}\n")
    rows = [line.split(" | ") for line in run_here("summarise.py", tmp_path).stdout.splitlines()[3:]]
    assert [(row[1], row[-1]) for row in rows] == [("default", "3 |")]


def test_seeds_that_parted_validation_from_the_same_pairs_are_seeds(tmp_path, run_here):
    for seed, test in enumerate((0.85, 0.87)):
        write_run(tmp_path / f"{seed}", "default", "2,-1", test, seed)
        path = tmp_path / f"{seed}" / "metrics.json"
        run = json.loads(path.read_text())
        run["validation"]["mean pooling"] = {"spearman": 0.7 + seed / 10, "mse": 0.5}
        data = {part: {"identity": f"{part} {seed}"} for part in ("training", "validation")}
        path.write_text(json.dumps(run | {"data": data, "split_from": "all of them"}))
    rows = [line.split(" | ") for line in run_here("summarise.py", tmp_path).stdout.splitlines()[2:]]
    assert [(row[1], row[2]) for row in rows] == [
        ("mean pooling, nothing learned", "0.7500 ± 0.0707"),
        ("default", "0.8600 ± 0.0141"),
    ]


def test_files_of_one_name_are_not_averaged_and_some_runs_may_have_no_test(tmp_path, run_here):
    for number, name in enumerate(("a", "a", "b")):
        write_run(tmp_path / f"{number}", "default", "2,-1", 0.85 + number / 100, number)
        path = tmp_path / f"{number}" / "metrics.json"
        run = json.loads(path.read_text())
        run["data"] = {
            part: {"identity": f"{part} {name}", "tokens": {"source": "train.csv"}} for part in ("training", "validation")
        }
        if number == 1:
            del run["test"]
        path.write_text(json.dumps(run))
    done = run_here("summarise.py", tmp_path)
    assert done.returncode == 0, done.stderr
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines()[2:]]
    ours = {row[0]: row[2:] for row in rows if row[1] == "default"}
    assert sorted(cells[-1] for cells in ours.values()) == ["1", "2"] and len(ours) == 2
    assert all(name.startswith("2,-1 of train.csv (") for name in ours)


def test_folders_without_runs(tmp_path, run_here):
    assert "no metrics.json" in last_line(run_here("summarise.py", tmp_path))
    (tmp_path / "metrics.json").write_text("{")
    assert f"{tmp_path / 'metrics.json'}: not JSON" in last_line(run_here("summarise.py", tmp_path))
    missing = last_line(run_here("summarise.py", tmp_path, tmp_path / "rnus"))
    assert missing == f"error: {tmp_path / 'rnus'}: no such folder, expected one of training runs"
