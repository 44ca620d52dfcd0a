"""What the README says works as it stands there."""

from __future__ import annotations

import ast
import importlib
import json
import re
import shlex
import subprocess
import sys

import pytest
from conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    """The text below a heading of the second level."""
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_the_lines_for_judges_run_in_a_folder_with_two_files(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", section("For judges"), flags=re.DOTALL)
    for name in ("model.py", "model.bin"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0 and not result.stderr, result.stderr
    assert -1 <= float(result.stdout) <= 1


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
    blocks = re.findall(r"```(?:python)?\n(.*?)```", section("Text in, vectors out"), flags=re.DOTALL)
    code = [block for block in blocks if "import" in block]
    assert len(code) == 5
    printed = []
    for block in blocks:
        if block in code:
            exec(compile(block, "README.md", "exec"), {})
        elif block.startswith("python "):
            run_command(block.strip(), monkeypatch)
        printed.append(capsys.readouterr().out)
    assert float(printed[1]) > 0.5
    assert printed[2].splitlines()[0].endswith("A band plays in the park.")
    assert (tmp_path / "explanation.png").exists() and "(128,)" in printed[4]
    assert "tensor([[0." in printed[6]
    run_command("python evaluate.py --data test.csv --json", monkeypatch)
    figures = json.loads(capsys.readouterr().out)["encoder"]
    assert ast.literal_eval(printed[7])["spearman_cosine"] == pytest.approx(figures["spearman"], abs=1e-4)
    (command,) = re.findall("^python visualize_tsne.py .*--html.*$", section("After training"), flags=re.MULTILINE)
    run_command(command, monkeypatch)
    assert (tmp_path / "map.html").exists()


def test_every_file_it_names_is_there():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert len(links) > 5
    assert [link for link in links if not link.startswith("http") and not (ROOT / link).exists()] == []


def test_every_row_of_its_results_is_a_row_of_the_study():
    rows = re.findall(r"^\| 2,-1 .*$", README, flags=re.MULTILINE)
    study = (ROOT / "results" / "sts.md").read_text(encoding="utf-8").splitlines()
    assert len(rows) > 3 and [row for row in rows if row not in study] == []


@pytest.mark.parametrize("section", ["Small vectors", "To find matches"])
def test_every_figure_of_its_other_tables_is_in_the_results(section):
    text = README.split(f"## {section}\n")[1].split("\n## ")[0]
    (results,) = set(re.findall(r"\((results/\w+\.md)\)", text)) - {"results/notes.md"}
    known = (ROOT / results).read_text(encoding="utf-8")
    figures = re.findall(r"0\.\d{4}(?: ± 0\.\d{4})?", "".join(line for line in text.splitlines() if line.startswith("|")))
    assert len(figures) > 10 and [figure for figure in figures if f"| {figure} |" not in known] == []


def test_every_module_is_in_its_list_of_files():
    listed = set(re.findall(r"(\w+\.py)\b", README.split("## The files")[1].split("## Limits")[0]))
    assert listed == {path.name for path in ROOT.glob("*.py")}


def test_every_script_and_option_it_shows_exists(run_here):
    commands = re.findall(r"^python (\w+\.py) (.*)$", README, flags=re.MULTILINE)
    assert len({script for script, _ in commands}) > 6
    for script in {script for script, _ in commands}:
        known = run_here(script, "--help").stdout
        for command in (options for name, options in commands if name == script):
            for option in re.findall(r"--[\w.]+", command):
                assert option in known or option.startswith("--phases."), (script, option)
