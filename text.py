"""Text in, sentence vectors out.

    from text import TextEncoder
    print(TextEncoder("model.bin").similarity("A man plays a guitar.", "Somebody makes music."))

From the command line, with a picture of where the similarity comes from:

    python text.py "A man plays a guitar." "Somebody makes music." --explain explanation.png
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from common.cli import make_parser, output_file, run_command
from common.devices import choose_device
from common.errors import InputError
from evaluation.checkpoint import load_encoder
from evaluation.encoding import check_tokens
from evaluation.explanation import Explanation, draw_explanation, token_parts
from model import EncoderConfig, SentenceEncoder, mean_pooling
from tokens.backbone import DEFAULT_MAX_LENGTH, Backbone


@dataclass(frozen=True)
class Match:
    """A document that was ranked: its place in the list given, its cosine with the query, its text."""

    index: int
    similarity: float
    document: str


class TextEncoder:
    """A backbone that makes token embeddings of text, and a head that makes sentence vectors of these.

    Attributes:
        backbone: text to token embeddings.
        head: token embeddings to unit vectors, on the backbone's device, in evaluation mode.
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
            head: a trained encoder or its checkpoint. None pools the backbone's tokens by their mean.
            backbone: hub name or local folder, or one that is loaded; by default the one the head was trained on.
            layers: as `Backbone` has them; by default those the head was trained on.
            output_dim: without a head, adds a projection to this width, with an orthogonal start, to be trained.
            max_length: tokens of a sentence that are kept; more are cut with a warning.
            device: auto, cpu, cuda, mps.
            dtype: what the backbone computes in: torch.bfloat16 or torch.float16 for half precision. The head stays float32.

        Raises:
            InputError: where a file or backbone cannot be loaded, or the head was trained on other tokens.
        """
        if head is None and backbone is None:
            raise InputError('nothing to encode with, expected a head such as "model.bin", a backbone, or both')
        if isinstance(head, (str, Path)):
            head = load_encoder(head)
        trained_on = {} if head is None else head.tokens_from
        backbone = backbone or trained_on.get("backbone")
        if backbone is None:
            raise InputError("this checkpoint does not say which backbone its tokens came from, expected backbone=... beside it")
        if isinstance(backbone, str):
            layers = layers or trained_on.get("layers")
            pooled = bool(trained_on.get("pooled"))
            backbone = Backbone(
                backbone, layers, pooled=pooled, max_length=max_length, device=str(choose_device(device)), dtype=dtype
            )
        if head is None:
            head = _untrained_head(backbone, output_dim)
        elif output_dim not in (None, head.config.output_dim):
            raise InputError(f"output_dim is {output_dim}, but the head's is {head.config.output_dim}")
        gives = {"backbone": backbone.name, "layers": backbone.layers, "pooled": backbone.pooled}
        check_tokens(head, backbone.dim, gives, "this backbone gives")
        self.backbone = backbone
        self.head = head.eval().to(backbone.device)

    @property
    def output_dim(self) -> int:
        """Width of a sentence vector."""
        return self.head.config.output_dim

    @torch.inference_mode()
    def encode(self, sentences: str | Iterable[str], *, batch_size: int = 32, show_progress: bool = False) -> np.ndarray:
        """Sentence vectors.

        Args:
            sentences: one or many.
            batch_size: sentences in a batch; batches are of similar length.
            show_progress: whether to show a progress bar, where there is a terminal.

        Returns:
            `(n, output_dim)` in the order given, or `(output_dim,)` for one string; float32, unit length.

        Raises:
            InputError: where something is not a string, or batch_size is not positive.
        """
        texts = _strings(sentences)
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}, expected 1 or more")
        ids, cut = self.backbone.tokenize(texts)
        if cut:
            was = "sentence was" if cut == 1 else "sentences were"
            warnings.warn(f"{cut} {was} cut to {self.backbone.max_length} tokens (max_length)", stacklevel=3)  # 2 is inference_mode
        vectors = np.empty((len(texts), self.output_dim), dtype=np.float32)
        with tqdm(total=len(texts), unit="sentence", desc="encoding", disable=None if show_progress else True) as bar:
            for numbers, tokens, lengths in self.backbone.batches(ids, batch_size):
                vectors[numbers] = self.head(tokens, lengths).cpu().numpy()
                bar.update(len(numbers))
        return vectors[0] if isinstance(sentences, str) else vectors

    def similarity(self, a: str | Iterable[str], b: str | Iterable[str]) -> np.ndarray:
        """The cosine, -1 to 1, of each sentence of `a` with each of `b`.

        Returns:
            A number for two strings; `(n, m)` for n and m sentences; `(n,)` or `(m,)` where one side is a string.
        """
        return (self.encode(a) @ self.encode(b).T).clip(-1, 1)

    def rank(self, query: str, documents: Iterable[str], top_k: int | None = None) -> list[Match]:
        """Documents by their similarity to a query, best first; of equal ones the first given.

        Args:
            query: one sentence.
            documents: what to rank.
            top_k: how many to return; by default all.
        """
        if not isinstance(query, str):
            raise InputError(f"the query is {type(query).__name__}, expected a string")
        texts = _strings(documents)
        similarity = self.similarity(query, texts)
        best = np.argsort(-similarity, kind="stable")[:top_k]
        return [Match(int(i), float(similarity[i]), texts[i]) for i in best]

    @torch.inference_mode()
    def explain(self, first: str, second: str) -> Explanation:
        """Each token's share of the similarity of two sentences; explanation.py says what a share is.

        Raises:
            InputError: where one of them is no string, or has no tokens, or the encoder sees sentence embeddings only.
        """
        if self.backbone.pooled:
            raise InputError("the encoder takes sentence embeddings (--pooled), no tokens that could have a share")
        ids, _ = self.backbone.tokenize(_strings([first, second]))
        for number, sentence in enumerate(ids, start=1):
            if not sentence:
                raise InputError(f"sentence {number} has no tokens, there is nothing to explain")
        parts, weights = zip(*(self._token_parts(sentence) for sentence in ids), strict=True)
        shares = (parts[0] @ parts[1].T).cpu().numpy()
        names = [[self.backbone.tokenizer.decode([token]) for token in sentence] for sentence in ids]
        listened = [weight.cpu().numpy() for weight in weights]
        return Explanation(float(shares.sum()), names[0], names[1], shares, listened[0], listened[1])

    def _token_parts(self, ids: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        ((_, tokens, _),) = self.backbone.batches([ids], 1)
        return token_parts(self.head, tokens[0])


def _untrained_head(backbone: Backbone, output_dim: int | None) -> SentenceEncoder:
    head = mean_pooling(backbone.dim)
    if output_dim is not None:
        if output_dim < 1:
            raise InputError(f"output_dim is {output_dim}, expected 1 or more")
        head = SentenceEncoder(EncoderConfig("projection", input_dim=backbone.dim, output_dim=output_dim))
    head.tokens_from = {"backbone": backbone.name, "layers": backbone.layers} | ({"pooled": True} if backbone.pooled else {})
    return head


def _strings(sentences: str | Iterable[str]) -> list[str]:
    """One string or many as a list; anything else in it is an error that says where."""
    if isinstance(sentences, str):
        return [sentences]
    if not isinstance(sentences, Iterable):
        raise InputError(f"sentences are {type(sentences).__name__}, expected a string or a list of strings")
    texts = list(sentences)
    for number, sentence in enumerate(texts, start=1):
        if not isinstance(sentence, str):
            raise InputError(f"sentence {number} of {len(texts)} is {type(sentence).__name__}, expected a string")
    return texts


def main() -> None:
    """Command line."""
    parser = make_parser("text.py", __doc__)
    parser.add_argument("first", help="a sentence")
    parser.add_argument("second", help="another")
    parser.add_argument("--model", default="model.bin", help="checkpoint")
    parser.add_argument("--backbone", help="hub name or local folder (default: the one the checkpoint was trained on)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps")
    parser.add_argument("--explain", metavar="FILE", help="PNG to draw in which tokens the similarity comes from")
    options = parser.parse_args()
    picture = output_file(options.explain, [options.model], suffix=".png") if options.explain else None
    encoder = TextEncoder(options.model, backbone=options.backbone, device=options.device)
    print(f"{encoder.similarity(options.first, options.second):.4f}")
    if picture:
        draw_explanation(picture, encoder.explain(options.first, options.second))
        print(f"{options.explain}: the share of each token")


if __name__ == "__main__":
    run_command(main)
