"""Several processes against one: the same batches, the same losses, the same weights."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, store_parts

from data import open_pairs, training_batches
from evaluation.checkpoint import load_encoder

OPTIONS = (
    *("--encoder.output_dim", "16", "--encoder.heads", "4", "--encoder.hidden_dim", "16", "--encoder.dropout", "0"),
    *("--phases.contrastive.epochs", "1", "--phases.contrastive.losses.nt_xent.guide", "baseline"),
    *("--phases.graded.epochs", "2", "--device", "cpu", "--never_below_baseline", "false"),
    *("--phases.contrastive.select", "none", "--phases.graded.select", "none"),  # the last weights, whatever they are worth
)


def arguments(folder: Path, name: str) -> list[str]:
    """Of train.py."""
    paths = ("--data", folder / "train.store", "--validation", folder / "dev.store", "--run_dir", folder / name)
    return [*map(str, paths), "--out", str(folder / name / "model.bin"), *OPTIONS]


@pytest.fixture
def folder(tmp_path) -> Path:
    """101 pairs: the batches do not divide evenly among processes, and the last one is small."""
    store_parts(tmp_path, train=101, dev=40)
    return tmp_path


@pytest.mark.parametrize(
    "options", [("--batch_size", "33"), ("--batch_size", "32", "--accumulation", "2", "--sentences_at_a_time", "9")]
)
def test_two_processes_equal_one(folder, options, run_here):
    """Without dropout: what is dropped is drawn by each process for itself."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(ROOT / "train.py")]
    command = [*launcher, *arguments(folder, "two"), *options]
    result = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert result.returncode == 0 and result.stdout.count("Mean pooling, before training") == 1, result.stderr
    assert run_here("train.py", *arguments(folder, "one"), *options).returncode == 0
    one, two = (load_encoder(folder / name / "model.bin").state_dict() for name in ("one", "two"))
    start = torch.load(folder / "one" / "model.bin", weights_only=True)
    assert start["pooling.score.weight"].abs().max() > 1e-4  # zero before training: it did train
    for name, weights in one.items():
        torch.testing.assert_close(two[name].float(), weights.float(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("n_processes", [1, 2, 3, 5])
def test_shares_of_a_batch_are_the_batch(folder, n_processes):
    """The rows of all processes, one process after the other, at `position`, are the sentences in their order."""
    pairs = open_pairs([folder / "train.store"])
    pairs = replace(pairs, negatives=np.random.default_rng(0).integers(0, len(pairs.tokens), (len(pairs), 2)))
    shares = [list(training_batches(pairs, 33, np.random.default_rng(1), share=(rank, n_processes))) for rank in range(n_processes)]
    for one, *batches in zip(training_batches(pairs, 33, np.random.default_rng(1)), *shares, strict=True):
        expected = torch.cat([tokens.sum(1) for tokens, _ in one.buckets])[one.position]
        found = torch.cat([tokens.sum(1) for batch in batches for tokens, _ in batch.buckets])[batches[0].position]
        torch.testing.assert_close(found, expected)
        sizes = [sum(len(lengths) for _, lengths in batch.buckets) for batch in batches]
        assert sizes == [len(range(rank, len(one.position), n_processes)) for rank in range(n_processes)]


def test_a_batch_smaller_than_the_number_of_processes_leaves_some_without(folder):
    pairs = open_pairs([folder / "train.store"]).select(np.arange(2))
    (batch,) = training_batches(pairs, 2, np.random.default_rng(0), share=(7, 8))
    assert [tuple(tokens.shape) for tokens, _ in batch.buckets] == [(0, 1, 32)]
