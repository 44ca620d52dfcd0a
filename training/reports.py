"""Training artifacts: history, recipe, metrics, curve."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from common.files import write_csv_atomically, write_figure_atomically, write_text_atomically
from data import PairData
from evaluation.scores import METRICS
from training.objective import guide_names
from training.recipe import Phase, Recipe
from training.trainer import EpochRecord, TrainingResult


def write_history(path: Path, history: Sequence[EpochRecord], metric: str = "spearman") -> None:
    """Write a CSV with a row per epoch and the fields of EpochRecord as columns; `metric` names the validation score."""
    rows = [[f"{value:.6g}" if isinstance(value, float) else value for value in astuple(record)] for record in history]
    names = [field.name.replace("validation_score", f"validation_{metric}") for field in fields(EpochRecord)]
    write_csv_atomically(path, [names, *rows])


def write_recipe(path: Path, recipe: Recipe) -> None:
    """Write the recipe as YAML that `--config` reads."""
    write_text_atomically(path, yaml.safe_dump(asdict(recipe), sort_keys=False))


def data_facts(pairs: PairData) -> dict[str, Any]:
    """Identify the pairs of a run: their number, their hash without teacher targets, and the source of their tokens."""
    identity = replace(pairs, targets=None).identity()
    return {"pairs": len(pairs), "identity": identity, "skipped_rows": pairs.skipped, "tokens": dict(pairs.tokens.description)}


def git_commit() -> str | None:
    """The commit of the code, with -dirty if files have changed since; None outside a git repository."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def write_metrics(path: Path, metrics: dict[str, Any]) -> None:
    """Write metrics as JSON, with the commit and versions that produced them."""
    versions = {"python": platform.python_version()}
    versions |= {module.__name__: module.__version__ for module in (torch, np)}
    write_text_atomically(path, json.dumps({**metrics, "commit": git_commit(), "versions": versions}, indent=2) + "\n")


def draw_history(path: Path, result: TrainingResult, phases: Mapping[str, Phase]) -> None:
    """Plot loss, validation score and learning rate per epoch, with the phases marked.

    Args:
        path: PNG to write.
        result: of the run.
        phases: of its recipe.
    """
    history, baseline = result.history, getattr(result.baseline, result.metric)
    epochs = np.array([record.epoch for record in history])
    from matplotlib.figure import Figure  # here: the import takes half a second, which --help should not wait for
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8, 6.4), layout="constrained")
    loss_axes, score_axes, rate_axes = figure.subplots(3, 1, sharex=True, height_ratios=(3, 3, 1.4))
    # Phases have different losses: relative to the phase's first epoch, they fit one axis.
    for number, name in enumerate(dict.fromkeys(record.phase for record in history if record.phase)):
        phase = [record for record in history if record.phase == name]
        on_validation = "validation, labels only" if "teacher" in guide_names(phases[name]) else "validation"
        for values, style, label in (
            ([record.loss for record in phase], "o-", f"{name}, training"),
            ([record.validation_loss for record in phase], "s--", f"{name}, {on_validation}"),
        ):
            loss_axes.plot(
                [record.epoch for record in phase], np.array(values) / (values[0] or 1), style, markersize=3, label=label
            )
        for axes in (loss_axes, score_axes, rate_axes):
            axes.axvspan(phase[0].epoch - 0.5, phase[-1].epoch + 0.5, color="0.93" if phase[0].epoch > 1 else "0.98", zorder=0)
        height = 1.03 + 0.1 * (number % 2)  # in turn, because a phase may be one epoch wide
        transform = loss_axes.get_xaxis_transform()
        loss_axes.text(phase[0].epoch - 0.5, height, name, transform=transform, fontsize=9, color="0.35")
    loss_axes.set_ylabel("loss / phase's first epoch")
    if loss_axes.lines:  # none without epochs
        loss_axes.legend(fontsize=8, ncols=2, frameon=False)
    scores = np.array([record.validation_score for record in history])
    label = f"{'kept: ' if result.fell_back else ''}mean pooling {baseline:.4f}"
    score_axes.axhline(baseline, color="tab:gray", linestyle="--", label=label)
    score_axes.plot(epochs, scores, "o-", color="tab:blue", markersize=4, label="encoder")
    if not result.fell_back and history:
        kept = result.epoch, scores[result.epoch]
        score_axes.plot(*kept, "*", color="tab:orange", markersize=15, label="kept: epoch {}, {:.4f}".format(*kept))
    score_axes.set_ylabel(f"validation {METRICS[result.metric]}")
    score_axes.legend(fontsize=8)
    rate_axes.plot(epochs, [record.learning_rate for record in history], color="tab:green")
    rate_axes.set_ylabel("learning rate")
    rate_axes.set_xlabel("epoch")
    rate_axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    rate_axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    write_figure_atomically(path, figure)
