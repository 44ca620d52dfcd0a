"""Recipes: all settings of training, read from YAML files and overridden on the command line."""

from __future__ import annotations

import argparse
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from jsonargparse import ArgumentParser

from common.errors import InputError, refuse_negative
from common.yaml_files import read_yaml
from evaluation.checkpoint import MAX_BYTES
from losses import LOSSES, NEED_TEACHER, WITHOUT_LABELS
from model import EncoderConfig, SentenceEncoder

CONFIGS = Path(__file__).parent.parent / "configs"


@dataclass
class LossTerm:
    """One loss of a phase; its key names a loss in losses.py.

    Args:
        weight: weight of this loss in the sum.
        every: add it to every n-th batch only.
        options: arguments of the loss, such as temperature, margin, scale.
        guide: a second encoder whose embeddings the loss gets: mean pooling (baseline) or the one of train.py --teacher.
    """

    weight: float = 1.0
    every: int = 1
    options: dict[str, float] = field(default_factory=dict)
    guide: Literal["none", "baseline", "teacher"] = "none"


@dataclass
class Phase:
    """A phase of training with its own losses.

    Args:
        epochs: passes over the training pairs.
        losses: by name; their weighted sum is minimised.
        select: validation score that chooses the best weights after each epoch.
        min_label: train on pairs with at least this label, 0-5.
        unlabelled: unlabelled pairs to add to each batch, for distillation from a teacher.
        without_duplicates: no sentence belongs to two pairs of a batch.
    """

    epochs: int = 1
    losses: dict[str, LossTerm] = field(default_factory=dict)
    select: Literal["spearman", "loss", "none"] = "spearman"
    min_label: float = 0.0
    unlabelled: int = 0
    without_duplicates: bool = False


@dataclass
class Recipe:
    """The recipe.

    Args:
        encoder: the encoder to train; input_dim is taken from the data.
        start: initial weights: baseline (as mean pooling), centred (as its principal components), random.
        never_below_baseline: return mean pooling if the encoder is worse on the validation pairs: true, in Spearman or in the
            error of its cosines; spearman, in Spearman only; false, never.
        phases: by name, in order; e.g. --phases.graded.epochs 30.
        noise_alpha: NEFTune noise on the token embeddings in training; 0 adds none.
        nested: dimensions that embeddings can be truncated to (Matryoshka), ending with output_dim; empty trains none.
        batch_size: pairs per batch.
        learning_rate: peak learning rate, after warm-up.
        min_learning_rate: learning rate at the end of the cosine.
        warmup_epochs: epochs of linear warm-up.
        weight_decay: weight decay of AdamW.
        clip_norm: maximum gradient norm.
        accumulation: batches per optimiser step.
        sentences_at_a_time: encode batches in parts of this many sentences: large batches in little memory, in twice the
            time; 0 encodes whole batches.
        validation_fraction: fraction of the pairs to validate on if no validation pairs are given.
        seed: random seed.
    """

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    start: Literal["baseline", "centred", "random"] = "centred"
    never_below_baseline: bool | Literal["spearman"] = True
    phases: dict[str, Phase] = field(default_factory=dict)
    noise_alpha: float = 0.0
    nested: list[int] = field(default_factory=list)
    batch_size: int = 64
    learning_rate: float = 2e-4
    min_learning_rate: float = 1e-6
    warmup_epochs: float = 1.5
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    accumulation: int = 1
    sentences_at_a_time: int = 0
    validation_fraction: float = 0.1
    seed: int = 0


def add_recipe_arguments(parser: ArgumentParser) -> None:
    """Add `--preset`, `--config` and one option per field of a recipe."""
    parser.add_argument("--preset", default="default", help=f"built-in recipe: {', '.join(preset_names())}")
    parser.add_argument("--config", metavar="FILE", help="your own recipe in YAML; missing fields have the defaults below")
    parser.add_class_arguments(Recipe, None)


def parse_recipe(parser: ArgumentParser, arguments: Sequence[str]) -> tuple[Recipe, Any]:
    """Parse a command line with recipe arguments, which override the fields of the recipe file.

    Args:
        parser: has the arguments of `add_recipe_arguments`.
        arguments: the command line.

    Returns:
        The checked recipe and all options.

    Raises:
        InputError: for an unknown preset, both a preset and a file, a file that is not a recipe, or an invalid field.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset")
    first.add_argument("--config")
    chosen, rest = first.parse_known_args(arguments)
    if chosen.config and chosen.preset:
        raise InputError("--preset and --config both name a recipe; give one of them")
    preset = chosen.preset or "default"
    if preset not in preset_names():
        raise InputError(f"no preset {preset!r}, expected one of {', '.join(preset_names())}")
    path = Path(chosen.config or CONFIGS / f"{preset}.yaml")
    contents = read_recipe_file(path)
    try:
        parser.parse_args(as_arguments(contents))
    except argparse.ArgumentError as error:
        raise InputError(f"not a recipe: {error}", path=path) from error
    rest = _apply_phase_options(contents, rest)  # before types are checked, because the parser overrides one level deep only
    options = parser.instantiate(parser.parse_args([*as_arguments(contents), *rest]))
    options["preset"], options["config"] = preset, chosen.config
    recipe = Recipe(**{item.name: options[item.name] for item in fields(Recipe)})
    check_recipe(recipe)
    return recipe, options


def read_recipe_file(path: Path, nested: Sequence[str] = ("encoder",)) -> dict[str, Any]:
    """Read the fields of a recipe file; the values of those in `nested` must be mappings.

    Raises:
        InputError: if it is missing or not a YAML mapping.
    """
    contents = read_yaml(path, "a recipe")
    _check_fields(contents, path)
    for key in nested:
        if not isinstance(contents.get(key, {}), dict):
            raise InputError(f"{key} is not a mapping, expected fields and values", path=path)
    return contents


def _check_fields(contents: Any, path: Path, place: str = "") -> None:
    """Refuse empty fields, and names that are not strings: YAML reads the name `on` as True."""
    for name, value in contents.items() if isinstance(contents, dict) else ():
        if not isinstance(name, str):
            raise InputError(f"expected a name but got {name!r}; put names like on, off and 1 in quotes", path=path)
        if value is None:
            raise InputError(f"{place}{name} is empty, expected a value ({{}} for a loss with its defaults)", path=path)
        _check_fields(value, path, f"{place}{name}.")


def _apply_phase_options(contents: dict[str, Any], arguments: Sequence[str]) -> list[str]:
    """Set the fields given as `--phases.NAME.FIELD VALUE` in `contents`, and return the other arguments."""
    rest: list[str] = []
    pending = iter(arguments)
    for argument in pending:
        if not argument.startswith("--phases.") or argument == "--phases.help":
            rest.append(argument)
            continue
        option, equals, value = argument.partition("=")
        if not equals and not (value := next(pending, "")):
            raise InputError(f"{option} has no value, expected one after it")
        mapping = contents
        *parents, name = option.removeprefix("--").split(".")
        for parent in parents:
            mapping = mapping.setdefault(parent, {})
            if not isinstance(mapping, dict):
                raise InputError(f"{option}: {parent} is a value, not a mapping; see configs/default.yaml")
        try:
            mapping[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise InputError(f"{option}: the value is not YAML ({getattr(error, 'problem', error)})") from error
    return rest


def as_arguments(contents: dict[str, Any], nested: Sequence[str] = ("encoder",)) -> list[str]:
    """A recipe file's fields as command-line arguments, so that one parser checks both."""
    flat = {key: value for key, value in contents.items() if key not in nested}
    flat |= {f"{key}.{name}": value for key in nested for name, value in contents.get(key, {}).items()}
    return [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in flat.items()]


def dotted(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested fields to dotted names, as on the command line."""
    flat: dict[str, Any] = {}
    for name, value in fields.items():
        flat |= dotted(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def preset_names() -> list[str]:
    """The names of the recipes in configs/; YAML files without phases there are not recipes."""
    return sorted(config.stem for config in CONFIGS.glob("*.yaml") if "\nphases:" in "\n" + config.read_text("utf-8"))


def check_recipe(recipe: Recipe) -> None:
    """Raise InputError for the first invalid field."""
    for name in ("batch_size", "learning_rate", "clip_norm", "accumulation"):
        if not getattr(recipe, name) > 0:
            raise InputError(f"recipe: {name} is {getattr(recipe, name)}, expected above 0")
    not_negative = ("min_learning_rate", "warmup_epochs", "weight_decay", "seed", "sentences_at_a_time", "noise_alpha")
    refuse_negative(recipe, *not_negative, place="recipe: ")
    if recipe.batch_size < 2:
        raise InputError("recipe: batch_size is 1, expected 2 or more: losses compare the pairs of a batch")
    if not 0 < recipe.validation_fraction <= 0.5:
        raise InputError(f"recipe: validation_fraction is {recipe.validation_fraction}, expected above 0 and at most 0.5")
    check_encoder(recipe.encoder)
    architecture, output_dim = recipe.encoder.architecture, recipe.encoder.output_dim
    if recipe.start != "random" and architecture != "hybrid":
        raise InputError(
            f"recipe: start is {recipe.start}, but {architecture} encoders only start random; choose architecture hybrid"
        )
    if recipe.nested and (min(recipe.nested) < 1 or max(recipe.nested) != output_dim):
        raise InputError(f"recipe: nested is {recipe.nested}, expected numbers of dimensions from 1 up to output_dim {output_dim}")
    if not recipe.phases:
        raise InputError("recipe: no phases, expected at least one; configs/default.yaml has two")
    for name, phase in recipe.phases.items():
        _check_phase(f"recipe: phases.{name}", phase, others=[other for other in recipe.phases if other != name])


def check_encoder(config: EncoderConfig) -> None:
    """Refuse an invalid or too large encoder before training.

    Raises:
        InputError: for sizes that do not fit together, an encoder without parameters, or one of more than 20 MiB.
    """
    try:
        with torch.device("meta"):
            encoder = SentenceEncoder(config)
    except (ValueError, RuntimeError, TypeError, OverflowError) as error:  # torch raises any of these for huge sizes
        raise InputError(f"recipe: encoder: {str(error).splitlines()[0]}") from error
    size = sum(parameter.numel() * parameter.element_size() for parameter in encoder.parameters())
    if not size:
        raise InputError(f"recipe: a {config.architecture} encoder has nothing to train; choose architecture hybrid")
    if size > MAX_BYTES:
        raise InputError(
            f"recipe: the encoder takes {size / 2**20:.1f} MiB, expected at most 20; choose a smaller output_dim or hidden_dim"
        )


def _check_phase(place: str, phase: Phase, others: Sequence[str]) -> None:
    _check_not_empty(place, phase)
    refuse_negative(phase, "epochs", "unlabelled", place=f"{place}.")
    if not 0 <= phase.min_label <= 5:
        raise InputError(f"{place}.min_label is {phase.min_label:g}, expected a label, 0 to 5")
    if not phase.losses:
        advice = f"; did you mean phase {' or '.join(others)}?" if others else ""
        raise InputError(f"{place}.losses is empty, expected one of {', '.join(LOSSES)}{advice}")
    for name, term in phase.losses.items():
        _check_not_empty(f"{place}.losses.{name}", term)
        if name not in LOSSES:
            raise InputError(f"{place}.losses: no loss {name!r}, expected one of {', '.join(LOSSES)}")
        parameters = inspect.signature(LOSSES[name]).parameters.values()
        known = [item.name for item in parameters if item.kind is item.KEYWORD_ONLY and item.name != "negatives"]
        for option in term.options:
            if option not in known:
                raise InputError(f"{place}.losses.{name}: no option {option!r}, expected one of {', '.join(known) or 'none'}")
        if name in WITHOUT_LABELS and term.guide == "none":
            raise InputError(f"{place}.losses.{name}.guide is none, expected baseline or teacher")
        if name in NEED_TEACHER and term.guide != "teacher":
            raise InputError(f"{place}.losses.{name}.guide is {term.guide}, expected teacher")
        if term.every < 1:
            raise InputError(f"{place}.losses.{name}.every is {term.every}, expected 1 or more")
    always = [term for term in phase.losses.values() if term.every == 1]
    if not always:
        raise InputError(f"{place}.losses: every loss has every above 1, expected at least one with every 1")
    if phase.select == "loss" and all(term.guide == "teacher" for term in always):
        raise InputError(f"{place}.select is loss, but validation pairs have no teacher; choose spearman, or a loss on labels")


def _check_not_empty(place: str, settings: Phase | LossTerm) -> None:
    for item in fields(settings):
        if getattr(settings, item.name) is None:  # the parser accepts empty fields
            raise InputError(f"{place}.{item.name} is empty, expected a value; remove the field to use its default")
