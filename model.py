"""The sentence encoder: token embeddings `(B, T, 768)` in, unit-length sentence embeddings `(B, output_dim)` out.

A judge needs this file and `model.bin`, nothing else; it imports torch and the standard library only.

    from model import get_model
    model = get_model()
    model.load_state_dict(torch.load("model.bin", map_location="cpu", weights_only=True))
    embeddings = model.eval()(tokens)

Six architectures share one form: pooling, then a head, then scaling to unit length.

    hybrid      the default. Each head, a group of dimensions, mixes attention and mean pooling by a learned share;
                then a projection and a residual MLP. Training can start it as mean pooling. With `context_layers`,
                transformer layers read the tokens too.
    published   the recipe this project started from: tokens projected to 128, 0.7 attention + 0.3 mean pooling,
                projected to 256.
    gated       a typical challenge entry: attention and mean of the raw tokens, LayerNorm, an MLP, and a linear path
                beside it through a learned gate. Starts random.
    projection  mean pooling and one linear layer to any width, initialised orthogonally.
    twin        the published network for small embeddings: mean pooling, then a narrowing MLP. Starts random.
    mean        mean pooling, no parameters: the baseline.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PUBLISHED_TOKEN_DIM = 128
PUBLISHED_ATTENTION_SHARE = 0.7
TWIN_DIMS = (128, 64)
HEAD_DIM = 64  # of a transformer layer
NEWER_FIELDS = {"context_layers", "context_dim"}  # which earlier checkpoints lack
OVERFLOW_SCALE = 2.0**-40
SAFE_NORMS = (1e-15, 1e15)  # between these, squares neither vanish nor overflow in float32


@dataclass(frozen=True)
class EncoderConfig:
    """The shape of an encoder, stored in its checkpoint.

    Attributes:
        architecture: hybrid, published, gated, projection, twin or mean.
        input_dim: width D of a token embedding.
        output_dim: width of a sentence embedding (`mean` keeps D).
        heads: groups of dimensions, each with its own attention (hybrid, gated); divides D.
        hidden_dim: width of the MLP (hybrid, gated); 0 leaves it out (hybrid).
        dropout: dropout rate in training, 0 to 1 (hybrid, gated).
        context_layers: transformer layers that read the tokens beside the pooling (hybrid); 0 leaves them out.
        context_dim: their width (hybrid); each of their heads has 64 dimensions.
    """

    architecture: str = "hybrid"
    input_dim: int = 768
    output_dim: int = 256
    heads: int = 8
    hidden_dim: int = 512
    dropout: float = 0.2
    context_layers: int = 0
    context_dim: int = 256


def get_model(checkpoint: str | Path | None = None) -> SentenceEncoder:
    """Build an encoder of the architecture stored in a checkpoint, ready for `load_state_dict`.

    Args:
        checkpoint: a `model.bin`. Defaults to the one next to this file or, if there is none, to the default
            architecture.

    Returns:
        The encoder, with fresh weights.

    Raises:
        ValueError: if the file is not a checkpoint of this project.
    """
    path = Path(checkpoint or Path(__file__).with_name("model.bin"))
    if checkpoint is None and not path.exists():
        return SentenceEncoder(EncoderConfig())
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a damaged pickle raises anything
        raise ValueError(f"{path} is not a checkpoint of this encoder: torch cannot read it") from error
    return SentenceEncoder(read_config(state))


class SentenceEncoder(nn.Module):
    """Token embeddings to unit-length sentence embeddings."""

    def __init__(self, config: EncoderConfig) -> None:
        """Build an encoder with fresh weights.

        Raises:
            ValueError: for an unknown architecture or sizes that do not fit together.
        """
        super().__init__()
        self.config = config
        self.tokens_from: dict[str, Any] = {}  # backbone, layers and pooled of the training tokens
        if config.architecture not in ARCHITECTURES:
            raise ValueError(f"architecture is {config.architecture!r}, expected one of {', '.join(ARCHITECTURES)}")
        self.pooling, self.head = ARCHITECTURES[config.architecture](config)

    def forward(self, tokens: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Encode a batch.

        Args:
            tokens: `(B, T, D)`, right-padded with all-zero rows. A sentence's length is the position of its last
                non-zero row; zero rows before it are tokens.
            lengths: `(B,)`, if known: finding them takes two passes over the tokens.

        Returns:
            `(B, output_dim)`, unit length. An all-padding sentence gets a unit vector too, always the same.
        """
        return self.project(self.pool(tokens, lengths))

    def pool(self, tokens: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The first half of `forward`: tokens `(B, T, D)` to pooled sentences `(B, P)`."""
        if tokens.shape[1] == 0:
            tokens = tokens.new_zeros(tokens.shape[0], 1, tokens.shape[2])
        if lengths is None:
            if tokens.device.type == "cpu" and tokens[:, -1, 0].all():  # no padding, as usual in a batch of one
                return self.pooling(tokens, None)
            lengths = sentence_lengths(tokens)
        return self.pooling(*without_common_padding(tokens, lengths))

    def project(self, pooled: Tensor) -> Tensor:
        """The second half of `forward`: pooled sentences `(B, P)` to embeddings `(B, output_dim)` of unit length."""
        vectors = self.head(pooled)
        norms = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
        if are_safe(norms):
            return vectors / norms
        if not vectors.isfinite().all():  # squares in a LayerNorm overflow from 1e19 on; its result does not depend on the scale
            vectors = self.head(pooled * OVERFLOW_SCALE)
        return unit_length(vectors)

    @torch.no_grad()
    def start_as_mean_pooling(self, sentences: Tensor, *, centred: bool = False) -> None:
        """Set the projection so that the encoder starts as mean pooling, as closely as `output_dim` allows (hybrid only).

        Attention is uniform and the residual MLP zero in a fresh encoder, which leaves the projection: the principal
        directions of the mean-pooled training sentences preserve most of their inner products.

        Args:
            sentences: `(n, D)`, mean-pooled training sentences.
            centred: subtract their mean and use principal components instead. A few components tell sentences apart
                better, but all of them together are no longer mean pooling itself.
        """
        if isinstance(self.head, ResidualHead):
            vectors = sentences.cpu().double()  # some devices have no double precision
            mean = vectors.mean(0) if centred else vectors.new_zeros(vectors.shape[1])
            _, directions = torch.linalg.eigh((vectors - mean).T @ (vectors - mean))
            principal = directions.flip(1).T[: self.config.output_dim]
            self.head.projection.weight.zero_()[: len(principal), : len(mean)] = principal  # what is beyond D starts at zero
            self.head.projection.bias.zero_()[: len(principal)] = -principal @ mean

    def get_extra_state(self) -> Tensor:
        """The configuration as JSON in a uint8 tensor, so that a checkpoint describes itself."""
        text = json.dumps({"config": asdict(self.config), "tokens_from": self.tokens_from}, sort_keys=True)
        return torch.frombuffer(bytearray(text, "utf-8"), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Check a checkpoint's configuration against this encoder's and keep its `tokens_from`.

        Raises:
            ValueError: if the checkpoint has another architecture; the message says what differs.
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

    def forward(self, tokens: Tensor, lengths: Tensor | None) -> Tensor:
        """`(B, T, D)` and lengths `(B,)`, None without padding, to `(B, D)`."""
        if lengths is None:
            return tokens.mean(1)
        return tokens.sum(1) / lengths.clamp(min=1)[:, None]  # padding is zero and adds nothing to the sum


class HybridPooling(nn.Module):
    """Attention pooling mixed with mean pooling, separately for each head of D / heads dimensions.

    Scores start at zero, so attention starts as the mean, and so does any mix of the two.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        if heads < 1 or dim % heads:
            raise ValueError(f"heads is {heads}, expected a divisor of input_dim {dim}")
        self.heads = heads
        self.score = nn.Linear(dim, heads, bias=False)
        self.attention_share = nn.Parameter(torch.zeros(heads))  # sigmoid(0): half attention, half mean
        nn.init.zeros_(self.score.weight)

    def forward(self, tokens: Tensor, lengths: Tensor | None) -> Tensor:
        """`(B, T, D)` and lengths `(B,)`, None without padding, to `(B, D)`."""
        sentences, positions, dim = tokens.shape
        weights = self.token_weights(tokens, lengths)
        if sentences == 1:  # a product per head takes fewer calls
            return torch.bmm(weights.transpose(0, 1), tokens.view(positions, self.heads, -1).transpose(0, 1)).view(1, dim)
        if weights.requires_grad:  # torch 2.3 has no gradient for embedding_bag here
            by_head = tokens.reshape(sentences, positions, self.heads, dim // self.heads).transpose(1, 2)
            return (weights.unsqueeze(2) @ by_head).reshape(sentences, dim)
        # One bag per sentence and head, of that head's dimensions of each token: tokens are read once.
        first_rows = torch.arange(sentences * positions, device=tokens.device).view(sentences, 1, positions) * self.heads
        rows = first_rows + torch.arange(self.heads, device=tokens.device)[:, None]
        return F.embedding_bag(
            rows.view(-1, positions),
            tokens.reshape(-1, dim // self.heads),
            mode="sum",
            per_sample_weights=weights.reshape(-1, positions),
        ).view(sentences, dim)

    def token_weights(self, tokens: Tensor, lengths: Tensor | None) -> Tensor:
        """Each token's weight in its sentence, per head: `(B, heads, T)`, sums to 1 over T."""
        if len(tokens) == 1:
            scores = self.score.weight @ tokens.transpose(1, 2)
        else:  # one product for all sentences is faster than one each
            flat = self.score.weight @ tokens.reshape(-1, tokens.shape[2]).T
            scores = flat.view(self.heads, *tokens.shape[:2]).transpose(0, 1)
        return mixed_weights(scores, lengths, self.attention_share.sigmoid().unsqueeze(1))


class ContextPooling(nn.Module):
    """Hybrid pooling and, beside it, the mean of the tokens after transformer layers, which compare tokens with each other."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        width = config.context_dim
        if config.context_layers < 0:
            raise ValueError(f"context_layers is {config.context_layers}, expected 0 or more")
        if width < 1 or width % HEAD_DIM:
            raise ValueError(f"context_dim is {width}, expected a multiple of {HEAD_DIM}")
        self.hybrid, self.mean = HybridPooling(config.input_dim, config.heads), MeanPooling()
        self.narrow = nn.Sequential(nn.LayerNorm(config.input_dim), nn.Linear(config.input_dim, width))
        self.layers = nn.ModuleList(TransformerLayer(width, config.dropout) for _ in range(config.context_layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor, lengths: Tensor | None) -> Tensor:
        """`(B, T, D)` and lengths `(B,)`, None without padding, to `(B, D + context_dim)`."""
        return torch.cat([self.hybrid(tokens, lengths), self.mean(self.states(tokens, lengths), lengths)], dim=1)

    def states(self, tokens: Tensor, lengths: Tensor | None) -> Tensor:
        """The tokens after all layers, `(B, T, context_dim)`, zero on padding."""
        states, present = normalised(self.narrow, tokens), None
        if lengths is not None:  # in a sentence without tokens its first row counts as one: attention needs some
            present = torch.arange(tokens.shape[1], device=tokens.device) < lengths.clamp(min=1)[:, None]
        for layer in self.layers:
            states = layer(states, present)
        states = self.norm(states)
        return states if present is None else states * present[:, :, None]


class TransformerLayer(nn.Module):
    """Attention between tokens, then an MLP, each added to its input; both normalise what they read.

    Exported to ONNX, torch's own layer accepts one sentence length only.

    Source: Xiong et al. 2020, On Layer Normalization in the Transformer Architecture, pre-LN.
    """

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.queries_keys_values, self.attended = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(dropout), nn.Linear(4 * width, width))

    def forward(self, tokens: Tensor, present: Tensor | None) -> Tensor:
        """`(B, T, W)` to the same; attention is to tokens where `present`, `(B, T)`, is true, None for all."""
        by_head = self.queries_keys_values(self.attention_norm(tokens)).unflatten(2, (3, -1, HEAD_DIM)).permute(2, 0, 3, 1, 4)
        mask = None if present is None else present[:, None, None]
        attended = F.scaled_dot_product_attention(by_head[0], by_head[1], by_head[2], attn_mask=mask)
        tokens = tokens + self.attended(attended.transpose(1, 2).flatten(2))
        return tokens + self.mlp(self.mlp_norm(tokens))


class PublishedPooling(nn.Module):
    """The published recipe: tokens to 128 dimensions, then 0.7 attention pooling + 0.3 mean pooling."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.token_encoder = nn.Sequential(nn.Linear(dim, PUBLISHED_TOKEN_DIM), nn.LayerNorm(PUBLISHED_TOKEN_DIM), nn.GELU())
        self.score = nn.Linear(PUBLISHED_TOKEN_DIM, 1)

    def forward(self, tokens: Tensor, lengths: Tensor | None) -> Tensor:
        """`(B, T, D)` and lengths `(B,)`, None without padding, to `(B, 128)`."""
        encoded = normalised(self.token_encoder, tokens)
        return torch.bmm(self.token_weights(encoded, lengths), encoded).squeeze(1)

    def token_weights(self, encoded: Tensor, lengths: Tensor | None) -> Tensor:
        """Each token's weight in its sentence `(B, 1, T)`, sums to 1 over T, from encoded tokens `(B, T, 128)`."""
        return mixed_weights(self.score(encoded).transpose(1, 2), lengths, PUBLISHED_ATTENTION_SHARE)


class ResidualHead(nn.Module):
    """A linear projection plus a small MLP on its result that starts at zero."""

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
            self.layers: tuple[Any, ...] = tuple(self.departure)

    def forward(self, pooled: Tensor) -> Tensor:
        """`(B, D)` to `(B, output_dim)`."""
        if self.training:
            pooled = self.dropout(pooled)
        projected = F.linear(pooled, self.projection.weight, self.projection.bias)
        if self.departure is None:
            return projected
        # What self.departure(projected) computes: calling its modules would take a tenth of the time of a single sentence.
        norm, first, _, dropout, last = self.layers
        hidden = torch.layer_norm(projected, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
        hidden = F.gelu(F.linear(hidden, first.weight, first.bias))
        if self.training:
            hidden = dropout(hidden)
        return projected + F.linear(hidden, last.weight, last.bias)


class GatedHead(nn.Module):
    """LayerNorm, then an MLP plus a linear path through a gate per output dimension."""

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


def _hybrid(config: EncoderConfig) -> tuple[nn.Module, nn.Module]:
    """The default architecture."""
    pooling: nn.Module = ContextPooling(config) if config.context_layers else HybridPooling(config.input_dim, config.heads)
    width = config.input_dim + (config.context_dim if config.context_layers else 0)
    return pooling, ResidualHead(width, config.output_dim, config.hidden_dim, config.dropout)


def _published(config: EncoderConfig) -> tuple[nn.Module, nn.Module]:
    """The published architecture."""
    return PublishedPooling(config.input_dim), nn.Linear(PUBLISHED_TOKEN_DIM, config.output_dim)


def _gated(config: EncoderConfig) -> tuple[nn.Module, nn.Module]:
    """A typical challenge entry."""
    pooling = HybridPooling(config.input_dim, config.heads)
    return pooling, GatedHead(config.input_dim, config.output_dim, config.hidden_dim, config.dropout)


def _projection(config: EncoderConfig) -> tuple[nn.Module, nn.Module]:
    """Mean pooling and a linear layer, started orthogonal."""
    head = nn.Linear(config.input_dim, config.output_dim)
    nn.init.orthogonal_(head.weight)
    nn.init.zeros_(head.bias)
    return MeanPooling(), head


def _twin(config: EncoderConfig) -> tuple[nn.Module, nn.Module]:
    """The published architecture for small embeddings: mean pooling, then narrowing layers with ReLU between them."""
    layers: list[nn.Module] = []
    for before, after in pairwise((config.input_dim, *TWIN_DIMS, config.output_dim)):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return MeanPooling(), nn.Sequential(*layers[:-1])


def _mean(config: EncoderConfig) -> tuple[nn.Module, nn.Module]:
    """The baseline."""
    if config.output_dim != config.input_dim:
        raise ValueError(f"output_dim is {config.output_dim}, but mean pooling keeps input_dim {config.input_dim}")
    return MeanPooling(), nn.Identity()


ARCHITECTURES: dict[str, Callable[[EncoderConfig], tuple[nn.Module, nn.Module]]] = {
    "hybrid": _hybrid,
    "published": _published,
    "gated": _gated,
    "projection": _projection,
    "twin": _twin,
    "mean": _mean,
}


def sentence_lengths(tokens: Tensor) -> Tensor:
    """The length of each sentence `(B,)`: the position of its last non-zero row in `(B, T, D)`."""
    positions = torch.arange(1, tokens.shape[1] + 1, device=tokens.device)
    # Values of a row may cancel in the sum; then the largest of them is not zero. These two passes are faster than
    # comparing every value with zero.
    is_token = (tokens.sum(2) != 0) | (tokens.amax(2) != 0)
    return (is_token * positions).amax(1)


def without_common_padding(tokens: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor | None]:
    """Cut the positions that are padding in all sentences of `(B, T, D)`; lengths become None if no padding is left.

    Only on the CPU: elsewhere, reading the lengths would wait for the device.
    """
    if tokens.device.type != "cpu" or not len(lengths):
        return tokens, lengths
    shortest, longest = (length.item() for length in lengths.aminmax())
    if longest < tokens.shape[1]:
        tokens = tokens[:, : max(1, longest)]
    return tokens, None if shortest == tokens.shape[1] else lengths


def mixed_weights(scores: Tensor, lengths: Tensor | None, attention_share: Tensor | float) -> Tensor:
    """A mix of attention, the softmax of the scores, and the mean over the tokens of a sentence.

    Args:
        scores: `(B, H, T)`, for H heads.
        lengths: `(B,)`, None without padding.
        attention_share: `(H, 1)` or one number, 0 to 1; the rest is the mean's.

    Returns:
        `(B, H, T)`, sums to 1 over T; 0 on padding, so all 0 in a sentence without tokens.
    """
    if lengths is None:
        return torch.lerp(scores.new_full((), 1 / scores.shape[2]), scores.softmax(2), attention_share)
    padding = torch.arange(scores.shape[2], device=scores.device) >= lengths[:, None, None]
    lowest = torch.finfo(scores.dtype).min  # not -inf: a sentence without tokens must stay finite
    attention = scores.masked_fill(padding, lowest).softmax(2)
    mean = 1 / lengths.clamp(min=1)[:, None, None].to(scores.dtype)
    return torch.lerp(mean, attention, attention_share).masked_fill(padding, 0)


def normalised(module: nn.Module, tokens: Tensor) -> Tensor:
    """Tokens through a module with a LayerNorm, at any scale: from 1e19 on its squares overflow, and less gives the same result."""
    result = module(tokens)
    return result if result.sum().isfinite() else module(tokens * OVERFLOW_SCALE)


def unit_length(vectors: Tensor) -> Tensor:
    """Scale `(B, K)` to length 1; a zero vector becomes the first unit vector, and NaN stays NaN."""
    norms = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    if are_safe(norms):
        return vectors / norms
    first_axis = torch.eye(1, vectors.shape[1], dtype=vectors.dtype, device=vectors.device)
    largest = vectors.detach().abs().amax(1, keepdim=True)
    safe = torch.where(largest == 0, first_axis, vectors / largest.clamp(min=torch.finfo(vectors.dtype).tiny))
    return safe / torch.linalg.vector_norm(safe, dim=1, keepdim=True)


def are_safe(norms: Tensor) -> bool:
    """Whether all norms `(B, 1)` are such that squares neither vanish nor overflow; False off the CPU, where looking would wait."""
    if norms.device.type != "cpu" or not len(norms):
        return False
    shortest, longest = norms.detach().aminmax()
    return SAFE_NORMS[0] < shortest.item() and longest.item() < SAFE_NORMS[1]


def read_config(state: dict[str, Any]) -> EncoderConfig:
    """The configuration in a state dict.

    Raises:
        ValueError: if it has none.
    """
    if not isinstance(state, dict) or "_extra_state" not in state:
        raise ValueError("not a checkpoint of this encoder: it has no configuration")
    return _config_from(_read_extra_state(state["_extra_state"]))


def _read_extra_state(state: Tensor) -> dict[str, Any]:
    try:
        contents = json.loads(bytes(state.cpu().tolist()).decode("utf-8"))
        return {"config": dict(contents["config"]), "tokens_from": dict(contents["tokens_from"])}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError("not a checkpoint of this encoder: its configuration is damaged") from error


def _config_from(contents: dict[str, Any]) -> EncoderConfig:
    known = {field.name for field in fields(EncoderConfig)}
    config = contents["config"]
    if unknown := sorted((config.keys() ^ known) - NEWER_FIELDS):
        raise ValueError(f"checkpoint of another version: its configuration differs in {', '.join(unknown)}")
    return EncoderConfig(**config)
