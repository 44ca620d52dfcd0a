"""Every form of file that people have goes through a command to a checkpoint."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from conftest import ROOT

from data import open_pairs

sys.path.append(str(ROOT / "tests" / "tokens"))

from forms import GRADED, TEXT_FORMS, compressed, parquet, write_form

SMALL = ("--encoder.output_dim", "8", "--encoder.hidden_dim", "0", "--batch_size", "4")
FORMS = [*TEXT_FORMS, "Parquet"]


def write(folder: Path, name: str) -> Path:
    if name == "Parquet":
        parquet(folder / "pairs.parquet")
        return folder / "pairs.parquet"
    return write_form(folder, name)


@pytest.mark.parametrize("name", FORMS)
def test_each_form_trains_an_encoder(name, tmp_path, run_here):
    path = write(tmp_path, name)
    labelled = name == "Parquet" or TEXT_FORMS[name][2] is not None
    recipe = ("--phases.graded.epochs", "1") if labelled else ("--preset", "pairs", "--phases.ranking.epochs", "1")
    places = ("--run_dir", tmp_path / "run", "--out", tmp_path / "model.bin")
    done = run_here("train.py", "--data", path, "--validation", path, *recipe, *SMALL, *places)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "model.bin").exists() and "mean pooling" in done.stdout
    assert ("labels are" in done.stderr) == labelled


def test_the_same_pairs_have_the_same_identity_whatever_their_form(tmp_path):
    graded = [name for name in FORMS if name == "Parquet" or TEXT_FORMS[name][2] == GRADED]
    paths = [write(tmp_path, name) for name in graded]
    paths.append(compressed(write(tmp_path, "GLUE's STS-B"), "gz"))
    assert len(paths) == 11
    assert len({open_pairs([path]).identity() for path in paths}) == 1
