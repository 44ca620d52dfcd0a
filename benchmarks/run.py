"""Everything that is said about speed, measured side by side on this machine.

Example:

    python benchmarks/run.py --stsb stores/stsb --out results/speed.md
"""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import growth
import inference
import mining_speed
import reading
import torch
import training_speed

from atomic import write_text_atomically
from cli import make_parser, run_command
from data import open_pairs
from errors import InputError
from recipe import add_recipe_arguments, parse_recipe

TABLES = ("inference", "training", "reading", "mining", "growth")


def main() -> None:
    """Command line."""
    parser = make_parser("benchmarks/run.py", __doc__)
    parser.add_argument("--stsb", default="stores/stsb", help="folder with train.store, dev.store, test.store")
    parser.add_argument("--model", default="model.bin", help="the default encoder")
    parser.add_argument("--out", default="results/speed.md", help="tables; the figure of growth lies beside them")
    parser.add_argument("--only", choices=TABLES, help="one of the tables, printed and not written")
    options = parser.parse_args()
    parts = {part: Path(options.stsb) / f"{part}.store" for part in ("train", "dev", "test")}
    missing = [path for path in parts.values() if not path.is_file()]
    if missing:
        raise InputError("no such file; prepare_data.py makes it from the texts", path=missing[0])
    train, dev, test = (open_pairs([path]) for path in parts.values())
    recipes = make_parser("recipe", "")
    add_recipe_arguments(recipes)
    recipe, _ = parse_recipe(recipes, ["--preset", "default"])
    sections = {
        "inference": ("Inference", lambda: inference.run(test, options.model)),
        "training": ("Training", lambda: training_speed.run(train, dev, recipe)),
        "reading": ("Reading .dat files", lambda: reading.run(train)),
        "mining": ("Mining hard negatives", mining_speed.run),
        "growth": ("Growth", lambda: growth.run(train, dev, recipe, Path(options.out).with_suffix(".png"))),
    }
    text = f"# Speed\n\nMade by `make bench`: {os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__}.\n"
    for name, (title, make) in sections.items():
        if options.only in (None, name):
            section = f"\n## {title}\n\n{make()}"
            print(section, flush=True)
            text += section
    if options.only is None:
        write_text_atomically(Path(options.out), text)
        print(f"\n{options.out} and {Path(options.out).with_suffix('.png')}")


if __name__ == "__main__":
    run_command(main)
