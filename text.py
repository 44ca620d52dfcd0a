"""Sentence embeddings and similarities of text.

    from text import TextEncoder
    print(TextEncoder("model.bin").similarity("A man plays a guitar.", "Somebody makes music."))

On the command line, with a heat map of what each token contributes to the similarity:

    python text.py "A man plays a guitar." "Somebody makes music." --explain explanation.png
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.cli import make_parser, output_file, run_command
from common.errors import InputError
from evaluation.explanation import Explanation, draw_explanation
from tokens.text_pairs import find_surrogate

if TYPE_CHECKING:
    import torch

    from evaluation.head_on_backbone import HeadOnBackbone
    from model import SentenceEncoder
    from portable.small_encoder import SmallEncoder
    from tokens.backbone import Backbone

DEFAULT_MODEL, SMALL = (Path(__file__).with_name(name) for name in ("model.bin", "small"))  # a head, and a whole encoder
EXPORTED_HEADS = (b'.EncoderModule"', b'.Dense"')  # types in modules.json


@dataclass(frozen=True)
class Match:
    """A ranked document: its index in the list given, its cosine with the query, its text."""

    index: int
    similarity: float
    document: str


class TextEncoder:
    """Text to sentence embeddings: a head on a backbone, or a small encoder's folder.

    Attributes:
        engine: what computes the embeddings.
    """

    engine: HeadOnBackbone | SmallEncoder

    def __init__(
        self,
        head: str | Path | SentenceEncoder | None = None,
        *,
        backbone: str | Backbone | None = None,
        layers: str | None = None,
        output_dim: int | None = None,
        max_length: int | None = None,
        device: str = "auto",
        dtype: torch.dtype | None = None,
    ) -> None:
        """Load a head, a backbone, or both; or a small encoder, which needs none of the other arguments, nor torch.

        Args:
            head: a trained encoder or its checkpoint; None uses mean pooling. A folder that shrink.py wrote is a whole encoder.
            backbone: hub name, local folder, or a loaded one (default: the one the head was trained on).
            layers: see `Backbone` (default: those the head was trained on).
            output_dim: without a head, adds an untrained projection to this width, initialised orthogonal.
            max_length: tokens per sentence (default: 256); longer sentences are truncated with a warning.
            device: auto, cpu, cuda, mps; a small encoder runs on the CPU.
            dtype: the backbone's precision, such as torch.bfloat16 or torch.float16; the head stays float32.

        Raises:
            InputError: if a file or backbone cannot be loaded, or the head was trained on other tokens.
        """
        chosen = {"backbone": backbone, "layers": layers, "output_dim": output_dim, "max_length": max_length, "dtype": dtype}
        given: dict[str, Any] = {name: value for name, value in chosen.items() if value is not None}
        if is_small_encoder(head):
            if given:
                raise InputError(f"is a whole encoder, expected no {next(iter(given))} with it", path=str(head))
            self.engine = load_small_encoder(str(head))
        else:
            from evaluation.head_on_backbone import HeadOnBackbone  # here because a small encoder needs no torch

            self.engine = HeadOnBackbone(head, device=device, **given)

    @property
    def backbone(self) -> Backbone:
        """Text to token embeddings; a small encoder has none to offer."""
        return self._in_torch().backbone

    @property
    def head(self) -> SentenceEncoder:
        """Token embeddings to sentence embeddings; a small encoder has none to offer."""
        return self._in_torch().head

    @property
    def is_small(self) -> bool:
        """Whether it is a small encoder, without torch."""
        return not hasattr(self.engine, "head")

    def _in_torch(self) -> Any:
        if self.is_small:
            raise InputError("a small encoder is one graph, it has no backbone and head; give a checkpoint such as model.bin")
        return self.engine

    @property
    def output_dim(self) -> int:
        """Number of dimensions of a sentence embedding."""
        return self.engine.output_dim

    @property
    def max_length(self) -> int:
        """Tokens per sentence; longer sentences are truncated."""
        return self.engine.max_length

    def truncated(self, sentences: Iterable[str]) -> int:
        """How many of the sentences are longer than `max_length`."""
        return self.engine.tokenize(_as_list(sentences))[1]

    def encode(self, sentences: str | Iterable[str], *, batch_size: int = 32, show_progress: bool = False) -> np.ndarray:
        """Encode sentences.

        Args:
            sentences: one or many.
            batch_size: sentences per batch; batches are of similar length.
            show_progress: show progress if there is a terminal.

        Returns:
            `(n, output_dim)` in the order given, or `(output_dim,)` for a single string; float32, unit length.

        Raises:
            InputError: if something is not a string, or batch_size is not positive.
        """
        texts = _as_list(sentences)
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}, expected 1 or more")
        embeddings = self.engine.encode(texts, batch_size=batch_size, show_progress=show_progress)
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

        Raises:
            InputError: if something is not a string, or top_k is not positive.
        """
        if top_k is not None and top_k < 1:
            raise InputError(f"top_k is {top_k}, expected 1 or more")
        if not isinstance(query, str):
            raise InputError(f"the query is {type(query).__name__}, expected a string")
        if (character := find_surrogate(query)) is not None:
            raise InputError(f"the query has {character}, which is half a character, expected Unicode text")
        texts = _as_list(documents)
        different = list(dict.fromkeys(texts))  # each once: in a batch, equal sentences may differ in the last bit
        cosine_of = dict(zip(different, self.similarity(query, different).tolist(), strict=True))
        similarity = np.array([cosine_of[text] for text in texts])
        best = np.argsort(-similarity, kind="stable")[:top_k]
        return [Match(int(i), float(similarity[i]), texts[i]) for i in best]

    def explain(self, first: str, second: str) -> Explanation:
        """Split the similarity of two sentences into shares of their tokens; see evaluation/token_parts.py.

        Raises:
            InputError: if a sentence is not a string or has no tokens, or the encoder gives no token states.
        """
        sides = []
        for number, ids in enumerate(self.engine.tokenize(_as_list([first, second]))[0], start=1):
            if not ids:
                raise InputError(f"sentence {number} has no tokens, there is nothing to explain")
            sides.append(_parts_of_states(self.engine, ids) if self.is_small else self._in_torch().token_parts(ids))
        (names, parts, weights), (second_names, second_parts, second_weights) = sides
        shares = parts @ second_parts.T
        return Explanation(float(shares.sum()), names, second_names, shares, weights, second_weights)


def is_small_encoder(model: Any) -> bool:
    """Whether a model is the folder of a small encoder, or what is left of one.

    Raises:
        InputError: if it is a folder of sentence-transformers with a head, such as export.py writes: of it we would load no more
            than the backbone.
    """
    if not isinstance(model, (str, Path)) or not Path(model).is_dir():
        return False
    modules = Path(model, "modules.json")
    if modules.is_file() and any(head in modules.read_bytes() for head in EXPORTED_HEADS):
        raise InputError(
            "is an export for sentence-transformers, which alone runs its head; give its checkpoint, or a small encoder's folder",
            path=model,
        )
    return True


def load_small_encoder(folder: str | Path) -> SmallEncoder:
    """Load a small encoder.

    Raises:
        InputError: if its packages are missing, or the folder is damaged.
    """
    try:
        from portable.small_encoder import SmallEncoder
    except ImportError as error:
        raise InputError("a small encoder needs packages that are not installed: pip install -r requirements-small.txt") from error
    try:
        return SmallEncoder(folder)
    except ValueError as error:
        raise InputError(str(error)) from error


def _parts_of_states(encoder: Any, ids: list[int]) -> tuple[list[str], np.ndarray, np.ndarray]:
    """The T tokens of a sentence, their parts `(T, K)` of its embedding, and what each adds to its length: `(T,)`, sums to 1."""
    if not encoder.config["has_token_states"]:
        raise InputError("this encoder's graph holds a trained head, so it cannot tell tokens apart; explain with its checkpoint")
    (states,), (embedding,) = encoder.run(["last_hidden_state", "sentence_embedding"], [ids])
    parts = states / np.linalg.norm(states.sum(0))
    return [encoder.tokenizer.decode([token], skip_special_tokens=False) for token in ids], parts, parts @ embedding


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
    parser.add_argument(
        "--model", default=DEFAULT_MODEL, help="checkpoint, or a small encoder's folder (default: model.bin beside the program)"
    )
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
