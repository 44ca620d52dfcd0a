"""Where the starter pairs are."""

from __future__ import annotations

from pathlib import Path

STARTER = Path(__file__).parent.parent / "data" / "starter"
STARTER_TRAIN, STARTER_DEV, STARTER_TEST = (STARTER / f"{part}.tsv" for part in ("train", "dev", "test"))
