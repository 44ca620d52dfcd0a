"""What the README and the pages in docs/ say works as it stands there."""

from __future__ import annotations

import ast
import importlib
import json
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

from common.files import size_of
from corpus.index import CorpusFolder

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXT = {path.name: path.read_text(encoding="utf-8") for path in PAGES}


def section(page: str, title: str) -> str:
    """The text below a heading of the second level."""
    return TEXT[page].split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_the_readme_is_a_face_and_not_a_manual():
    assert TEXT["README.md"].count("\n") < 200


def test_the_lines_for_judges_run_in_a_folder_with_two_files(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", section("README.md", "For judges"), flags=re.DOTALL)
    for name in ("model.py", "model.bin"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0 and not result.stderr, result.stderr
    assert -1 <= float(result.stdout) <= 1


@pytest.mark.parametrize(("page", "title"), [("README.md", "The whole encoder"), ("whole-encoder.md", None)])
def test_the_lines_for_the_whole_encoder_run_in_a_folder_with_nothing_else(tmp_path, page, title):
    text = section(page, title) if title else TEXT[page].split("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    shutil.copytree(ROOT / "small", tmp_path / "small")
    refuse = "import sys; sys.modules['torch'] = sys.modules['transformers'] = None\n"
    result = subprocess.run([sys.executable, "-c", refuse + code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert 0.3 < float(result.stdout) <= 1


def test_the_whole_encoder_that_ships_is_small_and_says_what_it_is():
    config = json.loads((ROOT / "small" / "config.json").read_text(encoding="utf-8"))["small_encoder"]
    assert size_of(ROOT / "small") <= 20 * 2**20
    small, backbone = (config["scores"]["test"][name] for name in ("this encoder", "all-MiniLM-L6-v2"))
    assert small["spearman"] > backbone["spearman"] and small["mse"] <= 0.036 and small["unrelated"] <= 0.12
    assert (ROOT / "small" / "small_encoder.py").read_bytes() == (ROOT / "portable" / "small_encoder.py").read_bytes()


def run_command(command: str, monkeypatch) -> None:
    """A command in this process: a new one would import everything again."""
    script, *arguments = shlex.split(command.removeprefix("python "))
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    importlib.import_module(script.removesuffix(".py")).main()


def test_every_example_with_text_runs(tmp_path, monkeypatch, capsys):
    """In their order, in a folder with the shipped model and some pairs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    (tmp_path / "model.bin").write_bytes((ROOT / "model.bin").read_bytes())
    rows = [line.split("\t") for line in (ROOT / "data" / "starter" / "test.tsv").read_text().splitlines()[:50]]
    lines = [f'"{first}","{second}",{label}' for first, second, label in rows]
    (tmp_path / "test.csv").write_text("\n".join(lines) + "\n")
    text = section("README.md", "With text") + TEXT["text.md"]
    wanted = [
        block
        for block in re.findall(r"```(?:python)?\n(.*?)```", text, flags=re.DOTALL)
        if "import" in block or re.match(r"python (text|export)\.py", block)
    ]
    printed = {}
    for block in wanted:
        if "import" in block:
            exec(compile(block, "page", "exec"), {})
        else:
            run_command(block.strip(), monkeypatch)
        printed[block] = capsys.readouterr().out
    two_lines, ranked, picture, projected, _, exported, evaluator = printed.values()
    assert float(two_lines) > 0.3
    assert ranked.splitlines()[0].endswith("A band plays in the park.")
    assert picture and (tmp_path / "explanation.png").exists() and "(128,)" in projected
    assert "tensor([[0." in exported
    run_command("python evaluate.py --data test.csv --json", monkeypatch)
    figures = json.loads(capsys.readouterr().out)["data"]["test.csv"]["encoder"]
    assert ast.literal_eval(evaluator)["spearman_cosine"] == pytest.approx(figures["spearman"], abs=1e-4)
    (command,) = re.findall("^python visualize_tsne.py .*--html.*$", TEXT["training.md"], flags=re.MULTILINE)
    run_command(command, monkeypatch)
    assert (tmp_path / "map.html").exists()


def test_every_example_with_a_corpus_runs_and_the_lines_for_spark_give_the_same_vectors(tmp_path, monkeypatch, capsys):
    """In their order, in a folder with some questions."""
    pandas = pytest.importorskip("pandas")
    monkeypatch.chdir(tmp_path)
    questions = [line.split("\t")[0] for line in (ROOT / "data" / "starter" / "test.tsv").read_text().splitlines()[:40]]
    (tmp_path / "questions.txt").write_text("\n".join(questions + questions[:2]) + "\n")
    text = TEXT["corpus.md"]
    first, in_python, *_, spark = re.findall(r"```(?:python)?\n(.*?)```", text, flags=re.DOTALL)
    for command in first.splitlines():
        run_command(command, monkeypatch)
    groups = [json.loads(line)["ids"] for line in (tmp_path / "groups.jsonl").read_text().splitlines()]
    assert [0, 40] in groups and [1, 41] in groups
    capsys.readouterr()
    exec(compile(in_python, "page", "exec"), {})
    assert len(capsys.readouterr().out.splitlines()) == 5
    names: dict = {}
    exec(compile(spark.rpartition("\n\n\n")[0].replace("/shared/small", str(ROOT / "small")), "page", "exec"), names)
    monkeypatch.syspath_prepend(str(ROOT / "small"))
    tables = [pandas.DataFrame({"id": [0, 1], "text": questions[:2]}), pandas.DataFrame({"id": [2], "text": questions[2:3]})]
    ours = np.concatenate([np.stack(table["vector"]) for table in names["encode"](iter(tables))])
    np.testing.assert_allclose(ours, CorpusFolder.open("vectors").vectors(0)[:3], atol=1e-6)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_file_it_names_is_there(path):
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", TEXT[path.name]) if not link.startswith("http")]
    assert [link for link in links if not (path.parent / link).exists()] == []
    assert [page.name for page in PAGES[1:] if f"docs/{page.name}" not in TEXT["README.md"]] == []


@pytest.mark.parametrize(
    ("page", "results", "least"),
    [("README.md", "sts general small", 60), ("retrieval.md", "retrieval", 15), ("small.md", "compression notes", 20)],
)
def test_every_figure_of_its_tables_is_in_the_results(page, results, least):
    known = "".join((ROOT / "results" / f"{name}.md").read_text(encoding="utf-8") for name in results.split())
    figures = re.findall(r"0\.\d{4}(?: ± 0\.\d{4})?", "".join(line for line in TEXT[page].splitlines() if line.startswith("|")))
    assert len(figures) >= least and [figure for figure in figures if f"| {figure} |" not in known] == []


def test_every_row_of_its_results_is_a_row_of_the_study():
    rows = re.findall(r"^\| 2,-1 .*$", TEXT["README.md"], flags=re.MULTILINE)
    study = (ROOT / "results" / "sts.md").read_text(encoding="utf-8").splitlines()
    assert len(rows) > 3 and [row for row in rows if row not in study] == []


def test_every_script_and_option_it_shows_exists(run_here):
    pages = [text for name, text in TEXT.items() if name != "architecture.md"]  # its example is run by test_architecture.py
    commands = [command for text in pages for command in re.findall(r"(?:^|`)python (\w+\.py) ([^`\n]*)", text, flags=re.MULTILINE)]
    assert len({script for script, _ in commands}) > 9
    for script in {script for script, _ in commands}:
        known = run_here(script, "--help").stdout
        for command in (options for name, options in commands if name == script):
            for option in re.findall(r"--[\w.]+", command):
                assert option in known or option.startswith("--phases."), (script, option)


def test_every_make_target_it_shows_exists():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = {target for text in TEXT.values() for target in re.findall(r"(?:^|`)make ([\w-]+)", text, flags=re.MULTILINE)}
    assert len(targets) > 6 and [target for target in targets if f"\n{target}:" not in makefile] == []
    studies = {name for text in TEXT.values() for name in re.findall(r"make study NAME=(\w+)", text)}
    assert studies == {path.stem for path in (ROOT / "studies").glob("*.yaml")}
