"""Recipes: the published one exactly, overrides of any field, and one clear line for bad settings."""

from __future__ import annotations

from dataclasses import asdict

import pytest
import yaml
from conftest import last_line

from common.cli import make_parser
from common.errors import InputError
from model import EncoderConfig
from training.recipe import Recipe, add_recipe_arguments, parse_recipe


def parse(*arguments: str) -> Recipe:
    parser = make_parser("train.py", "")
    add_recipe_arguments(parser)
    return parse_recipe(parser, arguments)[0]


def test_published_is_exactly_the_published_recipe():
    recipe = parse("--preset", "published")
    first, second = recipe.phases.values()
    assert (recipe.encoder.architecture, recipe.encoder.output_dim, recipe.start) == ("published", 256, "random")
    assert (first.epochs, list(first.losses), first.min_label) == (20, ["nt_xent"], 0)
    assert (second.epochs, list(second.losses), second.min_label, second.select) == (
        80,
        ["cosine_mse", "hard_negative_margin"],
        0,
        "loss",
    )
    assert (second.losses["cosine_mse"].every, second.losses["hard_negative_margin"].every) == (1, 2)
    assert (recipe.learning_rate, recipe.min_learning_rate, recipe.weight_decay) == (4e-4, 1e-6, 5e-5)
    assert (recipe.warmup_epochs, recipe.clip_norm, recipe.accumulation, recipe.batch_size) == (3, 1.0, 1, 64)
    assert recipe.never_below_baseline is False


def test_the_default_preset_is_what_a_recipe_begins_with_without_its_mlp():
    recipe = parse()
    assert recipe.encoder == EncoderConfig(hidden_dim=0)
    assert asdict(recipe) | {"phases": {}, "encoder": asdict(EncoderConfig())} == asdict(Recipe())
    assert list(recipe.phases) == ["contrastive", "graded"]
    assert recipe.never_below_baseline and recipe.start == "centred"


def test_presets_do_not_leak_into_each_other():
    assert parse("--preset", "published").phases["contrastive"].min_label == 0
    assert parse("--preset=default").phases["contrastive"].min_label == 4


def test_any_field_can_be_overridden():
    recipe = parse(
        *("--preset", "published", "--seed=7", "--encoder.output_dim", "64", "--phases.graded.epochs", "3"),
        *("--phases.graded.losses.hard_negative_margin.options.margin=0.5", "--phases.contrastive.select", "spearman"),
    )
    assert (recipe.seed, recipe.encoder.output_dim, recipe.encoder.architecture) == (7, 64, "published")
    assert (recipe.phases["graded"].epochs, recipe.phases["graded"].select) == (3, "loss")
    assert recipe.phases["graded"].losses["hard_negative_margin"].options == {"margin": 0.5}
    assert recipe.phases["graded"].losses["hard_negative_margin"].every == 2
    assert recipe.phases["contrastive"].select == "spearman"


def test_a_custom_recipe_survives_a_round_trip(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("seed: 3\nphases:\n  only: {epochs: 2, losses: {cosent: {}}}\n")
    recipe = parse("--config", str(path))
    assert (recipe.seed, list(recipe.phases), recipe.batch_size) == (3, ["only"], 64)
    path.write_text(yaml.safe_dump(asdict(recipe)))
    assert parse("--config", str(path)) == recipe


BAD_FILES = {
    "unknown field": ("lr: 3\n", r"mine.yaml: not a recipe: .*lr"),
    "unknown field of the encoder": ("encoder: {headz: 3}\n", r"mine.yaml: not a recipe: .*encoder.headz"),
    "unknown field of a phase": ("phases: {a: {epochz: 3}}\n", r"mine.yaml: not a recipe: .*epochz"),
    "wrong type": ("seed: x\n", r"mine.yaml: not a recipe: .*seed"),
    "not YAML": ("seed: 1\nencoder: {heads: 3\n", r"mine.yaml:3: not YAML"),
    "a name that YAML takes for something else": (
        "phases: {on: {losses: {cosent: {}}}}\n",
        r"mine.yaml: expected a name but got True",
    ),
    "a phase that is there twice": (
        "phases:\n  a: {losses: {cosent: {}}}\n  a: {losses: {pearson: {}}}\n",
        r"mine.yaml:3: not YAML: a is there twice",
    ),
    "a loss without its braces": (
        "phases: {a: {losses: {cosent: }}}\n",
        r"mine.yaml: phases.a.losses.cosent is empty, expected a value \({} for a loss",
    ),
    "not a mapping": ("- 1\n", r"mine.yaml: expected a recipe"),
    "empty": ("", r"mine.yaml: expected a recipe"),
    "encoder is a list": ("encoder: [1]\n", r"mine.yaml: encoder is not a mapping"),
    "an empty field of a phase": ("phases: {a: {epochs: , losses: {cosent: {}}}}\n", r"phases.a.epochs is empty, expected a value"),
    "an empty field of a loss": (
        "phases: {a: {losses: {cosent: {weight: }}}}\n",
        r"losses.cosent.weight is empty, expected a value",
    ),
    "a size no machine can hold": (
        "encoder: {hidden_dim: 18446744073709551616}\nphases: {a: {losses: {cosent: {}}}}\n",
        "encoder: ",
    ),
    "no phases": ("seed: 1\n", "no phases, expected at least one"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_recipe_files(case, tmp_path):
    content, message = BAD_FILES[case]
    (tmp_path / "mine.yaml").write_text(content)
    with pytest.raises(InputError, match=message):
        parse("--config", str(tmp_path / "mine.yaml"))


BAD_OPTIONS = {
    "--batch_size 1": "batch_size is 1, expected 2 or more",
    "--learning_rate -1": "learning_rate is -1.0, expected above 0",
    "--validation_fraction 0.9": "validation_fraction is 0.9",
    "--encoder.heads 7": "heads is 7, expected a divisor",
    "--encoder.architecture lstm": "architecture is 'lstm', expected one of hybrid, published, gated, projection, twin, mean",
    "--encoder.architecture gated --start random --encoder.hidden_dim 0": "hidden_dim is 0, expected 1 or more",
    "--encoder.architecture published": "start is centred, but published encoders only start random",
    "--preset publish": "no preset 'publish', expected one of compress, compress_published, default, distilled, imitation, pairs",
    "--config nowhere.yaml --preset published": "--preset and --config both name a recipe; give one of them",
    "--config nowhere.yaml": "nowhere.yaml: no such file, expected a recipe in YAML",
    "--phases.graded.epochs -1": r"phases.graded.epochs is -1, expected 0 or more",
    "--phases.graded.losses.cosen.weight 1": "no loss 'cosen', expected one of nt_xent",
    "--phases.graded.losses.cosent.options.margin 1": "no option 'margin', expected one of scale",
    "--phases.contrastive.losses.distillation.weight 1": "distillation.guide is none, expected baseline or teacher",
    "--phases.graded.losses.imitation.weight 1": "imitation.guide is none, expected baseline or teacher",
    "--phases.graded.losses.imitation.guide baseline": "imitation.guide is baseline, expected teacher",
    "--phases.graded.unlabelled -1": "unlabelled is -1, expected 0 or more",
    "--phases.graded.losses.cosent.every 0": "every is 0, expected 1 or more",
    "--phases.contrastive.losses.nt_xent.every 2": "every loss has every above 1, expected at least one with every 1",
    "--preset distilled --phases.graded.losses.cosine_mse.every 2 --phases.graded.select loss": "validation pairs have no teacher",
    "--encoder.architecture mean --encoder.output_dim 768": "a mean encoder has nothing to train",
    "--phases.grade.epochs 3": "phases.grade.losses is empty.*did you mean phase contrastive or graded",
    "--phases.graded.epochs.x 3": "epochs is a value, not a mapping",
    "--phases.graded.epochs": "has no value",
    "--phases.graded.epochs [": "phases.graded.epochs: the value is not YAML",
}


@pytest.mark.parametrize("options", BAD_OPTIONS)
def test_bad_options(options):
    with pytest.raises(InputError, match=BAD_OPTIONS[options]):
        parse(*options.split())


@pytest.mark.parametrize("options", ["--no_such_option 3", "--seed x", "--phases.graded.epochs x", "--start nowhere", "--seed"])
def test_options_of_the_wrong_form_end_in_one_line(options, run_here):
    assert "--help" in last_line(run_here("train.py", *options.split()))


@pytest.mark.parametrize("script", ["train.py", "teacher.py", "evaluate.py", "prepare_data.py", "visualize_tsne.py"])
def test_help_is_readable(script, run_here):
    result = run_here(script, "--help")
    assert result.returncode == 0 and not result.stderr
    assert f"python {script} [options]" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 110
    assert "Namespace" not in result.stdout and "null" not in result.stdout
