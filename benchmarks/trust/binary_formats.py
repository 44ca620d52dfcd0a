"""Fuzzed binary files and folders: checkpoints, token stores, small encoders, corpora."""

from __future__ import annotations

import io
import json
import random
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from damage import Reader, change_bytes
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from corpus.index import CorpusFolder, Plan
from corpus.nearest import Corpus
from evaluation.checkpoint import load_encoder, save_encoder
from model import EncoderConfig, SentenceEncoder, mean_pooling
from portable.small_encoder import FILES, SmallEncoder
from shrinking.folder import write_folder
from shrinking.layers import StaticModel
from text import load_small_encoder
from tokens.token_store import create_store, open_store, pack_json

DIM = 3


class Checkpoints(Reader):
    """model.bin with bytes changed, or with contents changed in an intact archive."""

    may_refuse = True

    def __init__(self, folder: Path) -> None:
        torch.manual_seed(0)
        path = folder / "good.bin"
        save_encoder(path, SentenceEncoder(EncoderConfig(input_dim=4, output_dim=2, heads=2, hidden_dim=2)))
        self.good = path.read_bytes()
        self.entries = self._entries(self.good)
        self.canary = folder / "executed"
        self.values = self.read(path)

    @staticmethod
    def _entries(content: bytes) -> dict[str, bytes]:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return {name: archive.read(name) for name in archive.namelist()}

    def make(self, rng: random.Random) -> bytes:
        kind = rng.randrange(4)
        if kind == 0:
            return change_bytes(rng, self.good, 4)
        if kind == 1:
            at = rng.randrange(len(self.good))
            return rng.choice((self.good[:at], self.good[at:], self.good[:at] + rng.randbytes(rng.randint(1, 50)) + self.good[at:]))
        entries = dict(self.entries)
        if kind == 2:  # an entry with a valid checksum
            name = rng.choice(sorted(entries))
            entries[name] = change_bytes(rng, entries[name], 3)
        else:  # a pickle that would execute code, or that claims sizes that are not there
            (name,) = (name for name in entries if name.endswith("data.pkl"))
            canary = str(self.canary).encode()
            entries[name] = rng.choice(
                (
                    b"\x80\x02cbuiltins\nopen\nX\x06\x00\x00\x00%sX\x01\x00\x00\x00w\x86R." % canary,
                    b"cposix\nsystem\n(S'touch %s'\ntR." % canary,
                    b"\x80\x02}(X\x01\x00\x00\x00acpathlib\nPath.touch\n(cpathlib\nPath\n(S'%s'\ntRtRu." % canary,
                    entries[name].replace(b"K\x02", b"\x8a\x06\x00\x00\x00\x00\x00\x01"),  # a size of 10^12
                    entries[name].replace(b"K\x08", b"J\xff\xff\xff\x7f"),
                )
            )
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
            for name, entry in entries.items():
                archive.writestr(name, entry if rng.random() > 0.001 else bytes(50_000_000))
        return buffer.getvalue()

    def read(self, path: Path) -> Any:
        encoder = load_encoder(path)
        encoder(torch.ones(1, 2, encoder.config.input_dim))
        if self.canary.exists():
            raise RuntimeError("a pickle was executed")
        return [parameter.detach().numpy().tobytes() for parameter in encoder.parameters()]

    def expected(self, content: bytes) -> Any:
        """The good values, or None if an entry was changed and any value may be right; a wrong checksum raises."""
        return self.values if self._entries(content) == self.entries else None

    def agrees(self, found: Any, expected: Any) -> bool:
        return expected is None or found == expected


class Stores(Reader):
    """Token stores with bytes changed: everything outside the tokens is read unchanged."""

    may_refuse = True

    def __init__(self, folder: Path) -> None:
        path = folder / "good.store"
        with create_store(path, DIM) as writer:
            for length in (2, 1, 3):
                writer.append(np.arange(1, length * DIM + 1, dtype=np.float32).reshape(length, DIM))
            extra = {"labels": np.array([1, 4], np.float32), "sentences": pack_json(["a", "b", "c"])}
            writer.finish(extra, {"source": "x"})
        self.good = path.read_bytes()
        self.values = self.read(path)

    def make(self, rng: random.Random) -> bytes:
        kind = rng.randrange(3)
        if kind == 0:
            return change_bytes(rng, self.good, 3)
        if kind == 1:
            at = rng.randrange(len(self.good))
            return self.good[:at] + rng.choice((b"", rng.randbytes(rng.randint(1, 40)), self.good[at:] * 2))
        at = rng.choice([i for i, byte in enumerate(self.good) if chr(byte).isdigit()])  # a number in a header
        return self.good[:at] + rng.choice((b"9", b"999999999999", b"-1", b"0")) + self.good[at + 1 :]

    def read(self, path: Path) -> Any:
        store = open_store(path)
        for i in range(len(store)):
            store.sentence(i).sum()
        arrays = {"starts": store.starts, "lengths": store.lengths, "digests": store.digests, **store.extra}
        return {name: array.tolist() for name, array in arrays.items()}

    def expected(self, content: bytes) -> Any:
        return self.values  # damage to the tokens goes unnoticed: checksums of them would take too long


class FolderReader(Reader):
    """One file of a folder with bytes changed, cut off, or, in the configuration, with other values.

    Attributes:
        folder: a good folder.
        good: the contents of its files.
        configuration: the name of its JSON file, and the key of the object whose values are changed, if it is not the whole.
    """

    may_refuse = True
    folder: Path
    good: dict[str, bytes]
    configuration: tuple[str, str | None]

    def make(self, rng: random.Random) -> bytes:
        name = rng.choice(sorted(self.good))
        content, kind = self.good[name], rng.randrange(4)
        if kind == 0:
            content = content[: rng.randrange(len(content) + 1)]
        elif kind == 1 and name == self.configuration[0]:
            config = json.loads(content)
            own = config if self.configuration[1] is None else config[self.configuration[1]]
            own[rng.choice(sorted(own))] = rng.choice((None, -1, 0, 2.5, "4", [], {}, True, 10**12, "int8"))
            content = json.dumps(config).encode()
        elif kind > 1:
            content = change_bytes(rng, content, 3)
        return name.encode() + b"\n" + content

    def read(self, path: Path) -> Any:
        name, content = path.read_bytes().split(b"\n", 1)
        file = self.folder / name.decode()
        file.write_bytes(content)
        try:
            return self.read_folder()
        finally:
            file.write_bytes(self.good[name.decode()])

    def read_folder(self) -> Any:
        """What the folder holds."""
        raise NotImplementedError


class SmallEncoders(FolderReader):
    """The folder of a small encoder."""

    configuration = ("config.json", "small_encoder")

    def __init__(self, folder: Path) -> None:
        torch.manual_seed(0)
        self.folder = folder / "small"
        vocabulary = {"[UNK]": 0, "a": 1, "cat": 2}
        tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
        model = StaticModel(torch.randn(len(vocabulary), 4), SimpleNamespace(to_diff_dict=dict, hidden_size=4))
        words = SimpleNamespace(backend_tokenizer=tokenizer, special_tokens_map={})
        backbone: Any = SimpleNamespace(model=model, tokenizer=words, max_length=8, name="tiny")
        write_folder(self.folder, backbone, mean_pooling(4), None, {})
        self.good = {name: (self.folder / name).read_bytes() for name in (*FILES, "config.json")}
        self.values = SmallEncoder(self.folder).encode("a cat").tobytes()

    def read_folder(self) -> Any:
        return load_small_encoder(self.folder).encode("a cat").tobytes()

    def expected(self, content: bytes) -> Any:
        """The good values for an intact graph and tokenizer; of another configuration, those or an error."""
        name, content = content.split(b"\n", 1)
        if name != b"config.json" and content != self.good[name.decode()]:
            raise ValueError(name)
        return self.values


class Corpora(FolderReader):
    """The folder of an encoded corpus."""

    configuration = ("corpus.json", None)

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "corpus"
        plan = Plan("", None, "", "", None, False, "", 3, 2, "npy", "float32", True, 4)
        corpus = CorpusFolder.begin(self.folder, plan)
        for number, rows in enumerate(([0, 1], [2])):
            corpus.write(number, rows, [f"sentence {row}" for row in rows], np.eye(4, dtype=np.float32)[rows])
        self.good = {path.name: path.read_bytes() for path in self.folder.iterdir()}

    def read_folder(self) -> Any:
        corpus = Corpus(self.folder)
        _, numbers = corpus.nearest(np.ones((1, 4), np.float32), 3)
        return sorted(numbers[0].tolist()), len(corpus.rows([0, 1, 2]))

    def expected(self, content: bytes) -> Any:
        return [0, 1, 2], 3  # changed numbers and letters go unnoticed
