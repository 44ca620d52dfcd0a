"""Damaged files of every kind, a few of each; `python benchmarks/trust/fuzz.py --inputs 100000` reads many."""

from __future__ import annotations

import io
import sys
import warnings
import zipfile

import pytest
import torch
from conftest import ROOT

from common.errors import InputError
from evaluation.checkpoint import load_encoder, save_encoder
from model import EncoderConfig, SentenceEncoder

sys.path.insert(0, str(ROOT / "benchmarks" / "trust"))

import fuzz
import text_formats

INPUTS = {
    "tokens": 300,
    "labels": 300,
    "delimited": 300,
    "json": 300,
    "parquet": 200,
    "recipes": 20,
    "checkpoints": 100,
    "stores": 300,
    "small encoders": 100,
    "sentences": 300,
    "corpus sentences": 300,
    "corpora": 300,
}


@pytest.mark.parametrize("name", INPUTS)
def test_damaged_files_are_read_correctly_or_refused_in_one_line(name, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        counts, failures = fuzz.fuzz(name, fuzz.READERS[name](tmp_path), tmp_path, INPUTS[name], seed=1)
    assert failures == []
    assert counts["read"] and counts["refused"]


def test_wrong_numbers_are_found(tmp_path, monkeypatch):
    right = fuzz.TokenFiles.read
    monkeypatch.setattr(fuzz.TokenFiles, "read", lambda self, path: [row[:-1] + b"\x7f" for row in right(self, path)])
    _, failures = fuzz.fuzz("tokens", fuzz.TokenFiles(), tmp_path, 50, seed=1)
    assert any(reason.startswith("read as") for reason, _ in failures)


@pytest.mark.parametrize("name", ["delimited", "json", "parquet"])
def test_pairs_read_wrongly_and_undamaged_tables_refused_are_found(name, tmp_path, monkeypatch):
    right = text_formats.Tables.read
    monkeypatch.setattr(text_formats.Tables, "read", lambda self, path: ([*right(self, path)[0][1:], "x"], *right(self, path)[1:]))
    counts, failures = fuzz.fuzz(name, fuzz.READERS[name](tmp_path), tmp_path, 30, seed=1)
    assert len(failures) == counts["read"] > 0

    def refuse(self, path):
        raise InputError("no")

    monkeypatch.setattr(text_formats.Tables, "read", refuse)
    _, failures = fuzz.fuzz(name, fuzz.READERS[name](tmp_path), tmp_path, 30, seed=1)
    assert {reason for reason, _ in failures} == {"refused what is right"}


def test_other_values_of_an_intact_checkpoint_are_found(tmp_path, monkeypatch):
    reader = fuzz.Checkpoints(tmp_path)
    monkeypatch.setattr(reader, "make", lambda rng: reader.good)
    assert fuzz.fuzz("checkpoints", reader, tmp_path, 1, seed=1) == ({"read": 1}, [])
    monkeypatch.setattr(reader, "read", lambda path: [value[:-1] + b"\x7f" for value in reader.values])
    _, failures = fuzz.fuzz("checkpoints", reader, tmp_path, 1, seed=1)
    assert len(failures) == 1 and failures[0][0].startswith("read as")


def test_a_checkpoint_cannot_claim_memory(tmp_path):
    """By its configuration, by a tensor that is a view of one number, by compression."""
    good = SentenceEncoder(EncoderConfig(input_dim=4, output_dim=2, heads=2, hidden_dim=2))
    huge = EncoderConfig(input_dim=10**6, output_dim=10**6, heads=1, hidden_dim=0)
    with torch.device("meta"):
        claim = SentenceEncoder(huge).get_extra_state()
    path = tmp_path / "model.bin"
    torch.save({**good.state_dict(), "_extra_state": torch.tensor(claim.tolist(), dtype=torch.uint8)}, path)
    with pytest.raises(InputError, match="not a checkpoint"):
        load_encoder(path)
    torch.save({**good.state_dict(), "_extra_state": torch.zeros(1, dtype=torch.uint8).expand(10**12)}, path)
    with pytest.raises(InputError, match="claims to be larger than the file"):
        load_encoder(path)
    save_encoder(path, good)
    packed = io.BytesIO()
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as bomb:
        for name in archive.namelist():
            bomb.writestr(name, archive.read(name))
        bomb.writestr("archive/data/99", bytes(10**7))
    path.write_bytes(packed.getvalue())
    with pytest.raises(InputError, match="unpack to more than its own size"):
        load_encoder(path)
