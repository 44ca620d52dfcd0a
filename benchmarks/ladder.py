"""Whole encoders, from text to embedding: quality, size and speed next to what else there is, in one run on one thread.

Example:

    python benchmarks/ladder.py --ladder runs/ladder --stsb ../stsb --sts ../sts --out results/small.md

`--ladder` holds folders that shrink.py or export.py --onnx wrote, named NAME-SEED; quality is the mean over seeds.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Container, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from sentence_transformers import SentenceTransformer
from timing import goal, processor, ratios, run_script, time_interleaved

from common.cli import make_parser, output_file, run_command
from common.errors import InputError
from common.files import size_of, write_figure_atomically, write_text_atomically
from common.text_tables import markdown
from evaluation.scores import score_embeddings
from portable.small_encoder import SmallEncoder
from tokens.backbone import source_of
from tokens.text_pairs import TextPairs, read_text_pairs

BACKBONE = "all-MiniLM-L6-v2"
SENTENCES, SINGLE = 1280, 128  # in batches, one at a time
REPEATS = 7
YEARS = ("sts2012.csv", "sts2013.csv", "sts2014.csv")
IN_TORCH = f"{BACKBONE}, sentence-transformers in torch"
OTHERS = str(Path(__file__).with_name("others_speed.py"))
LIGHT, HEAVY = ("onnxruntime", "tokenizers", "numpy"), ("sentence-transformers",)
Encode = Callable[[Sequence[str], int], np.ndarray]


def main() -> None:
    """Command line."""
    parser = make_parser("benchmarks/ladder.py", __doc__)
    parser.add_argument("--ladder", default="runs/ladder", help="folder of small encoders' folders, NAME-SEED")
    parser.add_argument("--stsb", required=True, help="folder with test.csv")
    parser.add_argument("--sts", required=True, help=f"folder with {', '.join(YEARS)}")
    parser.add_argument("--others", help="a Python with benchmarks/requirements-others.txt, to measure ONNX and model2vec there")
    parser.add_argument("--out", default="results/small.md", help="Markdown file")
    parser.add_argument("--picture", default="results/small.png", help="PNG of quality against speed")
    options = parser.parse_args()
    torch.set_num_threads(1)
    ladder = find_ladder(Path(options.ladder))
    out, picture = output_file(options.out, suffix=".md"), output_file(options.picture, suffix=".png")
    test = read_text_pairs(Path(options.stsb) / "test.csv")
    years = [read_text_pairs(Path(options.sts) / name) for name in YEARS]
    backbone = SentenceTransformer(source_of(BACKBONE), device="cpu")
    encoders: dict[str, list[Encode]] = {
        IN_TORCH: [lambda texts, batch: backbone.encode(texts, batch_size=batch, normalize_embeddings=True)],
    }
    sizes = {IN_TORCH: size_of(Path(source_of(BACKBONE)))}
    for name, folders in ladder.items():
        encoders[name] = [encode_of(SmallEncoder(folder)) for folder in folders]
        sizes[name] = max(size_of(folder) for folder in folders)
    quality = {name: np.mean([scores_of(encode, test, years) for encode in own], axis=0) for name, own in encoders.items()}
    speed = [measure(encoders, test.first[:SENTENCES], batch) for batch in (32, 1)]
    columns = (
        f"one thread, {len(test.first[:SENTENCES]):,} sentences of STS-B test",
        "MiB",
        "STS-B test",
        "error",
        "unrelated",
        "STS 2012 to 2014",
        "speed, batches of 32",
        "speed, one at a time",
        "seeds",
    )
    rows = [
        [
            name,
            f"{sizes[name] / 2**20:.1f}",
            *(f"{value:.4f}" for value in quality[name]),
            *(f"{own[name]:.1f}" for own in speed),
            str(len(own_seeds)),
        ]
        for name, own_seeds in sorted(encoders.items(), key=lambda entry: speed[0][entry[0]])
    ]
    parts = [
        f"# Whole encoders\n\nMade by `make ladder` on {processor()}. Speeds are multiples of the backbone's in torch.\n",
        markdown(columns, rows),
    ]
    points = {name: (speed[0][name], quality[name][0], sizes[name] / 2**20) for name in encoders}
    if options.others:
        others = run_script(OTHERS, source_of(BACKBONE), str(Path(options.stsb) / "test.csv"), python=options.others)
        points |= {name.replace("ONNX, ", "ONNX "): (fast, spearman, mib) for name, mib, spearman, fast, _ in others}
        rows = [[name, f"{mib:.1f}", f"{spearman:.4f}", f"{fast:.1f}", f"{one:.1f}"] for name, mib, spearman, fast, one in others]
        titles = ("others, in an environment of their own", "MiB", "STS-B test", "speed, batches of 32", "speed, one at a time")
        parts.append(markdown(titles, rows))
    parts.append(start_and_size(next(iter(ladder.values()))[0]))
    write_text_atomically(out, "\n".join(parts))
    draw(picture, points, own=ladder)
    print("\n".join(parts))


def find_ladder(folder: Path) -> dict[str, list[Path]]:
    """The folders of small encoders by name, over their seeds."""
    ladder: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir() if folder.is_dir() else []):
        if (match := re.fullmatch(r"(.+)-\d+", path.name)) and (path / "encoder.onnx").exists():
            ladder.setdefault(match[1].replace("_", " "), []).append(path)
    if not ladder:
        raise InputError("holds no small encoders, expected folders NAME-SEED that shrink.py wrote", path=folder)
    return ladder


def encode_of(encoder: SmallEncoder) -> Encode:
    """The encode function of a small encoder."""
    return lambda texts, batch: encoder.encode(texts, batch_size=batch)


def scores_of(encode: Encode, test: TextPairs, years: Sequence[TextPairs]) -> list[float]:
    """Spearman, error and unrelated cosine on STS-B test, and the mean Spearman over other years."""
    own, *others = [
        score_embeddings(torch.from_numpy(encode(pairs.first, 32)), torch.from_numpy(encode(pairs.second, 32)), pairs.labels)
        for pairs in (test, *years)
    ]
    return [own.spearman, own.mse, own.unrelated, float(np.mean([scores.spearman for scores in others]))]


def measure(encoders: dict[str, list[Encode]], sentences: Sequence[str], batch: int) -> dict[str, float]:
    """Sentences per second of each encoder, as a multiple of the backbone's in torch."""
    chosen = sentences if batch > 1 else sentences[:: max(1, len(sentences) // SINGLE)]

    def run(encode: Encode) -> Callable[[], object]:
        return (lambda: encode(chosen, batch)) if batch > 1 else (lambda: [encode([one], 1) for one in chosen])

    seconds = time_interleaved({name: run(own[0]) for name, own in encoders.items()}, REPEATS)
    return ratios({name: [len(chosen) / value for value in values] for name, values in seconds.items()}, IN_TORCH)


def start_and_size(folder: Path) -> str:
    """Seconds from a cold Python to the first embedding, and what an installation takes on disk."""
    small = (
        f"import sys; sys.path.insert(0, {str(folder)!r}); from small_encoder import SmallEncoder; SmallEncoder().encode('a cat')"
    )
    large = f"from sentence_transformers import SentenceTransformer as S; S({source_of(BACKBONE)!r}, device='cpu').encode('a cat')"
    rows = []
    seconds = time_interleaved({"small": lambda: cold(small), "large": lambda: cold(large)}, 5)
    for title, name, packages in (("SmallEncoder", "small", LIGHT), ("sentence-transformers in torch", "large", HEAVY)):
        rows.append([title, f"{np.median(seconds[name]):.2f}", f"{installed_bytes(packages) / 2**20:,.0f}"])
    table = markdown(("", "seconds from a cold Python to the first embedding", "MiB of installed packages"), rows)
    return f"{table}\n{goal('seconds to the first embedding', float(np.median(seconds['small'])), 1.0, at_most=True)}"


def cold(code: str) -> None:
    """Run code in a new Python."""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def installed_bytes(packages: Sequence[str]) -> int:
    """The bytes of installed packages and of all that they need."""
    total, seen, waiting = 0, set(), list(packages)
    while waiting:
        name = waiting.pop().lower().replace("_", "-")
        if name in seen:
            continue
        seen.add(name)
        try:
            own = distribution(name)
        except PackageNotFoundError:  # for another system
            continue
        total += sum(path.stat().st_size for file in own.files or [] if (path := Path(str(file.locate()))).is_file())
        waiting += [re.split(r"[^\w.-]", need, maxsplit=1)[0] for need in own.requires or [] if "extra ==" not in need]
    return total


def draw(path: Path, points: Mapping[str, tuple[float, float, float]], own: Container[str]) -> None:
    """Draw quality against speed, from speed, quality and MiB by name; the area of a point is its size, `own` ones are round."""
    figure = Figure(figsize=(9, 4.4), layout="constrained")
    axes = figure.subplots()
    for number, (name, (speed, quality, mib)) in enumerate(sorted(points.items(), key=lambda point: point[1])):
        colour, marker = f"C{number}", "o" if name in own else "s"
        axes.scatter(
            speed, quality, s=mib * 6, color=colour, marker=marker, alpha=0.6, label=f"{name.split(', ')[-1]}, {mib:.0f} MiB"
        )
    legend = figure.legend(loc="outside right upper", fontsize=8, frameon=False, title="area: size, squares: others")
    for handle in legend.legend_handles:
        if isinstance(handle, PathCollection):
            handle.set_sizes([40])
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.margins(0.16, 0.14)
    axes.set_xlabel("sentences per second in batches of 32, all-MiniLM-L6-v2 in torch = 1")
    axes.set_ylabel("Spearman on STS-B test")
    axes.grid(alpha=0.3)
    write_figure_atomically(path, figure)


if __name__ == "__main__":
    begin = time.perf_counter()
    run_command(main)
    print(f"{time.perf_counter() - begin:.0f} s")
