"""The compression study: sentence embeddings of 384 numbers in few, with and without noise.

    python study_compression.py studies/compression.yaml

It runs the grids of the file (ablate.py; runs that are done are not repeated) and writes, named after the file, a CSV with a row
for each run, tables with what of the published table is found again, and four figures. All choices are made on the validation
part; test is only reported.
"""

from __future__ import annotations

import csv
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from ablate import AblationRun, read_ablation, write_runs
from atomic import write_text_atomically
from checkpoint import load_encoder
from cli import make_parser, output_folder, run_command
from compression_figures import draw_cosines, draw_loss_histograms, draw_losses, draw_sizes
from data import PairData, open_pairs
from encoding import encode_pairs
from errors import InputError
from evaluate import cosines
from many_runs import add_study_arguments, run_all
from metrics import spearman
from quantize import bit_similarity, from_int8, int8_range, to_bits, to_int8, truncate
from tables import markdown, mean_and_deviation
from text_files import MAX_LABEL

PUBLISHED, PRINCIPAL, COMPRESS, NESTED = "published", "principal components", "compress", "nested"  # grids of the study
PUBLISHED_SPEARMAN = {0: "0.775", 0.5: "0.8145-0.8185", 0.75: "0.8145-0.8185", 1.0: "", 3.0: "0.762"}  # STS-B, by noise_alpha
PUBLISHED_MSE = 0.0683  # the best of them
SIZE = 32  # of the published vectors
PARTS = {"validation": "dev", "test": "test"}
METRICS = {"mse": "MSE", "mae": "MAE", "pearson": "Pearson", "spearman": "Spearman"}

Row = list[str]
Vectors = tuple[np.ndarray, np.ndarray]


class Study:
    """The runs of the grids, and the pairs they were measured on."""

    def __init__(self, runs: Sequence[AblationRun], stores: Path) -> None:
        """Take runs that are done and the folder of their token stores."""
        self.runs = runs
        self.pairs: dict[str, PairData] = {
            part: open_pairs([stores / f"{name}.store"]) for part, name in {"training": "train", **PARTS}.items()
        }

    def of(self, grid: str, *, alpha: float | None = None, size: int | None = None) -> list[AblationRun]:
        """The runs of a grid with some noise and size, by seed."""
        wanted = {"noise_alpha": alpha, "encoder.output_dim": size}
        found = [run for run in self.runs if run.grid == grid]
        return [run for run in found if all(value in (None, run.settings.get(field)) for field, value in wanted.items())]

    def values(self, grid: str, field: str) -> list[float]:
        """The values that a grid has of a field."""
        return list(dict.fromkeys(run.settings[field] for run in self.of(grid)))

    def scores(self, runs: Iterable[AblationRun], part: str, metric: str) -> list[float]:
        """A score of each run."""
        return [run.metrics()[part]["encoder"][metric] for run in runs]

    def uncompressed(self, part: str, metric: str = "spearman") -> float:
        """A score of the vectors that are compressed."""
        return self.runs[0].metrics()[part]["mean pooling"][metric]

    def best_alpha(self) -> float:
        """The noise above 0 whose published network is best on the validation part."""

        def on_dev(alpha: float) -> float:
            return statistics.mean(self.scores(self.of(PUBLISHED, alpha=alpha), "validation", "spearman"))

        return max((alpha for alpha in self.values(PUBLISHED, "noise_alpha") if alpha), key=on_dev)

    def vectors(self, run: AblationRun, part: str) -> Vectors:
        """What the checkpoint of a run makes of the first and second sentences of a part: `(n, K)` each."""
        first, second = encode_pairs(load_encoder(run.folder / "model.bin"), self.pairs[part])
        return first.numpy(), second.numpy()

    def cosines(self, run: AblationRun, part: str) -> np.ndarray:
        """The cosines `(n,)` of a run's checkpoint on a part."""
        return cosines(*encode_pairs(load_encoder(run.folder / "model.bin"), self.pairs[part]))

    def errors(self, run: AblationRun, part: str) -> np.ndarray:
        """The squared error of each pair's cosine, `(n,)`."""
        return (self.cosines(run, part) - self.pairs[part].labels / MAX_LABEL) ** 2


def model_table(study: Study) -> str:
    """Each model at each size: errors and correlations on both parts, over seeds."""
    columns = [(part, metric) for part in PARTS for metric in METRICS]
    titles = [f"{PARTS[part]} {METRICS[metric]}" for part, metric in columns]
    rows: list[Row] = [["uncompressed", "384", *(f"{study.uncompressed(*column):.4f}" for column in columns), ""]]

    def add(name: str, runs: list[AblationRun]) -> None:
        scores = [mean_and_deviation(study.scores(runs, *column)) for column in columns]
        rows.append([name, str(runs[0].settings["encoder.output_dim"]), *scores, str(len(runs))])

    for grid in (PRINCIPAL, COMPRESS):
        for size in study.values(grid, "encoder.output_dim"):
            add(grid, study.of(grid, size=int(size)))
    for alpha in study.values(PUBLISHED, "noise_alpha"):
        add(f"published network, alpha {alpha:g}", study.of(PUBLISHED, alpha=alpha))
    return markdown(["model", "numbers", *titles, "seeds"], rows)


def published_table(study: Study) -> str:
    """The published table beside ours."""
    rows = []
    for alpha in study.values(PUBLISHED, "noise_alpha"):
        runs = study.of(PUBLISHED, alpha=alpha)
        ours = [mean_and_deviation(study.scores(runs, part, "spearman")) for part in PARTS]
        mse = mean_and_deviation(study.scores(runs, "test", "mse"))
        rows.append([f"{alpha:g}", PUBLISHED_SPEARMAN.get(alpha, ""), ours[1], ours[0], mse])
    return markdown(["alpha", "published Spearman", "ours, test", "ours, dev", "ours, test MSE"], rows)


def published_verdict(study: Study) -> str:
    """What of the published table is found again, in sentences."""

    def of(alpha: float, metric: str = "spearman") -> float:
        return statistics.mean(study.scores(study.of(PUBLISHED, alpha=alpha), "test", metric))

    alphas = study.values(PUBLISHED, "noise_alpha")
    helping, most = [alpha for alpha in alphas if of(alpha) > of(0)], max(alphas)
    lowest = min(alphas, key=lambda alpha: of(alpha, "mse"))
    best = study.best_alpha()
    return (
        f"Means over seeds. Noise helps: {'yes' if best in helping else 'no'}, on test {of(0):.4f} without and {of(best):.4f} with "
        f"alpha {best:g}, the best on dev (published: 0.775 and 0.8185). Much more of it falls back: "
        f"{'yes' if of(most) < of(best) else 'no'}, {of(most):.4f} with alpha {most:g}; to below no noise at all, as published "
        f"(0.762): {'no' if most in helping else 'yes'}. The lowest MSE is {of(lowest, 'mse'):.4f}, with alpha {lowest:g} "
        f"(published: {PUBLISHED_MSE}); with alpha {most:g} it is {of(most, 'mse'):.4f}. Optimiser, epochs, batch, and the part of "
        "STS-B of the published figures are not known to us.\n"
    )


def storage_table(study: Study) -> str:
    """Nested vectors cut short, and stored as float32, int8 or bits: bytes for a vector, Spearman on both parts."""
    sizes = sorted(int(size) for size in study.values(COMPRESS, "encoder.output_dim"))
    rows = []
    for name, size, runs in [
        *(("nested", size, study.of(NESTED)) for size in sizes),
        *(("compress", size, study.of(COMPRESS, size=size)) for size in sizes),
    ]:
        found: dict[str, dict[str, list[float]]] = {form: {part: [] for part in PARTS} for form in ("float32", "int8", "bits")}
        for run in runs:
            value_range = int8_range(truncate(np.concatenate(study.vectors(run, "training")), size))
            for part in PARTS:
                labels = study.pairs[part].labels
                first, second = (truncate(side, size) for side in study.vectors(run, part))
                codes = [from_int8(to_int8(side, value_range), value_range) for side in (first, second)]
                for form, similarity in (
                    ("float32", (first * second).sum(1)),
                    ("int8", (codes[0] * codes[1]).sum(1)),
                    ("bits", bit_similarity(to_bits(first), to_bits(second), size)),
                ):
                    found[form][part].append(spearman(similarity, labels))
        bytes_of = {"float32": 4 * size, "int8": size, "bits": -(-size // 8)}
        for form, parts in found.items():
            rows.append([name, str(size), form, str(bytes_of[form]), *(mean_and_deviation(parts[part]) for part in PARTS)])
    return markdown(["model", "numbers", "stored as", "bytes", "dev Spearman", "test Spearman"], rows)


def training_losses(run: AblationRun) -> list[float]:
    """The mean training loss of each epoch."""
    with (run.folder / "history.csv").open(encoding="utf-8") as file:
        return [float(row["loss"]) for row in csv.DictReader(file) if row["epoch"] != "0"]


def draw(study: Study, results: Path, name: str) -> None:
    """The four figures, their files named after the study; where a single run stands for its seeds it is the first."""
    alphas, best = study.values(PUBLISHED, "noise_alpha"), study.best_alpha()
    draw_losses(
        results / f"{name}_loss.png",
        {f"alpha {alpha:g}": [training_losses(run) for run in study.of(PUBLISHED, alpha=alpha)] for alpha in alphas},
    )
    models = {
        f"principal components, {SIZE}": study.of(PRINCIPAL, size=SIZE)[0],
        "published, alpha 0": study.of(PUBLISHED, alpha=0)[0],
        f"published, alpha {best:g}": study.of(PUBLISHED, alpha=best)[0],
        f"compress, {SIZE}": study.of(COMPRESS, size=SIZE)[0],
    }
    draw_cosines(
        results / f"{name}_cosines.png",
        {name: study.cosines(run, "test") for name, run in models.items()},
        study.pairs["test"].labels,
    )
    noisy = {f"alpha {alpha:g}": study.of(PUBLISHED, alpha=alpha)[0] for alpha in (0, best)}
    draw_loss_histograms(
        results / f"{name}_histograms.png",
        {part: {name: study.errors(run, part) for name, run in noisy.items()} for part in ("training", "test")},
    )
    draw_sizes(
        results / f"{name}_sizes.png",
        {PARTS[part]: size_curves(study, part) for part in PARTS},
        {PARTS[part]: study.uncompressed(part) for part in PARTS},
    )


def size_curves(study: Study, part: str) -> dict[str, dict[int, float]]:
    """Mean Spearman of each model at each size."""
    curves: dict[str, dict[int, float]] = {}
    for grid in (PRINCIPAL, COMPRESS):
        sizes = [int(size) for size in study.values(grid, "encoder.output_dim")]
        curves[grid] = {size: statistics.mean(study.scores(study.of(grid, size=size), part, "spearman")) for size in sizes}
    vectors = [study.vectors(run, part) for run in study.of(NESTED)]
    labels = study.pairs[part].labels
    curves["nested, one model cut short"] = {
        size: statistics.mean(
            spearman((truncate(first, size) * truncate(second, size)).sum(1), labels) for first, second in vectors
        )
        for size in curves[COMPRESS]
    }
    for name, alpha in (("published, alpha 0", 0.0), (f"published, alpha {study.best_alpha():g}", study.best_alpha())):
        curves[name] = {SIZE: statistics.mean(study.scores(study.of(PUBLISHED, alpha=alpha), part, "spearman"))}
    return curves


def main() -> None:
    """Command line."""
    parser = make_parser("study_compression.py", __doc__)
    add_study_arguments(parser)
    options = parser.parse_args()
    path, results = Path(options.study), output_folder(options.results)
    runs = read_ablation(path)
    for grid in (PUBLISHED, PRINCIPAL, COMPRESS, NESTED):
        if not any(run.grid == grid for run in runs):
            raise InputError(f"no grid {grid!r}, which this study is made of", path=path)
    run_all(runs, options.workers)
    write_runs(results / f"{path.stem}.csv", runs)
    study = Study(runs, runs[0].stores)
    text = (
        "# Small vectors\n\nSentence embeddings of 384 numbers made smaller, STS-B. Errors are of the plain cosine against "
        "score / 5. "
        "Weights are chosen on dev; test is reported. Made by `make study-compression`.\n\n"
        f"{model_table(study)}\n## The published table\n\n{published_table(study)}\n{published_verdict(study)}\n"
        f"## Stored smaller\n\n{storage_table(study)}"
    )
    write_text_atomically(results / f"{path.stem}.md", text)
    draw(study, results, path.stem)
    print(f"{results / path.stem}.csv, .md, and four figures: {len(runs)} runs")


if __name__ == "__main__":
    run_command(main)
