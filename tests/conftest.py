"""What several tests need: random token stores, a run of a script, a tiny backbone."""

from __future__ import annotations

import copy
import importlib
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from common.cli import run_command
from data import PairData
from model import mean_pooling
from shrinking.folder import write_folder
from studies.runs import Run
from text import TextEncoder
from tokens.backbone import Backbone
from tokens.dat_files import write_dat_files
from tokens.text_pairs import TextPairs
from tokens.token_store import create_store, open_store, pack_json
from training.whole_trainer import WholeTrainer

ROOT = Path(__file__).parent.parent
SENTENCES = ["the cat sat", "a dog ran far away", "the dog sat", "cat"]
WORDS = sorted({word for sentence in SENTENCES for word in sentence.split()})


def random_sentences(rng: np.random.Generator, n: int, dim: int = 768, longest: int = 9) -> list[np.ndarray]:
    """n sentences of 1 to `longest` tokens."""
    return [rng.standard_normal((int(rng.integers(1, longest + 1)), dim)).astype(np.float32) for _ in range(n)]


def learnable_pairs(rng: np.random.Generator, n: int, dim: int = 32) -> tuple[list[np.ndarray], np.ndarray, np.ndarray, np.ndarray]:
    """Sentences whose first 4 dimensions carry the meaning and whose other 28 are noise: mean pooling is poor on
    them, and a projection learns better. Gives sentences, first, second, labels."""
    sentences, labels = [], []
    for _ in range(n):
        meaning = rng.standard_normal(4)
        label = rng.uniform(0, 5)
        other = meaning * label / 5 + rng.standard_normal(4) * (1 - label / 5)
        for vector in (meaning, other):
            tokens = rng.standard_normal((int(rng.integers(2, 7)), dim))
            tokens[:, :4] = vector + 0.1 * rng.standard_normal((len(tokens), 4))
            sentences.append(tokens.astype(np.float32))
        labels.append(label)
    numbers = np.arange(n) * 2
    return sentences, numbers, numbers + 1, np.array(labels, dtype=np.float32)


def store_pairs(
    path: Path,
    sentences: list[np.ndarray],
    first: np.ndarray,
    second: np.ndarray,
    labels: np.ndarray,
    text: list[str] | None = None,
) -> Path:
    """Write a pair store as prepare_data.py does."""
    with create_store(path, sentences[0].shape[1]) as writer:
        for tokens in sentences:
            writer.append(tokens)
        names = text or [f"sentence {i}" for i in range(len(sentences))]
        writer.finish({"first": first, "second": second, "labels": labels, "sentences": pack_json(names)}, {})
    return path


def store_parts(folder: Path, **parts: int) -> Path:
    """Learnable pairs in a folder: `store_parts(folder, train=300, dev=100)` makes train.store and dev.store, 32 wide."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for name, n in parts.items():
        text = [f"{name} {i}" for i in range(2 * n)]  # other sentences than those of the other parts
        store_pairs(folder / f"{name}.store", *learnable_pairs(rng, n), text)
    return folder


@pytest.fixture
def make_pairs(tmp_path: Path) -> Callable[..., PairData]:
    """Build a PairData of random sentences: `make_pairs(first, second, labels=None, dim=8)`."""

    def build(first, second, labels=None, dim: int = 8, seed: int = 0) -> PairData:
        first, second = np.asarray(first), np.asarray(second)
        rng = np.random.default_rng(seed)
        labels = rng.uniform(0, 5, len(first)).astype(np.float32) if labels is None else np.asarray(labels, np.float32)
        sentences = random_sentences(rng, int(max(first.max(), second.max())) + 1, dim)
        path = store_pairs(tmp_path / f"{len(list(tmp_path.iterdir()))}.store", sentences, first, second, labels)
        store = open_store(path)
        return PairData(store, first, second, labels)

    return build


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory) -> Path:
    """A random BERT of three blocks, 16 wide, saved as a model folder."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("tiny-bert")
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(vocab_size=5 + len(WORDS), hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32)
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_small(tiny_bert, tmp_path_factory) -> Path:
    """A tiny whole encoder, 16 wide, of at most 12 tokens."""
    folder = tmp_path_factory.mktemp("tiny-small") / "encoder"
    write_folder(folder, Backbone(str(tiny_bert), max_length=12), mean_pooling(16), None, {"backbone": "tiny"})
    return folder


@pytest.fixture(scope="session")
def tiny_qwen(tmp_path_factory) -> Path:
    """A random Qwen2 of two blocks, 16 wide. Its tokens are single letters, none for an empty sentence; it has no token for
    padding, and its tokenizer gives `token_type_ids`, which a Qwen2 does not know."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2Config, Qwen2Model, Qwen2Tokenizer

    folder = tmp_path_factory.mktemp("tiny-qwen")
    vocabulary = ["<|endoftext|>", *sorted(ByteLevel.alphabet())]
    tokenizer = Qwen2Tokenizer(vocab={token: i for i, token in enumerate(vocabulary)}, merges=[], pad_token=None)
    tokenizer.save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    torch.manual_seed(0)
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 32}
    Qwen2Model(Qwen2Config(vocab_size=len(vocabulary), **size)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def text_encoder() -> TextEncoder:
    """The shipped encoder on the packaged backbone."""
    return TextEncoder(ROOT / "model.bin", device="cpu")


@pytest.fixture
def challenge(tmp_path: Path) -> Path:
    """A folder with the challenge's four files, 12 pairs."""
    rng = np.random.default_rng(1)
    first, second = random_sentences(rng, 12), random_sentences(rng, 12)
    text = TextPairs([f"first {i}" for i in range(12)], [f"second {i}" for i in range(12)], np.linspace(0, 5, 12, dtype=np.float32))
    write_dat_files(tmp_path / "challenge", text, first, second)
    return tmp_path / "challenge"


def run_script(name: str, *arguments: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run one of the project's commands as a user does."""
    command = [sys.executable, str(ROOT / name), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture
def run_here(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """As `run_script`, in the process of the test: the start of another takes longer than most commands on small data."""

    def run(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        command, status = [name, *map(str, arguments)], 0
        capsys.readouterr()
        with monkeypatch.context() as patch:
            patch.setattr("sys.argv", command)
            try:
                run_command(importlib.import_module(Path(name).stem).main)
            except SystemExit as ended:
                status = int(ended.code or 0)
        return subprocess.CompletedProcess(command, status, *capsys.readouterr())

    return run


@pytest.fixture
def run_all_here(run_here: Callable[..., subprocess.CompletedProcess[str]]) -> Callable[[Sequence[Run], int], None]:
    """In place of `studies.runs.run_all`: what is not done yet, in the process of the test."""

    def run_all(runs: Sequence[Run], workers: int) -> None:
        for run in runs:
            if not run.is_done():
                done = run_here(run.command, *run.options, "--run_dir", run.folder, "--out", run.folder / "model.bin")
                assert done.returncode == 0, done.stderr

    return run_all


def last_line(result: subprocess.CompletedProcess[str]) -> str:
    """The one line an error ends in; fails where there was no error or a traceback."""
    assert result.returncode == 2, (result.returncode, result.stdout, result.stderr)
    assert "Traceback" not in result.stderr
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert sum(line.startswith("error: ") for line in lines) == 1
    return lines[-1]


class StoppedError(Exception):
    """A run that a test stops."""


def stopped_and_resumed(make_trainer: Callable[[], WholeTrainer], stop: int) -> None:
    """Check that a run which is stopped after some batches and resumed by another trainer ends in the same bits."""
    undisturbed, first, saved = make_trainer(), make_trainer(), {}
    undisturbed.run()

    def at_safe_point() -> None:
        if first.batches_done >= stop:
            saved.update(copy.deepcopy(first.state_dict()))
            raise StoppedError

    first.on_safe_point = at_safe_point
    with pytest.raises(StoppedError):
        first.run()
    torch.rand(3)  # the state of random numbers is another one in another process
    second = make_trainer()
    second.load_state_dict(saved)
    second.run()
    assert second.history == undisturbed.history
    assert undisturbed.batches_done == undisturbed.total_batches
    for name, value in undisturbed.encoder.model.state_dict().items():
        assert torch.equal(value, second.encoder.model.state_dict()[name]), name
