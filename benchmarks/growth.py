"""How time and memory grow with the data: reading, training and encoding at 1, 3 and 10 times the size."""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import reading
from matplotlib.figure import Figure
from timing import goal

from common.files import write_figure_atomically
from data import PairData
from evaluation.encoding import encode
from model import mean_pooling
from studies.tables import markdown
from tokens.dat_files import read_token_file
from training.recipe import Recipe
from training.trainer import Trainer

TIMES = (1, 3, 10)


def run(pairs: PairData, validation: PairData, recipe: Recipe, picture: Path, megabytes: int = 50) -> str:
    """The table and the figure of growth."""
    seconds: dict[str, list[float]] = {"reading": [], "opening again": [], "training, an epoch": [], "encoding": []}
    memory = []
    name, phase = list(recipe.phases.items())[-1]
    for times in TIMES:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "tokens.dat"
            reading.write_token_file(path, pairs, times * megabytes * 1_000_000)
            duration, peak = reading.measure("project", [path])
            seconds["reading"].append(duration)
            memory.append(peak)
            read_token_file(path)
            seconds["opening again"].append(_time(lambda path=path: read_token_file(path)))
        part = first_part(pairs, times)
        trainer = Trainer(recipe, part, validation)
        seconds["training, an epoch"].append(_time(lambda: trainer._train_epoch(name, phase, 1)))  # noqa: B023
        encoder, sentences = mean_pooling(part.tokens.dim), np.arange(len(part.tokens))
        tokens = replace(part.tokens, digests=sentences.astype(np.uint64))  # each sentence counts, also where it is repeated
        seconds["encoding"].append(_time(lambda: encode(encoder, tokens, sentences)))  # noqa: B023
    slopes = {name: float(np.polyfit(np.log(TIMES), np.log(values), 1)[0]) for name, values in seconds.items()}
    draw(picture, seconds, slopes)
    rows = [(name, *(f"{value:.3f}" for value in values), f"{slopes[name]:.2f}") for name, values in seconds.items()]
    rows += [("memory of reading beyond the imports, MB", *(f"{value:.0f}" for value in memory), "")]
    header = ("seconds", *(f"{times}x" for times in TIMES), "exponent: 1 is in proportion")
    n_sentences = len(first_part(pairs, 1).tokens)
    sizes = f"1x is {megabytes} MB of text to read, {len(pairs) // 10:,} pairs to train on, {n_sentences:,} sentences to encode."
    opening = goal("seconds of opening again at 10x", seconds["opening again"][-1], 0.05, at_most=True)
    return "\n".join([f"{sizes}\n", markdown(header, rows), opening])


def first_part(pairs: PairData, times: int) -> PairData:
    """The first `times` tenths of the pairs, and of the tokens what belongs to them."""
    n = len(pairs) // 10 * times
    pairs = pairs.select(np.arange(n))
    used = np.unique(np.concatenate([pairs.first, pairs.second]))
    tokens = pairs.tokens
    part = replace(
        tokens, part=tokens.part[used], starts=tokens.starts[used], lengths=tokens.lengths[used], digests=tokens.digests[used]
    )
    return replace(pairs, tokens=part, first=np.searchsorted(used, pairs.first), second=np.searchsorted(used, pairs.second))


def _time(work) -> float:  # type: ignore[no-untyped-def]
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def draw(path: Path, seconds: dict[str, list[float]], slopes: dict[str, float]) -> None:
    """Seconds against size, both logarithmic: a straight line of slope 1 grows in proportion."""
    figure = Figure(figsize=(5, 3.6), layout="constrained")
    axes = figure.subplots()
    for name, values in seconds.items():
        axes.loglog(TIMES, values, "o-", label=f"{name}: exponent {slopes[name]:.2f}")
    axes.set_xticks(TIMES, [f"{times}x" for times in TIMES])
    axes.set_xlabel("size of the data")
    axes.set_ylabel("seconds")
    figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)  # beside no line, however they run
    write_figure_atomically(path, figure)
