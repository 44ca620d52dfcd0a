"""A recipe: everything that decides what training does. Read from `configs/*.yaml`, any field from the command line."""

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

from common.errors import InputError
from common.yaml_files import read_yaml
from evaluation.checkpoint import MAX_BYTES
from losses import LOSSES, WITHOUT_LABELS
from model import EncoderConfig, SentenceEncoder

CONFIGS = Path(__file__).parent.parent / "configs"


@dataclass
class LossTerm:
    """One loss of a phase, named by its key; see losses.py.

    Args:
        weight: factor of this loss in the sum.
        every: add it to every n-th batch only.
        options: settings of the loss, such as temperature, margin, scale.
        guide: whose similarities the loss sees too: mean pooling's (baseline) or those of train.py --teacher.
    """

    weight: float = 1.0
    every: int = 1
    options: dict[str, float] = field(default_factory=dict)
    guide: Literal["none", "baseline", "teacher"] = "none"


@dataclass
class Phase:
    """A stretch of training with losses of its own.

    Args:
        epochs: passes over the training pairs.
        losses: the losses that are summed, by name.
        select: what the best weights are chosen by on the validation pairs after each epoch.
        min_label: train on pairs with at least this label, 0-5.
        unlabelled: pairs of sentences without label beside each batch, where a teacher has some for distillation.
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
        encoder: what is trained; input_dim is taken from the data.
        start: baseline starts as mean pooling, centred as its principal components, random from random weights.
        never_below_baseline: end with mean pooling itself where training did not do better on the validation pairs.
        phases: by name, in their order; e.g. --phases.graded.epochs 30.
        noise_alpha: NEFTune noise on the token embeddings in training; 0 adds none.
        nested: lengths, output_dim the last of them, at which the first numbers of a vector are trained to be one by themselves
            (Matryoshka); none by default.
        batch_size: pairs in a batch.
        learning_rate: the peak, after warm-up.
        min_learning_rate: the end of the cosine.
        warmup_epochs: epochs of linear warm-up.
        weight_decay: of AdamW.
        clip_norm: the largest norm of the gradient.
        accumulation: batches in a step of the optimiser.
        sentences_at_a_time: encode a batch in parts of this many sentences: large batches in little memory, for twice the
            time; 0 the whole batch at once.
        validation_fraction: part of the pairs to validate on where no validation pairs are given.
        seed: of everything random.
    """

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    start: Literal["baseline", "centred", "random"] = "baseline"
    never_below_baseline: bool = True
    phases: dict[str, Phase] = field(default_factory=dict)
    noise_alpha: float = 0.0
    nested: list[int] = field(default_factory=list)
    batch_size: int = 64
    learning_rate: float = 3e-4
    min_learning_rate: float = 1e-6
    warmup_epochs: float = 1.5
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    accumulation: int = 1
    sentences_at_a_time: int = 0
    validation_fraction: float = 0.1
    seed: int = 0


def add_recipe_arguments(parser: ArgumentParser) -> None:
    """Add `--preset`, `--config` and one option for each field of a recipe."""
    parser.add_argument("--preset", default="default", help=f"recipe that comes with the project: {', '.join(preset_names())}")
    parser.add_argument("--config", metavar="FILE", help="recipe of your own, YAML; fields it leaves out have the defaults below")
    parser.add_class_arguments(Recipe, None)


def parse_recipe(parser: ArgumentParser, arguments: Sequence[str]) -> tuple[Recipe, Any]:
    """Read a command line that has recipe arguments: the recipe file first, single fields over it.

    Args:
        parser: where `add_recipe_arguments` added them.
        arguments: the command line.

    Returns:
        The recipe, checked, and all options.

    Raises:
        InputError: for an unknown preset, a file that is no recipe, or a field that cannot be trained with.
    """
    # Fields of phases go into the file's phases before types are checked: the parser reaches only one level deep.
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset", default="default")
    first.add_argument("--config")
    chosen, rest = first.parse_known_args(arguments)
    path = Path(chosen.config) if chosen.config else preset_path(chosen.preset)
    contents = read_recipe_file(path)
    try:
        parser.parse_args(as_arguments(contents))
    except argparse.ArgumentError as error:
        raise InputError(f"not a recipe: {error}", path=path) from error
    rest = _apply_phase_options(contents, rest)
    options = parser.instantiate(parser.parse_args([*as_arguments(contents), *rest]))
    options["preset"], options["config"] = chosen.preset, chosen.config
    recipe = Recipe(**{field.name: options[field.name] for field in fields(Recipe)})
    check_recipe(recipe)
    return recipe, options


def read_recipe_file(path: Path, nested: Sequence[str] = ("encoder",)) -> dict[str, Any]:
    """The fields in a recipe file; those named `nested` have fields of their own.

    Raises:
        InputError: where it is missing or not a YAML mapping.
    """
    contents = read_yaml(path, "a recipe")
    _check_names(contents, path)
    for key in nested:
        if not isinstance(contents.get(key, {}), dict):
            raise InputError(f"{key} is not a mapping, expected fields and values", path=path)
    return contents


def _check_names(contents: Any, path: Path) -> None:
    """YAML takes some words for something else: a phase called `on` would be called True."""
    for name, value in contents.items() if isinstance(contents, dict) else ():
        if not isinstance(name, str):
            raise InputError(f"{name!r} stands where a name is expected; if it is one, put it in quotes", path=path)
        _check_names(value, path)


def _apply_phase_options(contents: dict[str, Any], arguments: Sequence[str]) -> list[str]:
    """Put `--phases.NAME.FIELD VALUE` into a recipe's fields; the other arguments are returned."""
    rest: list[str] = []
    queue: list[str] = []
    for argument in arguments:
        queue += argument.split("=", 1) if argument.startswith("--phases.") else [argument]
    while queue:
        argument = queue.pop(0)
        if not argument.startswith("--phases.") or argument == "--phases.help":
            rest.append(argument)
            continue
        if not queue:
            raise InputError(f"{argument} has no value, expected one after it")
        place = contents
        *keys, last = argument.removeprefix("--").split(".")
        for key in keys:
            place = place.setdefault(key, {})
            if not isinstance(place, dict):
                raise InputError(f"{argument}: {key} is a value and has no fields; configs/default.yaml shows which have some")
        try:
            place[last] = yaml.safe_load(queue.pop(0))
        except yaml.YAMLError as error:
            raise InputError(f"{argument}: the value is not YAML ({getattr(error, 'problem', error)})") from error
    return rest


def as_arguments(contents: dict[str, Any], nested: Sequence[str] = ("encoder",)) -> list[str]:
    """A recipe file's fields as a command line, so that both are checked by the same parser."""
    flat = {key: value for key, value in contents.items() if key not in nested}
    flat |= {f"{key}.{field}": value for key in nested for field, value in contents.get(key, {}).items()}
    return [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in flat.items()]


def dotted(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested fields under their dotted names, as on the command line."""
    flat: dict[str, Any] = {}
    for name, value in fields.items():
        flat |= dotted(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def preset_names() -> list[str]:
    """The recipes in configs/; other programs have theirs there too, without phases."""
    return sorted(config.stem for config in CONFIGS.glob("*.yaml") if "\nphases:" in config.read_text(encoding="utf-8"))


def preset_path(name: str) -> Path:
    """The file of a preset.

    Raises:
        InputError: where there is none of that name.
    """
    if name not in preset_names():
        raise InputError(f"no preset {name!r}, expected one of {', '.join(preset_names())}")
    return CONFIGS / f"{name}.yaml"


def check_recipe(recipe: Recipe) -> None:
    """Raise InputError for the first field that cannot be trained with."""
    positive = ("batch_size", "learning_rate", "clip_norm", "accumulation")
    not_negative = ("min_learning_rate", "warmup_epochs", "weight_decay", "seed", "sentences_at_a_time", "noise_alpha")
    for name in (*positive, *not_negative):
        value, least = getattr(recipe, name), "above 0" if name in positive else "0 or more"
        if not (value > 0 if name in positive else value >= 0):
            raise InputError(f"recipe: {name} is {value}, expected {least}")
    if recipe.batch_size < 2:
        raise InputError("recipe: batch_size is 1, expected 2 or more: losses compare the pairs of a batch")
    if not 0 < recipe.validation_fraction <= 0.5:
        raise InputError(f"recipe: validation_fraction is {recipe.validation_fraction}, expected above 0 and at most 0.5")
    architecture = recipe.encoder.architecture
    if recipe.start != "random" and architecture in ("published", "gated", "projection", "twin"):
        raise InputError(
            f"recipe: start is {recipe.start}, but a {architecture} encoder can only start random; choose architecture hybrid"
        )
    output_dim = recipe.encoder.output_dim
    if recipe.nested and (min(recipe.nested) < 1 or max(recipe.nested) != output_dim):
        raise InputError(f"recipe: nested is {recipe.nested}, expected lengths from 1 to output_dim {output_dim}, with the last")
    if not recipe.phases:
        raise InputError("recipe: no phases, expected at least one; configs/default.yaml has two")
    for name, phase in recipe.phases.items():
        _check_phase(f"recipe: phases.{name}", phase, others=[other for other in recipe.phases if other != name])
    check_encoder(recipe.encoder)


def check_encoder(config: EncoderConfig) -> None:
    """Built without memory, so that an encoder that cannot be trained or is too large is refused before hours of training.

    Raises:
        InputError: for sizes that do not fit together, an encoder without parameters, or of more than 20 MiB.
    """
    try:
        with torch.device("meta"):
            encoder = SentenceEncoder(config)
    except (ValueError, RuntimeError, TypeError, OverflowError) as error:  # torch has several for a size it cannot hold
        raise InputError(f"recipe: encoder: {str(error).splitlines()[0]}") from error
    size = sum(parameter.numel() * parameter.element_size() for parameter in encoder.parameters())
    if not size:
        raise InputError(f"recipe: a {config.architecture} encoder has nothing to train; choose architecture hybrid")
    if size > MAX_BYTES:
        raise InputError(
            f"recipe: the encoder takes {size / 2**20:.1f} MiB, expected at most 20; choose a smaller output_dim or hidden_dim"
        )


def _check_phase(place: str, phase: Phase, others: Sequence[str]) -> None:
    parts: list[tuple[str, Phase | LossTerm]] = [(place, phase)]
    parts += [(f"{place}.losses.{name}", term) for name, term in (phase.losses or {}).items()]
    for part, values in parts:
        for item in fields(values):
            if getattr(values, item.name) is None:  # the parser lets an empty field through
                raise InputError(f"{part}.{item.name} is empty, expected a value; without the field it has its default")
    if phase.epochs < 0:
        raise InputError(f"{place}.epochs is {phase.epochs}, expected 0 or more")
    if phase.unlabelled < 0:
        raise InputError(f"{place}.unlabelled is {phase.unlabelled}, expected 0 or more")
    if not 0 <= phase.min_label <= 5:
        raise InputError(f"{place}.min_label is {phase.min_label:g}, expected a label, 0 to 5")
    if not phase.losses:
        advice = f"; did you mean phase {' or '.join(others)}?" if others else ""
        raise InputError(f"{place}.losses is empty, expected one of {', '.join(LOSSES)}{advice}")
    for name, term in phase.losses.items():
        if name not in LOSSES:
            raise InputError(f"{place}.losses: no loss {name!r}, expected one of {', '.join(LOSSES)}")
        parameters = inspect.signature(LOSSES[name]).parameters.values()
        known = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
        known = [option for option in known if option != "negatives"]  # data, not a setting
        for option in term.options:
            if option not in known:
                raise InputError(f"{place}.losses.{name}: no option {option!r}, expected one of {', '.join(known) or 'none'}")
        if name in WITHOUT_LABELS and term.guide == "none":
            raise InputError(f"{place}.losses.{name}.guide is none, expected baseline or teacher")
        if term.every < 1:
            raise InputError(f"{place}.losses.{name}.every is {term.every}, expected 1 or more")
    always = [term for term in phase.losses.values() if term.every == 1]
    if not always:
        raise InputError(f"{place}.losses: each counts now and then only, expected one with every 1")
    if phase.select == "loss" and all(term.guide == "teacher" for term in always):
        raise InputError(f"{place}.select is loss, but validation pairs have no teacher; choose spearman, or a loss on labels")
