"""The published encoder in plain PyTorch, and its speed next to ours in any Python that has torch.

python benchmarks/published.py batches.pt model.bin REPEATS
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from timing import time_interleaved
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent.parent))

from model import get_model


class PlainPublished(nn.Module):
    """The published encoder in plain PyTorch: every step on the whole padded batch, padding recognised by its zeros."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.project = nn.Sequential(nn.Linear(dim, 128), nn.LayerNorm(128), nn.GELU())
        self.score = nn.Linear(128, 1)
        self.out = nn.Linear(128, 256)

    def forward(self, tokens: Tensor) -> Tensor:
        """`(B, T, D)` to `(B, 256)`."""
        mask = tokens.abs().sum(-1) > 0
        encoded = self.project(tokens)
        weights = self.score(encoded).squeeze(-1).masked_fill(~mask, -1e9).softmax(1)
        attention = (encoded * weights.unsqueeze(-1)).sum(1)
        mean = (encoded * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)
        return F.normalize(self.out(0.7 * attention + 0.3 * mean), dim=-1)


def main() -> None:
    """Print the seconds of both encoders per repeat, as JSON: published, ours."""
    batches, state = (torch.load(path, map_location="cpu", weights_only=True) for path in sys.argv[1:3])
    encoder = get_model(sys.argv[2])
    encoder.load_state_dict(state)
    encoder.eval()
    published = PlainPublished(batches[0].shape[2]).eval()
    torch.set_num_threads(1)
    functions = {
        "published": lambda: [published(batch) for batch in batches],
        "ours": lambda: [encoder(batch) for batch in batches],
    }
    with torch.inference_mode():
        seconds = time_interleaved(functions, int(sys.argv[3]))
    print(json.dumps([seconds["published"], seconds["ours"]]))


if __name__ == "__main__":
    main()
