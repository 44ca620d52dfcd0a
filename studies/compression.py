"""The rest of the compression study's report: embeddings cut short and quantised, the published figures, two pictures."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common.errors import InputError
from common.text_tables import markdown
from data import PairData, open_pairs
from evaluation.checkpoint import load_encoder
from evaluation.encoding import encode_pairs
from evaluation.metrics import spearman
from evaluation.quantization import bit_similarity, from_int8, int8_range, to_bits, to_int8, truncate
from studies.figures import draw_losses, draw_sizes
from studies.runs import Run
from studies.tables import BASELINE, ENCODER, PARTS, mean_and_deviation

PUBLISHED, PRINCIPAL, COMPRESS, NESTED = "published", "principal components", "compress", "nested"  # arms of the study
PUBLISHED_SPEARMAN = {0: "0.775", 0.5: "0.8145-0.8185", 0.75: "0.8145-0.8185", 1.0: "", 3.0: "0.762"}  # STS-B, by noise_alpha
SIZE_FIELD, NOISE_FIELD = "encoder.output_dim", "noise_alpha"


class CompressionReport:
    """Finished runs of the compression study and the pairs they were measured on."""

    def __init__(self, runs: Sequence[Run]) -> None:
        """Group the runs by arm.

        Raises:
            InputError: if no run of an arm that the report needs is finished.
        """
        self.arms = {arm: [run for run in runs if run.arm == arm] for arm in (PUBLISHED, PRINCIPAL, COMPRESS, NESTED)}
        for arm, found in self.arms.items():
            if not found:
                raise InputError(f"no run of arm {arm!r} is finished, which the compression report needs")
        options = runs[0].options
        self.pairs: dict[str, PairData] = {
            part: open_pairs([options[options.index(option) + 1]])
            for part, option in (("training", "--data"), ("validation", "--validation"), ("test", "--test"))
        }

    def by_setting(self, arm: str, field: str) -> dict[float, list[Run]]:
        """The runs of an arm by their value of a field."""
        values = dict.fromkeys(run.settings[field] for run in self.arms[arm])
        return {value: [run for run in self.arms[arm] if run.settings[field] == value] for value in values}

    def embeddings(self, run: Run, part: str) -> list[np.ndarray]:
        """Embeddings `(n, K)` of the first and of the second sentences of a part."""
        return [side.numpy() for side in encode_pairs(load_encoder(run.folder / "model.bin"), self.pairs[part])]

    def published_table(self) -> str:
        """The published figures next to ours."""
        rows = [
            [
                f"{alpha:g}",
                PUBLISHED_SPEARMAN.get(alpha, ""),
                *(mean_and_deviation(_scores(runs, part, "spearman")) for part in ("test", "validation")),
                mean_and_deviation(_scores(runs, "test", "mse")),
            ]
            for alpha, runs in self.by_setting(PUBLISHED, NOISE_FIELD).items()
        ]
        return markdown(["noise_alpha", "published Spearman", "ours, test", "ours, validation", "ours, test error"], rows)

    def storage_table(self) -> str:
        """Embeddings cut short, stored as float32, int8 or bits: bytes per embedding, Spearman on both parts."""
        sizes = {int(size): runs for size, runs in self.by_setting(COMPRESS, SIZE_FIELD).items()}
        rows = []
        for name, size, runs in [
            *(("nested", size, self.arms[NESTED]) for size in sizes),
            *(("compress", size, runs) for size, runs in sizes.items()),
        ]:
            found: dict[str, dict[str, list[float]]] = {form: {part: [] for part in PARTS} for form in ("float32", "int8", "bits")}
            for run in runs:
                value_range = int8_range(truncate(np.concatenate(self.embeddings(run, "training")), size))
                for part in PARTS:
                    labels = self.pairs[part].labels
                    first, second = (truncate(side, size) for side in self.embeddings(run, part))
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
        return markdown(["model", "dimensions", "stored as", "bytes", *(f"{part} Spearman" for part in PARTS)], rows)

    def size_curves(self, part: str) -> dict[str, dict[int, float]]:
        """Mean Spearman of each model by number of dimensions."""
        curves = {
            arm: {
                int(size): statistics.mean(_scores(runs, part, "spearman"))
                for size, runs in self.by_setting(arm, SIZE_FIELD).items()
            }
            for arm in (PRINCIPAL, COMPRESS)
        }
        embeddings = [self.embeddings(run, part) for run in self.arms[NESTED]]
        labels = self.pairs[part].labels
        curves["nested, one model cut short"] = {
            size: statistics.mean(spearman((truncate(a, size) * truncate(b, size)).sum(1), labels) for a, b in embeddings)
            for size in curves[COMPRESS]
        }
        for alpha, runs in self.by_setting(PUBLISHED, NOISE_FIELD).items():
            if alpha in (0, 0.75):  # without noise, and the best noise of the published table
                size = int(runs[0].settings[SIZE_FIELD])
                curves[f"published, noise {alpha:g}"] = {size: statistics.mean(_scores(runs, part, "spearman"))}
        return curves

    def write(self, results: Path, name: str) -> str:
        """Write the two pictures; the tables as Markdown."""
        by_noise = self.by_setting(PUBLISHED, NOISE_FIELD).items()
        draw_losses(results / f"{name}_loss.png", {f"noise {alpha:g}": [_losses(run) for run in runs] for alpha, runs in by_noise})
        uncompressed = {part: self.arms[COMPRESS][0].metrics()[part][BASELINE]["spearman"] for part in PARTS}
        draw_sizes(results / f"{name}_sizes.png", {part: self.size_curves(part) for part in PARTS}, uncompressed)
        return f"\n## The published figures\n\n{self.published_table()}\n## Stored smaller\n\n{self.storage_table()}"


def _scores(runs: Sequence[Run], part: str, score: str) -> list[float]:
    return [run.metrics()[part][ENCODER][score] for run in runs]


def _losses(run: Run) -> list[float]:
    """The mean training loss of each epoch."""
    with (run.folder / "history.csv").open(encoding="utf-8") as file:
        return [float(row["loss"]) for row in csv.DictReader(file) if row["epoch"] != "0"]
