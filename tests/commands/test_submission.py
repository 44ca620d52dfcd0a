"""check_submission.py: the shipped files pass, and faults are found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import ROOT, run_script

from evaluation.checkpoint import save_encoder
from model import EncoderConfig, SentenceEncoder

# Faults of every kind in one submission; the checks must name each of them and no other.
FAULTY = """
import numpy, torch
from torch import nn

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(768))
    def get_extra_state(self):
        return "text"
    def set_extra_state(self, state):
        pass
    def forward(self, tokens):
        return (tokens * self.weight).mean((0, 1)).expand(len(tokens), -1) + torch.rand(1)

def get_model():
    return Model()
"""


def checked(folder: Path) -> dict[str, dict]:
    result = run_script("check_submission.py", "--model", folder / "model.py", "--checkpoint", folder / "model.bin", "--json")
    report = json.loads(result.stdout)
    assert result.returncode == (0 if report["passed"] else 1), result.stderr
    return {check["name"]: check for check in report["checks"]}


def test_what_ships_passes_every_check():
    checks = checked(ROOT)
    assert len(checks) == 14 and all(check["passed"] for check in checks.values()), checks


def test_faults_are_named(tmp_path):
    (tmp_path / "model.py").write_text(FAULTY)
    torch.save({"weight": torch.ones(768), "_extra_state": "text" * 6_000_000}, tmp_path / "model.bin")
    checks = checked(tmp_path)
    failed = {name for name, check in checks.items() if not check["passed"]}
    assert failed == {
        "size", "imports", "checkpoint holds tensors only", "unit length", "padding invariance",
        "batch invariance", "sentence without tokens", "1 token", "512 tokens", "deterministic",
    }  # fmt: skip
    assert checks["imports"]["figure"] == "also numpy"
    assert checks["checkpoint holds tensors only"]["figure"] == "not a tensor: _extra_state"


@pytest.mark.parametrize(
    ("code", "check", "figure"),
    [
        ("import sys; sys.exit('enough')", "completes", "enough"),
        ("def get_model(): return nothing", "get_model and strict loading", "NameError: name 'nothing' is not defined"),
    ],
)
def test_code_that_fails_is_an_outcome_not_a_crash(tmp_path, code, check, figure):
    (tmp_path / "model.py").write_text(code)
    (tmp_path / "model.bin").write_bytes((ROOT / "model.bin").read_bytes())
    found = checked(tmp_path)[check]
    assert not found["passed"] and figure in found["figure"]


def test_a_checkpoint_for_other_tokens_is_one_failure_that_says_so(tmp_path):
    (tmp_path / "model.py").write_bytes((ROOT / "model.py").read_bytes())
    save_encoder(tmp_path / "model.bin", SentenceEncoder(EncoderConfig(input_dim=384)))
    failed = {name: check["figure"] for name, check in checked(tmp_path).items() if not check["passed"]}
    assert failed == {"get_model and strict loading": "takes 384-dimensional tokens, the challenge's have 768 dimensions"}


def test_a_missing_file_is_an_error(tmp_path):
    result = run_script("check_submission.py", "--model", tmp_path / "model.py")
    assert result.returncode == 2 and "model.py: no such file" in result.stderr and "Traceback" not in result.stderr
