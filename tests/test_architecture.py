"""The structure stays as docs/architecture.md and the README describe it, and each way of adding to it works."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, store_parts

# Each may import from those before it. `portable` runs without the others; commands do not import each other.
LAYERS = (
    "model",
    "losses",
    "schedulers",
    "common",
    "tokens",
    "data",
    "evaluation",
    "text",
    "training",
    "shrinking",
    "retrieval",
    "corpus",
    "studies",
)
FOLDERS = ("common", "tokens", "evaluation", "training", "shrinking", "retrieval", "corpus", "portable", "studies")
README = (ROOT / "README.md").read_text(encoding="utf-8")
LAYOUT = README.split("\n## Layout\n")[1].split("\n## ")[0]
GUIDE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def sources() -> list[Path]:
    return [path for path in (*ROOT.glob("*.py"), *(file for name in FOLDERS for file in (ROOT / name).glob("*.py")))]


def imported(path: Path) -> set[str]:
    """The first part of every module that a file imports, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add((node.module or "").split(".")[0])
    return names


def place_of(path: Path) -> str:
    return path.stem if path.parent == ROOT else path.parent.name


def test_imports_go_one_way():
    commands = {path.stem for path in ROOT.glob("*.py")} - set(LAYERS)
    wrong = []
    for path in sources():
        own = place_of(path)
        for name in imported(path) & {*LAYERS, *commands, "portable"}:
            if own == "portable":
                allowed = name == "model"
            elif own in commands:
                allowed = name in LAYERS or name == "portable"
            else:
                allowed = name == "portable" or (name in LAYERS and LAYERS.index(name) <= LAYERS.index(own))
            if not allowed:
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert wrong == []


def test_only_torch_is_needed_for_the_model():
    assert imported(ROOT / "model.py") - sys.stdlib_module_names == {"torch"}


def test_no_folder_is_crowded():
    folders = {path.parent for path in ROOT.rglob("*.py") if not any(part[0] == "." for part in path.relative_to(ROOT).parts)}
    assert len(list(ROOT.glob("*.py"))) <= 20
    assert {folder.name: n for folder in folders - {ROOT} if (n := len(list(folder.glob("*.py")))) > 12 + 1} == {}  # and __init__


def test_the_layout_in_the_readme_is_the_one_on_disk():
    named = set(re.findall(r"(\w+\.py)\b", LAYOUT))
    assert named == {path.name for path in ROOT.glob("*.py")}
    folders = dict(re.findall(r"^(\w+)/ +([A-Z].*)$", LAYOUT, flags=re.MULTILINE))
    assert folders == {name: ast.get_docstring(ast.parse((ROOT / name / "__init__.py").read_text())) for name in FOLDERS}
    assert set(re.findall(r"(\w+)/", LAYOUT)) == {path.name for path in ROOT.iterdir() if path.is_dir() and is_tracked(path)}


def is_tracked(folder: Path) -> bool:
    return folder.name[0] != "." and folder.name not in ("runs", "stores", "exported", "__pycache__")


def test_the_followed_batch_names_files_in_reading_order_and_functions_that_are_there():
    path = GUIDE.split("\n## One batch")[1].split("\n## ")[0]
    files = list(dict.fromkeys(re.findall(r"\]\(\.\./([\w/]+\.py)\)", path)))
    assert 0 < len(files) <= 8
    text = "\n".join((ROOT / file).read_text(encoding="utf-8") for file in files)
    for name in re.findall(r"`(\w+)\(\)`", path):
        assert f"def {name}(" in text, name


@pytest.fixture(scope="module")
def extended(tmp_path_factory) -> Path:
    """A copy of the project to which docs/architecture.md's four examples are applied, and learnable pairs."""
    folder = tmp_path_factory.mktemp("extended")
    for path in sources():
        (folder / path.relative_to(ROOT)).parent.mkdir(exist_ok=True)
        shutil.copyfile(path, folder / path.relative_to(ROOT))
    shutil.copytree(ROOT / "configs", folder / "configs")
    shutil.copytree(ROOT / "data" / "starter", folder / "data" / "starter", ignore=shutil.ignore_patterns("*.store"))
    store_parts(folder / "mine", train=80, dev=40)
    for section in ("A loss", "An architecture", "A data format", "A command"):
        text = GUIDE.split(f"\n### {section}\n")[1].split("\n### ")[0].split("\n## ")[0]
        changed = re.findall(r"^`([\w/.]+)`", text, flags=re.MULTILINE)
        assert 0 < len(set(changed)) <= 3, section
        blocks = re.findall(r"^`([\w/.]+)`([^\n]*):\n\n```(?:python|yaml)\n(.*?)```", text, flags=re.MULTILINE | re.DOTALL)
        assert {file for file, _, _ in blocks} <= set(changed)
        for file, where, code in blocks:
            path = folder / file
            assert path.exists() == ("at the end" in where)  # otherwise it is a new file
            path.write_text((path.read_text(encoding="utf-8") if path.exists() else "") + code, encoding="utf-8")
    return folder


def run(folder: Path, *command: str) -> str:
    done = subprocess.run([sys.executable, *command], cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_adding_a_loss_and_an_architecture_takes_what_the_guide_says(extended):
    small = ("--encoder.architecture", "maximum", "--start", "random", "--encoder.output_dim", "8", "--phases.graded.epochs", "1")
    data = ("--data", "mine/train.store", "--validation", "mine/dev.store")
    printed = run(
        extended,
        "train.py",
        *data,
        "--preset",
        "mae",
        *small,
        "--never_below_baseline",
        "false",
        "--run_dir",
        "run",
        "--out",
        "run/model.bin",
    )
    assert "mean pooling" in printed
    check = "from evaluation.checkpoint import load_encoder; print(load_encoder('run/model.bin').config.architecture)"
    assert run(extended, "-c", check).strip() == "maximum"


def test_adding_a_data_format_takes_what_the_guide_says(extended):
    (extended / "pairs.txt").write_text("a cat ||| a dog ||| 2\none ||| two ||| 0.5\n")
    printed = run(
        extended, "-c", "from tokens.text_pairs import *; p = read_text_pairs('pairs.txt'); print(p.second, p.labels.tolist())"
    )
    assert printed.strip() == "['a dog', 'two'] [2.0, 0.5]"


def test_adding_a_command_takes_what_the_guide_says(extended):
    assert "--data" in run(extended, "lengths.py", "--help")
    assert run(extended, "lengths.py", "--data", "mine/dev.store").startswith("80 sentences")
