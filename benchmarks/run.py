"""Speed of this project next to its alternatives, measured in one run on this machine.

Example:

    python benchmarks/run.py --stsb stores/stsb --out results/speed.md
"""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import inference
import mining_speed
import reading
import table_speed
import text_speed
import torch
import training_speed

from common.cli import make_parser, run_command
from common.errors import InputError
from common.files import write_text_atomically
from data import open_pairs

SECTIONS = {
    "inference": "Inference",
    "text": "Text to embeddings",
    "training": "Training",
    "processes": "Training in several processes",
    "reading": "Reading .dat files",
    "tables": "Reading tables of text",
    "mining": "Mining hard negatives",
}
HEADER = f"""# Speed

Made by `make bench`: {os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__}. What takes hours, a million sentences
encoded and searched, is in [corpus.md](corpus.md).
"""


def main() -> None:
    """Command line."""
    parser = make_parser("benchmarks/run.py", __doc__)
    parser.add_argument("--stsb", default="stores/stsb", help="folder with train.store, dev.store, test.store")
    parser.add_argument("--model", default="model.bin", help="the encoder to measure")
    parser.add_argument("--judge", help="a Python with torch 2.3.0, to measure inference there too")
    parser.add_argument("--out", default="results/speed.md", help="Markdown file for the tables")
    parser.add_argument("--only", choices=tuple(SECTIONS), help="measure one section again and keep the others of --out")
    options = parser.parse_args()
    stsb, out = Path(options.stsb), Path(options.out)
    paths = [stsb / f"{part}.store" for part in ("train", "dev", "test")]
    if missing := [path for path in paths if not path.is_file()]:
        raise InputError("no such file; prepare_data.py makes it from the texts", path=missing[0])
    train, dev, test = (open_pairs([path]) for path in paths)
    torch.set_num_threads(1)  # of this process; reading, mining and several processes are measured in others
    measure = {
        "inference": lambda: inference.run(test, options.model, options.judge),
        "text": lambda: text_speed.run(test, options.model),
        "training": lambda: training_speed.run(train, dev),
        "processes": lambda: training_speed.run_processes(stsb),
        "reading": lambda: reading.run(train),
        "tables": table_speed.run,
        "mining": mining_speed.run,
    }
    contents = read_sections(out)
    for name, title in SECTIONS.items():
        if options.only in (None, name):
            contents[title] = measure[name]()
            print(f"## {title}\n\n{contents[title]}", flush=True)
            sections = [f"\n## {title}\n\n{contents[title]}" for title in SECTIONS.values() if title in contents]
            write_text_atomically(out, HEADER + "".join(sections))
    print(out)


def read_sections(path: Path) -> dict[str, str]:
    """The sections of an earlier run by title; empty if there is no such file."""
    if not path.exists():
        return {}
    _, *parts = path.read_text(encoding="utf-8").split("\n## ")
    return {title: section + "\n" * (not section.endswith("\n")) for title, section in (part.split("\n\n", 1) for part in parts)}


if __name__ == "__main__":
    run_command(main)
