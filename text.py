"""Sentence embeddings and similarities of text.

    from text import TextEncoder
    print(TextEncoder("model.bin").similarity("A man plays a guitar.", "Somebody makes music."))

On the command line, with a heat map of what each token contributes to the similarity:

    python text.py "A man plays a guitar." "Somebody makes music." --explain explanation.png
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from common.cli import make_parser, output_file, run_command
from common.devices import choose_device
from common.errors import InputError
from evaluation.checkpoint import DEFAULT_CHECKPOINT, load_encoder
from evaluation.encoding import check_tokens
from evaluation.explanation import Explanation, draw_explanation, token_parts
from model import EncoderConfig, SentenceEncoder, mean_pooling
from tokens.backbone import DEFAULT_MAX_LENGTH, Backbone
from tokens.text_pairs import find_surrogate


@dataclass(frozen=True)
class Match:
    """A ranked document: its index in the list given, its cosine with the query, its text."""

    index: int
    similarity: float
    document: str


class TextEncoder:
    """A backbone that turns text into token embeddings, and a head that turns these into sentence embeddings.

    Attributes:
        backbone: text to token embeddings.
        head: token embeddings to sentence embeddings, in evaluation mode, on the backbone's device.
    """

    def __init__(
        self,
        head: str | Path | SentenceEncoder | None = None,
        *,
        backbone: str | Backbone | None = None,
        layers: str | None = None,
        output_dim: int | None = None,
        max_length: int = DEFAULT_MAX_LENGTH,
        device: str = "auto",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Load a head, a backbone, or both.

        Args:
            head: a trained encoder or its checkpoint; None uses mean pooling.
            backbone: hub name, local folder, or a loaded one (default: the one the head was trained on).
            layers: see `Backbone` (default: those the head was trained on).
            output_dim: without a head, adds an untrained projection to this width, initialised orthogonal.
            max_length: tokens per sentence; longer sentences are truncated with a warning.
            device: auto, cpu, cuda, mps.
            dtype: the backbone's precision, such as torch.bfloat16 or torch.float16; the head stays float32.

        Raises:
            InputError: if a file or backbone cannot be loaded, or the head was trained on other tokens.
        """
        if head is None and backbone is None:
            raise InputError('nothing to encode with, expected a head such as "model.bin", a backbone, or both')
        if isinstance(head, (str, Path)):
            head = load_encoder(head)
        trained_on = {} if head is None else head.tokens_from
        backbone = backbone or trained_on.get("backbone")
        if backbone is None:
            raise InputError("this checkpoint does not say which backbone its tokens came from, give backbone=... as well")
        if isinstance(backbone, str):
            layers = layers or trained_on.get("layers")
            pooled = bool(trained_on.get("pooled"))
            backbone = Backbone(
                backbone, layers, pooled=pooled, max_length=max_length, device=str(choose_device(device)), dtype=dtype
            )
        tokens_from = {"backbone": backbone.name, "layers": backbone.layers} | ({"pooled": True} if backbone.pooled else {})
        if head is None:
            head = _untrained_head(backbone.dim, output_dim)
            head.tokens_from = tokens_from
        elif output_dim not in (None, head.config.output_dim):
            raise InputError(f"output_dim is {output_dim}, but the head's is {head.config.output_dim}")
        check_tokens(head, backbone.dim, tokens_from, "this backbone gives")
        self.backbone = backbone
        self.head = head.eval().to(backbone.device)

    @property
    def output_dim(self) -> int:
        """Number of dimensions of a sentence embedding."""
        return self.head.config.output_dim

    @torch.inference_mode()
    def encode(self, sentences: str | Iterable[str], *, batch_size: int = 32, show_progress: bool = False) -> np.ndarray:
        """Encode sentences.

        Args:
            sentences: one or many.
            batch_size: sentences per batch; batches are of similar length.
            show_progress: show a progress bar if there is a terminal.

        Returns:
            `(n, output_dim)` in the order given, or `(output_dim,)` for a single string; float32, unit length.

        Raises:
            InputError: if something is not a string, or batch_size is not positive.
        """
        texts = _as_list(sentences)
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}, expected 1 or more")
        ids, truncated = self.backbone.tokenize(texts)
        if truncated:
            count = "1 sentence was" if truncated == 1 else f"{truncated} sentences were"
            warnings.warn(f"{count} truncated to {self.backbone.max_length} tokens (max_length)", stacklevel=3)  # 2: inference_mode
        embeddings = np.empty((len(texts), self.output_dim), dtype=np.float32)
        with tqdm(total=len(texts), unit="sentence", desc="encoding", disable=None if show_progress else True) as bar:
            for rows, tokens, lengths in self.backbone.batches(ids, batch_size):
                embeddings[rows] = self.head(tokens, lengths).cpu().numpy()
                bar.update(len(rows))
        return embeddings[0] if isinstance(sentences, str) else embeddings

    def similarity(self, a: str | Iterable[str], b: str | Iterable[str]) -> np.ndarray:
        """Cosine, -1 to 1, of every sentence of `a` with every sentence of `b`.

        Returns:
            `(n, m)` for n and m sentences, `(n,)` or `(m,)` if one side is a string, a number if both are.
        """
        return (self.encode(a) @ self.encode(b).T).clip(-1, 1)

    def rank(self, query: str, documents: Iterable[str], top_k: int | None = None) -> list[Match]:
        """Rank documents by their cosine with a query, best first; ties keep their order.

        Args:
            query: one sentence.
            documents: the sentences to rank.
            top_k: how many to return (default: all).
        """
        if not isinstance(query, str):
            raise InputError(f"the query is {type(query).__name__}, expected a string")
        if (character := find_surrogate(query)) is not None:
            raise InputError(f"the query has {character}, which is half a character, expected Unicode text")
        texts = _as_list(documents)
        similarity = self.similarity(query, texts)
        best = np.argsort(-similarity, kind="stable")[:top_k]
        return [Match(int(i), float(similarity[i]), texts[i]) for i in best]

    @torch.inference_mode()
    def explain(self, first: str, second: str) -> Explanation:
        """Split the similarity of two sentences into shares of their tokens; see evaluation/explanation.py.

        Raises:
            InputError: if a sentence is not a string or has no tokens, or the encoder takes sentence embeddings only.
        """
        if self.backbone.pooled:
            raise InputError("the encoder takes sentence embeddings (--pooled), so there are no tokens to explain")
        names, parts, weights = [], [], []
        for number, ids in enumerate(self.backbone.tokenize(_as_list([first, second]))[0], start=1):
            if not ids:
                raise InputError(f"sentence {number} has no tokens, there is nothing to explain")
            ((_, tokens, _),) = self.backbone.batches([ids], batch_size=1)
            embedding_parts, token_weights = token_parts(self.head, tokens[0])
            names.append([self.backbone.tokenizer.decode([token]) for token in ids])
            parts.append(embedding_parts)
            weights.append(token_weights.cpu().numpy())
        shares = (parts[0] @ parts[1].T).cpu().numpy()
        return Explanation(float(shares.sum()), names[0], names[1], shares, weights[0], weights[1])


def _untrained_head(dim: int, output_dim: int | None) -> SentenceEncoder:
    if output_dim is None:
        return mean_pooling(dim)
    if output_dim < 1:
        raise InputError(f"output_dim is {output_dim}, expected 1 or more")
    return SentenceEncoder(EncoderConfig("projection", input_dim=dim, output_dim=output_dim))


def _as_list(sentences: str | Iterable[str]) -> list[str]:
    """One or many strings as a list; InputError if anything else is in it."""
    if isinstance(sentences, str):
        sentences = [sentences]
    if not isinstance(sentences, Iterable) or isinstance(sentences, (Mapping, bytes)):
        raise InputError(f"sentences are {type(sentences).__name__}, expected a string or a list of strings")
    texts = list(sentences)
    for number, sentence in enumerate(texts, start=1):
        if not isinstance(sentence, str):
            raise InputError(f"sentence {number} of {len(texts)} is {type(sentence).__name__}, expected a string")
        if (character := find_surrogate(sentence)) is not None:
            raise InputError(f"sentence {number} of {len(texts)} has {character}, which is half a character, expected Unicode text")
    return texts


def main() -> None:
    """Command line."""
    parser = make_parser("text.py", __doc__)
    parser.add_argument("first", help="a sentence")
    parser.add_argument("second", help="another sentence")
    parser.add_argument("--model", default=DEFAULT_CHECKPOINT, help="checkpoint (default: model.bin beside the program)")
    parser.add_argument("--backbone", help="hub name or local folder (default: the one the checkpoint was trained on)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps")
    parser.add_argument("--explain", metavar="FILE", help="PNG to write: a heat map of what each token contributes")
    options = parser.parse_args()
    picture = output_file(options.explain, [options.model], suffix=".png") if options.explain else None
    encoder = TextEncoder(options.model, backbone=options.backbone, device=options.device)
    print(f"{encoder.similarity(options.first, options.second):.4f}")
    if picture:
        draw_explanation(picture, encoder.explain(options.first, options.second))
        print(f"{options.explain}: the share of each token in the similarity")


if __name__ == "__main__":
    run_command(main)
