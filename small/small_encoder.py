"""Sentences to embeddings, with onnxruntime, tokenizers and numpy only. This file runs in any folder that shrink.py wrote."""

import hashlib
import json
import os
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from onnxruntime import InferenceSession, SessionOptions
from tokenizers import Tokenizer

FORMAT, FILES = 1, ("encoder.onnx", "tokenizer.json")
SORTED_TOGETHER, TOKENS_TOGETHER = 8192, 512  # sentences; tokens, few enough for a core's cache


class SmallEncoder:
    """An encoder in a folder. Bad input raises ValueError, in one line that says what is wrong."""

    def __init__(self, folder: str | os.PathLike[str] = Path(__file__).parent, *, threads: int = 1) -> None:
        """Load an encoder; `threads` is how many CPU cores it may take."""
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true" if threads > 1 else "false")
        self.config, graph, tokenizer = _read(Path(folder))
        self.max_length = self.config["max_length"]
        options = SessionOptions()
        options.intra_op_num_threads = threads
        self._session = InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        self.tokenizer = Tokenizer.from_str(tokenizer.decode("utf-8"))
        self.tokenizer.enable_truncation(self.max_length)
        self.output_dim = self.run(["sentence_embedding"], [[0]])[0].shape[1]

    def encode(self, sentences: str | Iterable[str], *, batch_size: int = 32, show_progress: bool = False) -> np.ndarray:
        """The embeddings `(n, output_dim)` of n sentences, or `(output_dim,)` of one string: float32, unit length."""
        texts, batch_size, truncated = _as_list(sentences), max(1, batch_size), 0
        embeddings = np.empty((len(texts), self.output_dim), dtype=np.float32)
        say = print if show_progress and texts else lambda *text, **where: None
        try:
            for start in range(0, len(texts), SORTED_TOGETHER):
                ids, cut = self.tokenize(texts[start : start + SORTED_TOGETHER])
                truncated += cut
                order = np.argsort([len(own) for own in ids], kind="stable")  # batches of similar length have little padding
                while len(order):
                    longest = len(ids[order[min(batch_size, len(order)) - 1]])
                    rows, order = np.split(order, [min(batch_size, max(1, TOKENS_TOGETHER // max(1, longest)))])
                    (embeddings[start + rows],) = self.run(["sentence_embedding"], [ids[row] for row in rows])
                    say(f"\r{start + len(ids) - len(order):,} of {len(texts):,} sentences", end="", file=sys.stderr, flush=True)
        finally:
            say(file=sys.stderr)  # what follows, an error perhaps, begins on a line of its own
        if truncated:
            warnings.warn(f"{truncated} of {len(texts)} sentences truncated to {self.max_length} tokens (max_length)", stacklevel=2)
        return embeddings[0] if isinstance(sentences, str) else embeddings

    def similarity(self, a: str | Iterable[str], b: str | Iterable[str]) -> np.ndarray:
        """The cosine, -1 to 1, of every sentence of `a` with every one of `b`: `(n, m)`, without an axis where one is a string."""
        return (self.encode(a) @ self.encode(b).T).clip(-1, 1)

    def tokenize(self, texts: list[str]) -> tuple[list[list[int]], int]:
        """The token ids of each text, and how many texts were truncated."""
        encoded = self.tokenizer.encode_batch_fast(texts)
        return [own.ids for own in encoded], sum(bool(own.overflowing) for own in encoded)

    def run(self, outputs: list[str], ids: list[list[int]]) -> list[np.ndarray]:
        """Outputs of the graph for B sentences: `last_hidden_state` `(B, T, K)`, `sentence_embedding` `(B, K)`, K output_dim."""
        tokens, mask = np.zeros((2, len(ids), max(1, *map(len, ids))), dtype=np.int64)
        for row, own in enumerate(ids):
            tokens[row, : len(own)], mask[row, : len(own)] = own, 1
        return self._session.run(outputs, {"input_ids": tokens, "attention_mask": mask})


def _read(folder: Path) -> tuple[dict, bytes, bytes]:
    """An encoder's configuration, graph and tokenizer; checked, because a damaged graph may give wrong embeddings, not an error."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))["small_encoder"]
        graph, tokenizer = ((folder / name).read_bytes() for name in FILES)
        if config["format"] != FORMAT:
            raise ValueError(f"{folder} is of format {config['format']}, expected {FORMAT}; use the small_encoder.py in it")
        sums = [hashlib.sha256(own).hexdigest() for own in (graph, tokenizer)]
        intact = sums == [config["sha256"][name] for name in FILES] and type(config["max_length"]) is int
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(f"{error.filename} is missing, expected the folder of a small encoder") from None
    except (KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError, RecursionError):
        raise ValueError(f"{folder / 'config.json'} is damaged, or not that of a small encoder") from None
    if not intact or not 0 < config["max_length"] < 2**31:
        raise ValueError(f"{folder} is damaged: a file is not as config.json says; copy the folder again")
    return config, graph, tokenizer


def _as_list(sentences: str | Iterable[str]) -> list[str]:
    if not isinstance(sentences, Iterable) or isinstance(sentences, (bytes, dict)):
        raise ValueError(f"sentences are {type(sentences).__name__}, expected a string or a list of strings")
    texts = [sentences] if isinstance(sentences, str) else list(sentences)
    for number, text in enumerate(texts, start=1):
        if not isinstance(text, str):
            raise ValueError(f"sentence {number} of {len(texts)} is {type(text).__name__}, expected a string")
        if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
            raise ValueError(f"sentence {number} of {len(texts)} has half a character (a surrogate), expected Unicode text")
    return texts
