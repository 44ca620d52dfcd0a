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
import process_speed
import reading
import text_speed
import torch
import training_speed

from common.cli import make_parser, run_command
from common.errors import InputError
from common.files import write_text_atomically
from data import open_pairs
from training.recipe import add_recipe_arguments, parse_recipe

TABLES = ("inference", "text", "training", "processes", "reading", "mining", "growth")
HEADER = f"# Speed\n\nMade by `make bench`: {os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__}.\n"


def main() -> None:
    """Command line."""
    parser = make_parser("benchmarks/run.py", __doc__)
    parser.add_argument("--stsb", default="stores/stsb", help="folder with train.store, dev.store, test.store")
    parser.add_argument("--model", default="model.bin", help="the default encoder")
    parser.add_argument("--out", default="results/speed.md", help="tables; the figure of growth lies beside them")
    parser.add_argument("--only", choices=TABLES, help="measure one section again; the others stay as they are in --out")
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
        "text": ("Text to vectors", lambda: text_speed.run(test, options.model)),
        "training": ("Training", lambda: training_speed.run(train, dev, recipe)),
        "processes": ("Training in several processes", lambda: process_speed.run(Path(options.stsb))),
        "reading": ("Reading .dat files", lambda: reading.run(train)),
        "mining": ("Mining hard negatives", mining_speed.run),
        "growth": ("Growth", lambda: growth.run(train, dev, recipe, Path(options.out).with_suffix(".png"))),
    }
    out = Path(options.out)
    contents = read_sections(out)  # what is not measured again, or not yet, stays
    for name, (title, make) in sections.items():
        if options.only in (None, name):
            contents[title] = make()
            print(f"## {title}\n\n{contents[title]}", flush=True)
            in_order = {title: contents[title] for title, _ in sections.values() if title in contents}
            write_text_atomically(out, HEADER + "".join(f"\n## {title}\n\n{text}" for title, text in in_order.items()))
    print(f"{out} and {out.with_suffix('.png')}")


def read_sections(path: Path) -> dict[str, str]:
    """What was measured before, by its title; nothing where there is no such file."""
    if not path.exists():
        return {}
    _, *parts = path.read_text(encoding="utf-8").split("\n## ")
    return {title: section + "\n" * (not section.endswith("\n")) for title, section in (part.split("\n\n", 1) for part in parts)}


if __name__ == "__main__":
    run_command(main)
