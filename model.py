"""The sentence encoder: token embeddings `(B, T, 768)` in, unit sentence vectors `(B, output_dim)` out.

This file and `model.bin` are all a judge needs; it imports torch and the standard library only.

    from model import get_model
    model = get_model()
    model.load_state_dict(torch.load("model.bin", map_location="cpu", weights_only=True))
    vectors = model.eval()(tokens)

Six architectures share one form, pooling then head then unit length:

    hybrid      per head of the tokens' dimensions a learned mix of attention and mean pooling; principal directions
                and a residual MLP. It starts as mean pooling and learns only departures from it.
    published   the recipe that this project starts from: project each token to 128, attention and mean pooling
                mixed 0.7 : 0.3, project to 256.
    gated       a head as participants of the challenge build it: a learned mix of attention and mean over the raw tokens,
                LayerNorm, an MLP, and a linear path beside it through a learned gate. It starts random.
    projection  mean pooling and one linear layer that begins as a part of a rotation, to any width: what large backbones
                are ordinarily wrapped with.
    twin        the published network for small vectors: mean pooling, then an MLP of ever narrower layers, from random.
    mean        mean pooling, without parameters: the baseline.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

PUBLISHED_TOKEN_DIM = 128
PUBLISHED_ATTENTION_SHARE = 0.7
TWIN_DIMS = (128, 64)
CACHE_BYTES = 3 * 2**19  # what a core's second-level cache holds, with room to spare


@dataclass(frozen=True)
class EncoderConfig:
    """What an encoder is built from; a checkpoint carries it.

    Attributes:
        architecture: hybrid, published, gated, projection, twin or mean.
        input_dim: width D of a token embedding.
        output_dim: width of a sentence vector (`mean` keeps D).
        heads: groups of dimensions with an attention of their own (hybrid, gated); divides D.
        hidden_dim: width of the MLP (hybrid, gated); 0 leaves it out (hybrid).
        dropout: share of values dropped in training (hybrid, gated).
    """

    architecture: str = "hybrid"
    input_dim: int = 768
    output_dim: int = 256
    heads: int = 8
    hidden_dim: int = 512
    dropout: float = 0.2


def get_model(checkpoint: str | Path | None = None) -> SentenceEncoder:
    """Build the encoder that a checkpoint was saved from, to load its weights into.

    Args:
        checkpoint: a `model.bin`. By default the one beside this file and, where there is none, the default
            architecture.

    Returns:
        The encoder in that architecture, with fresh weights.

    Raises:
        ValueError: where the file is not a checkpoint of this project.
    """
    path = Path(checkpoint or Path(__file__).with_name("model.bin"))
    if checkpoint is None and not path.exists():
        return SentenceEncoder(EncoderConfig())
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a damaged pickle ends in any of them
        raise ValueError(f"{path} is not a checkpoint of this encoder: torch cannot read it") from error
    return SentenceEncoder(read_config(state))


class SentenceEncoder(nn.Module):
    """Sentence vectors of unit length from token embeddings."""

    def __init__(self, config: EncoderConfig) -> None:
        """Build an encoder with fresh weights.

        Raises:
            ValueError: for an unknown architecture, or sizes that do not fit together.
        """
        super().__init__()
        self.config = config
        self.tokens_from: dict[str, Any] = {}  # backbone and layers, and if pooled, of the tokens it was trained on
        self.pooling: nn.Module
        self.head: nn.Module
        if config.architecture == "hybrid":
            self.pooling = HybridPooling(config.input_dim, config.heads)
            self.head = ResidualHead(config.input_dim, config.output_dim, config.hidden_dim, config.dropout)
        elif config.architecture == "published":
            self.pooling = PublishedPooling(config.input_dim)
            self.head = nn.Linear(PUBLISHED_TOKEN_DIM, config.output_dim)
        elif config.architecture == "gated":
            self.pooling = HybridPooling(config.input_dim, config.heads)
            self.head = GatedHead(config.input_dim, config.output_dim, config.hidden_dim, config.dropout)
        elif config.architecture == "projection":
            self.pooling = MeanPooling()
            self.head = nn.Linear(config.input_dim, config.output_dim)
            nn.init.orthogonal_(self.head.weight)
            nn.init.zeros_(self.head.bias)
        elif config.architecture == "twin":
            self.pooling = MeanPooling()
            self.head = narrowing_mlp(config.input_dim, *TWIN_DIMS, config.output_dim)
        elif config.architecture == "mean":
            if config.output_dim != config.input_dim:
                raise ValueError(f"output_dim is {config.output_dim}, but mean pooling keeps input_dim {config.input_dim}")
            self.pooling = MeanPooling()
            self.head = nn.Identity()
        else:
            raise ValueError(
                f"architecture is {config.architecture!r}, expected hybrid, published, gated, projection, twin or mean"
            )

    def forward(self, tokens: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Encode a batch.

        Args:
            tokens: `(B, T, D)`, right-padded with all-zero rows. A sentence's length is the position of its last
                non-zero row; zero rows before that are tokens.
            lengths: `(B,)`, where they are known already: finding them is a pass over the tokens.

        Returns:
            `(B, output_dim)`, unit length. A sentence of padding only gives a unit vector too, always the same one.
        """
        return self.vectors(self.pool(tokens, lengths))

    def pool(self, tokens: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The first half of `forward`: tokens `(B, T, D)` to one pooled vector for each sentence."""
        if tokens.shape[1] == 0:
            tokens = tokens.new_zeros(tokens.shape[0], 1, tokens.shape[2])
        together = len(tokens)
        if tokens.device.type == "cpu" and not self.training:
            # Pooling passes over the tokens more than once: a few sentences at a time stay in the cache between.
            together = CACHE_BYTES // (tokens.shape[1] * tokens.shape[2] * tokens.element_size())
        together = max(1, together)
        parts = tokens.split(together)
        known = [None] * len(parts) if lengths is None else lengths.split(together)
        return torch.cat([self._pool_together(*part) for part in zip(parts, known, strict=True)])

    def _pool_together(self, tokens: Tensor, lengths: Tensor | None) -> Tensor:
        if lengths is None:
            lengths = sentence_lengths(tokens)
        if tokens.device.type == "cpu" and len(tokens):  # elsewhere it would wait for the device
            tokens = tokens[:, : max(1, int(lengths.max()))]  # what is padding in all of them
        return self.pooling(tokens, lengths)

    def vectors(self, pooled: Tensor) -> Tensor:
        """The second half of `forward`: pooled vectors to sentence vectors `(B, output_dim)` of unit length."""
        return unit_length(self.head(pooled))

    @torch.no_grad()
    def start_as_mean_pooling(self, sentences: Tensor, *, centred: bool = False) -> None:
        """Make the encoder begin where mean pooling is, as nearly as `output_dim` allows (hybrid only).

        Attention is uniform and the residual MLP zero from the start. What is left is the projection: the principal
        directions of the mean-pooled training sentences keep the most of their inner products.

        Args:
            sentences: `(n, D)`, mean-pooled training sentences.
            centred: begin with their principal components instead: their mean is subtracted first. A few directions then keep
                more of what tells sentences apart; all of them together no longer give mean pooling itself.
        """
        if isinstance(self.head, ResidualHead):
            vectors = sentences.cpu().double()  # some devices have no double precision
            mean = vectors.mean(0) if centred else vectors.new_zeros(vectors.shape[1])
            _, directions = torch.linalg.eigh((vectors - mean).T @ (vectors - mean))
            principal = directions.flip(1).T[: self.config.output_dim]
            for parameter, start in ((self.head.projection.weight, principal), (self.head.projection.bias, -principal @ mean)):
                parameter.zero_()[: len(start)] = start  # outputs beyond the width of the tokens begin at zero

    def get_extra_state(self) -> Tensor:
        """The configuration as JSON in a uint8 tensor, so that a checkpoint says what it is."""
        text = json.dumps({"config": asdict(self.config), "tokens_from": self.tokens_from}, sort_keys=True)
        return torch.frombuffer(bytearray(text, "utf-8"), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Take over what a checkpoint says of itself.

        Raises:
            ValueError: where the checkpoint is of another architecture; the message says what differs.
        """
        contents = _read_extra_state(state)
        theirs, ours = asdict(_config_from(contents)), asdict(self.config)
        differences = [
            f"{name} is {theirs[name]!r}, here {ours[name]!r}"
            for name in ours
            if theirs[name] != ours[name] and name != "dropout"  # holds no weights
        ]
        if differences:
            raise ValueError(f"checkpoint of another encoder: {'; '.join(differences)}. get_model(path) builds the right one.")
        self.tokens_from = contents["tokens_from"]


def mean_pooling(input_dim: int) -> SentenceEncoder:
    """The baseline as an encoder: mean pooling of tokens `(B, T, input_dim)`, nothing learned."""
    return SentenceEncoder(EncoderConfig("mean", input_dim=input_dim, output_dim=input_dim))


class MeanPooling(nn.Module):
    """The mean over the tokens of a sentence."""

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """`(B, T, D)` and lengths `(B,)` to `(B, D)`; padding is zero and adds nothing to the sum."""
        return tokens.sum(1) / lengths.clamp(min=1)[:, None]


class HybridPooling(nn.Module):
    """Attention pooling mixed with mean pooling, for each head of D / heads dimensions.

    Scores begin at zero, so attention begins as the mean, and so does the mix whatever its share.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        if heads < 1 or dim % heads:
            raise ValueError(f"heads is {heads}, expected a divisor of input_dim {dim}")
        self.heads = heads
        self.score = nn.Linear(dim, heads, bias=False)
        self.attention_share = nn.Parameter(torch.zeros(heads))  # sigmoid(0): half attention, half mean
        nn.init.zeros_(self.score.weight)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """`(B, T, D)` and lengths `(B,)` to `(B, D)`."""
        weights = self.token_weights(tokens, lengths)
        heads = zip(weights.split(1, dim=1), tokens.chunk(self.heads, dim=2), strict=True)
        return torch.cat([torch.bmm(weight, dimensions) for weight, dimensions in heads], dim=2).squeeze(1)

    def token_weights(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Each token's share of the sentence, for each head: `(B, heads, T)`, sums to 1 over T."""
        scores = torch.bmm(self.score.weight.expand(len(tokens), -1, -1), tokens.transpose(1, 2))
        return mixed_weights(scores, lengths, self.attention_share.sigmoid()[:, None])


class PublishedPooling(nn.Module):
    """The published recipe: tokens to 128 dimensions, then 0.7 attention pooling + 0.3 mean pooling."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.token_encoder = nn.Sequential(nn.Linear(dim, PUBLISHED_TOKEN_DIM), nn.LayerNorm(PUBLISHED_TOKEN_DIM), nn.GELU())
        self.score = nn.Linear(PUBLISHED_TOKEN_DIM, 1)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """`(B, T, D)` and lengths `(B,)` to `(B, 128)`."""
        encoded = self.token_encoder(tokens)
        return torch.bmm(self.token_weights(encoded, lengths), encoded).squeeze(1)

    def token_weights(self, encoded: Tensor, lengths: Tensor) -> Tensor:
        """Each token's share of the sentence `(B, 1, T)`, sums to 1 over T, from encoded tokens `(B, T, 128)`."""
        return mixed_weights(self.score(encoded).transpose(1, 2), lengths, PUBLISHED_ATTENTION_SHARE)


class ResidualHead(nn.Module):
    """A linear projection plus a small MLP on its result that begins at zero."""

    def __init__(self, dim: int, output_dim: int, hidden_dim: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.projection = nn.Linear(dim, output_dim)
        nn.init.orthogonal_(self.projection.weight)
        nn.init.zeros_(self.projection.bias)
        self.departure: nn.Sequential | None = None
        if hidden_dim:
            last = nn.Linear(hidden_dim, output_dim)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
            self.departure = nn.Sequential(
                nn.LayerNorm(output_dim), nn.Linear(output_dim, hidden_dim), nn.GELU(), nn.Dropout(dropout), last
            )

    def forward(self, pooled: Tensor) -> Tensor:
        """`(B, D)` to `(B, output_dim)`."""
        projected = self.projection(self.dropout(pooled))
        return projected if self.departure is None else projected + self.departure(projected)


class GatedHead(nn.Module):
    """LayerNorm, then an MLP plus a linear path through a gate, one for each dimension of the output."""

    def __init__(self, dim: int, output_dim: int, hidden_dim: int, dropout: float) -> None:
        super().__init__()
        if hidden_dim < 1:
            raise ValueError(f"hidden_dim is {hidden_dim}, expected 1 or more for a gated head")
        self.norm = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden_dim), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden_dim, output_dim))
        self.linear = nn.Linear(dim, output_dim)
        self.gate = nn.Parameter(torch.zeros(output_dim))  # sigmoid(0): half open

    def forward(self, pooled: Tensor) -> Tensor:
        """`(B, D)` to `(B, output_dim)`."""
        normed = self.norm(pooled)
        return self.mlp(normed) + self.gate.sigmoid() * self.linear(normed)


def narrowing_mlp(*dims: int) -> nn.Sequential:
    """Linear layers from each width to the next, `(B, dims[0])` to `(B, dims[-1])`, with ReLU between them."""
    layers: list[nn.Module] = []
    for narrower, (before, after) in enumerate(pairwise(dims)):
        layers += [nn.ReLU()] * (narrower > 0) + [nn.Linear(before, after)]
    return nn.Sequential(*layers)


def sentence_lengths(tokens: Tensor) -> Tensor:
    """The length of each sentence `(B,)`: the position of its last non-zero row in `(B, T, D)`."""
    positions = torch.arange(1, tokens.shape[1] + 1, device=tokens.device)
    # A row whose sum is zero may hold values that cancel; then its largest is not zero. Two fast passes, where comparing every
    # value with zero is a slow one.
    is_token = (tokens.sum(2) != 0) | (tokens.amax(2) != 0)
    return (is_token * positions).amax(1)


def mixed_weights(scores: Tensor, lengths: Tensor, attention_share: Tensor | float) -> Tensor:
    """A mix of attention, the softmax of the scores, and the mean over the tokens of a sentence.

    Args:
        scores: `(B, H, T)`, for each of H heads.
        lengths: `(B,)`.
        attention_share: `(H, 1)`, or one for all; the rest is the mean's.

    Returns:
        `(B, H, T)`, sums to 1 over T; zero on padding, and without tokens.
    """
    padding = torch.arange(scores.shape[2], device=scores.device) >= lengths[:, None, None]
    lowest = torch.finfo(scores.dtype).min  # not -inf: a sentence without tokens must stay finite
    attention = scores.masked_fill(padding, lowest).softmax(2)
    mean = 1 / lengths.clamp(min=1)[:, None, None].to(scores.dtype)
    return (attention_share * attention + (1 - attention_share) * mean).masked_fill(padding, 0)


def unit_length(vectors: Tensor) -> Tensor:
    """Scale `(B, K)` to length 1; a zero vector becomes the first unit vector, and what is not a number stays so."""
    largest = vectors.detach().abs().amax(1, keepdim=True)
    safe = torch.where(largest == 0, _first_axis(vectors), vectors / largest.clamp(min=torch.finfo(vectors.dtype).tiny))
    return safe / safe.norm(dim=1, keepdim=True)  # divided by the largest before: squares neither vanish nor overflow


def _first_axis(vectors: Tensor) -> Tensor:
    return torch.eye(1, vectors.shape[1], dtype=vectors.dtype, device=vectors.device)


def read_config(state: dict[str, Any]) -> EncoderConfig:
    """The configuration in a state dict.

    Raises:
        ValueError: where it carries none.
    """
    if not isinstance(state, dict) or "_extra_state" not in state:
        raise ValueError("not a checkpoint of this encoder: it carries no configuration")
    return _config_from(_read_extra_state(state["_extra_state"]))


def _read_extra_state(state: Tensor) -> dict[str, Any]:
    try:
        contents = json.loads(bytes(state.cpu().tolist()).decode("utf-8"))
        return {"config": dict(contents["config"]), "tokens_from": dict(contents["tokens_from"])}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError("not a checkpoint of this encoder: its configuration is damaged") from error


def _config_from(contents: dict[str, Any]) -> EncoderConfig:
    known = {field.name for field in fields(EncoderConfig)}
    if set(contents["config"]) != known:
        unknown = sorted(set(contents["config"]) ^ known)
        raise ValueError(f"checkpoint of another version: its configuration differs in {', '.join(unknown)}")
    return EncoderConfig(**contents["config"])
