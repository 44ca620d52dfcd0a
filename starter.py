"""The data that ships with the project, so that the first command works before the user has any."""

from __future__ import annotations

from pathlib import Path

DATA = Path(__file__).parent / "data"
STARTER_TRAIN, STARTER_DEV, STARTER_TEST = (DATA / "starter" / f"{part}.tsv" for part in ("train", "dev", "test"))


def has_dat_files(folder: Path = DATA) -> bool:
    """Whether the user has put the challenge's files into `data/`."""
    return any(path.name.endswith((".dat", ".dat.gz")) for path in folder.iterdir()) if folder.is_dir() else False
