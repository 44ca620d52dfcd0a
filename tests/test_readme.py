"""What the README says works as it stands there."""

from __future__ import annotations

import re
import subprocess
import sys

from conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_lines_for_judges_run_in_a_folder_with_two_files(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    for name in ("model.py", "model.bin"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0 and not result.stderr, result.stderr
    assert -1 <= float(result.stdout) <= 1


def test_every_file_it_names_is_there():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert len(links) > 5
    assert [link for link in links if not link.startswith("http") and not (ROOT / link).exists()] == []


def test_every_row_of_its_results_is_a_row_of_the_study():
    rows = re.findall(r"^\| 2,-1 .*$", README, flags=re.MULTILINE)
    study = (ROOT / "results" / "sts.md").read_text(encoding="utf-8").splitlines()
    assert len(rows) > 3 and [row for row in rows if row not in study] == []


def test_every_module_is_in_its_list_of_files():
    listed = set(re.findall(r"(\w+\.py)\b", README.split("## The files")[1].split("## Limits")[0]))
    assert listed == {path.name for path in ROOT.glob("*.py")}


def test_every_script_and_option_it_shows_exists():
    from conftest import run_script

    commands = re.findall(r"^python (\w+\.py) (.*)$", README, flags=re.MULTILINE)
    assert len({script for script, _ in commands}) > 6
    for script in {script for script, _ in commands}:
        known = run_script(script, "--help").stdout
        for command in (options for name, options in commands if name == script):
            for option in re.findall(r"--[\w.]+", command):
                assert option in known or option.startswith("--phases."), (script, option)
