"""The retrieval pipeline: split the dataset, score mean pooling, mine hard negatives, train, score the encoder."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from common.errors import InputError, refuse_negative
from common.optional import import_optional
from data import PairData, open_pairs, split_by_groups
from evaluation.encoding import encode
from evaluation.scores import METRICS, score_table
from model import EncoderConfig, SentenceEncoder, mean_pooling
from retrieval.beir import evaluate_beir, is_beir
from retrieval.mining import BASELINE, MiningConfig, add_hard_negatives, baseline_or_checkpoint, match_note
from retrieval.scores import TITLES, RetrievalScores, find_documents, score_retrieval
from tokens.text_pairs import ReadOptions
from training.recipe import LossTerm, Phase, Recipe, check_recipe
from training.reports import data_facts, draw_history, write_history, write_metrics
from training.resume import SavedRun, identity_of_run
from training.trainer import Trainer, TrainingResult

MATCH, NO_MATCH = 5.0, 0.0  # labels in training


@dataclass
class Pipeline:
    """Settings of the retrieval pipeline.

    Args:
        dataset: pairs: a table (CSV, TSV, JSON lines, Parquet, hf:NAME), a .store file, .dat files' folder.
        sample_size: pairs to use, drawn at random; scores then search only their sentences; 0 uses all.
        validation_size: fraction of the pairs for validation.
        test_size: fraction of the pairs for test.
        match_label: pairs with this label or higher match.
        split_seed: seed of the split, so that runs with different seeds are scored on the same pairs.
        seed: seed of everything else.
        epochs: passes over the training pairs.
        batch_size: pairs per batch.
        sentences_at_a_time: encode a batch in parts of this many sentences to save memory; 0 encodes it whole.
        learning_rate: peak learning rate, after warm-up.
        weight_decay: of AdamW.
        warmup_ratio: fraction of the training steps for warm-up.
        encoder: the encoder to train; input_dim comes from the data.
        start: initial weights, baseline (as mean pooling) or centred (as its principal components).
        scale: scale of the cosines in the ranking loss.
        symmetric: also rank from match to sentence.
        label_loss: extra loss on all labelled pairs; left out if there are no labels.
        label_weight: weight of label_loss; 0 turns it off.
        mask_false_negatives: ignore documents that mean pooling finds more similar than the match.
        mine: mine hard negatives, added to those of the dataset.
        mining_model: encoder used for mining: baseline (mean pooling) or a checkpoint.
        mining: which documents become negatives.
    """

    dataset: str = ""
    sample_size: int = 0
    validation_size: float = 0.1
    test_size: float = 0.2
    match_label: float = 1.0
    split_seed: int = 0
    seed: int = 0
    epochs: int = 5
    batch_size: int = 128
    sentences_at_a_time: int = 0
    learning_rate: float = 3e-4
    weight_decay: float = 0.01
    warmup_ratio: float = 0.1
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    start: Literal["baseline", "centred"] = "centred"
    scale: float = 20.0
    symmetric: bool = True
    label_loss: Literal["cosent", "cosine_mse", "pearson"] = "cosent"
    label_weight: float = 0.1
    mask_false_negatives: bool = True
    mine: bool = True
    mining_model: str = BASELINE
    mining: MiningConfig = field(default_factory=MiningConfig)

    def recipe(self) -> Recipe:
        """The settings as a recipe of one phase.

        Raises:
            InputError: if a field has a value that cannot be trained with.
        """
        refuse_negative(self, "epochs", "label_weight")
        if not self.scale > 0:
            raise InputError(f"scale is {self.scale}, expected above 0")
        if not 0 <= self.warmup_ratio <= 1:
            raise InputError(f"warmup_ratio is {self.warmup_ratio}, expected 0 to 1")
        options = {"scale": self.scale, "symmetric": float(self.symmetric), "min_label": MATCH}
        losses = {"ranking": LossTerm(options=options, guide="baseline" if self.mask_false_negatives else "none")}
        if self.label_weight:
            losses[self.label_loss] = LossTerm(weight=self.label_weight)
        recipe = Recipe(
            encoder=self.encoder,
            start=self.start,
            # Keep the last weights: the best Spearman on pairs is not the best MRR among all documents.
            phases={"ranking": Phase(epochs=self.epochs, losses=losses, without_duplicates=True, select="none")},
            never_below_baseline=False,  # run() compares MRR instead
            batch_size=self.batch_size,
            sentences_at_a_time=self.sentences_at_a_time,
            learning_rate=self.learning_rate,
            warmup_epochs=self.warmup_ratio * self.epochs,
            weight_decay=self.weight_decay,
            seed=self.seed,
        )
        check_recipe(recipe)
        return recipe


def open_splits(pipeline: Pipeline, reading: ReadOptions | None = None) -> tuple[PairData, dict[str, PairData]]:
    """Read the dataset and split it into training, validation and test pairs, which share no sentence.

    Given negatives are no reason to keep pairs together: they may be sentences of another split.

    Raises:
        InputError: if the dataset or its split has no matching pairs, or the settings of the split are invalid.
    """
    if not pipeline.dataset:
        raise InputError("no dataset; give --dataset FILE, pairs of sentences")
    refuse_negative(pipeline, "sample_size", "split_seed")
    for name in ("validation_size", "test_size"):
        if not 0 < getattr(pipeline, name) <= 0.5:
            raise InputError(f"{name} is {getattr(pipeline, name)}, expected above 0 and at most 0.5")
    if pipeline.validation_size + pipeline.test_size >= 1:
        raise InputError("validation_size and test_size leave nothing for training; their sum must be below 1")
    if is_beir(pipeline.dataset):
        raise InputError("is a BEIR folder, for --evaluate; expected a file of pairs to train on", path=pipeline.dataset)
    pairs = open_pairs([pipeline.dataset], options=reading)
    is_match = pairs.labels >= pipeline.match_label
    if (pairs.has_labels and is_match.all()) or not is_match.any():
        what = "all pairs match" if is_match.all() else "no pair matches"
        raise InputError(f"{what} (match_label {pipeline.match_label:g}), expected both kinds, or no labels", path=pipeline.dataset)
    if note := match_note(pairs.labels, pipeline.match_label):
        print(note)
    pairs = replace(pairs, labels=np.where(is_match, MATCH, NO_MATCH).astype(np.float32))
    if pipeline.sample_size:
        rows = np.random.default_rng(pipeline.split_seed).permutation(len(pairs))[: pipeline.sample_size]
        pairs = pairs.select(np.sort(rows))
    rest, test = split_by_groups(pairs, pipeline.test_size, pipeline.split_seed)
    training, validation = split_by_groups(rest, pipeline.validation_size / (1 - pipeline.test_size), pipeline.split_seed)
    splits = {"training": training, "validation": validation, "test": test}
    for name, split in splits.items():
        if not (split.labels == MATCH).any():
            raise InputError(f"no {name} pair matches: give more pairs or another --split_seed", path=pipeline.dataset)
    print(f"{len(pairs):,} pairs: {', '.join(f'{len(split):,} for {name}' for name, split in splits.items())}")
    return pairs, splits


class Scoring:
    """Scores of encoders on the held-out splits, searching all sentences of the dataset; mean pooling comes first.

    Of a sample these are its sentences: matches of the others are not known.
    """

    def __init__(self, dataset: PairData, splits: Mapping[str, PairData]) -> None:
        self.tokens = dataset.tokens
        self.held_out = {name: splits[name] for name in ("validation", "test")}
        documents = find_documents(dataset.tokens, dataset, MATCH)
        given = [] if dataset.negatives is None else [dataset.negatives.ravel()]
        self.documents = documents.only(np.unique(documents.document_of[np.concatenate([dataset.first, dataset.second, *given])]))
        self.scores: dict[str, dict[str, RetrievalScores]] = {name: {} for name in self.held_out}  # by split and encoder
        self.add("mean pooling", mean_pooling(dataset.tokens.dim))

    def add(self, name: str, encoder: SentenceEncoder) -> None:
        """Score an encoder under a name."""
        embeddings = encode(encoder, self.tokens, self.documents.sentences)
        for split, pairs in self.held_out.items():
            self.scores[split][name] = score_retrieval(embeddings, pairs, self.documents, MATCH)

    def table(self) -> str:
        """A text table with one column per encoder."""
        columns: dict[str, dict[str, float]] = {name: {} for name in self.scores["validation"]}
        for split, by_encoder in self.scores.items():
            for name, scores in by_encoder.items():
                columns[name] |= {f"{split} {TITLES[metric]}": value for metric, value in scores.known().items()}
        return score_table(columns)


def evaluate(pipeline: Pipeline, checkpoint: str, reading: ReadOptions | None = None) -> None:
    """Print the scores of a checkpoint and of mean pooling on the held-out splits, or on a BEIR folder."""
    if pipeline.dataset and is_beir(pipeline.dataset):
        evaluate_beir(Path(pipeline.dataset), checkpoint)
        return
    dataset, splits = open_splits(pipeline, reading)
    encoder = baseline_or_checkpoint(checkpoint, dataset.tokens.dim, dataset.tokens.description)
    scoring = Scoring(dataset, splits)
    scoring.add("encoder", encoder)
    print(scoring.table())


def run(
    pipeline: Pipeline,
    folder: Path,
    out: Path,
    *,
    reading: ReadOptions | None = None,
    tensorboard: bool = False,
    threads: int = 1,
    resume: bool = False,
    command: str = "",
) -> None:
    """Run the whole pipeline.

    Args:
        pipeline: the settings.
        folder: where the run's files are written, and where `resume` finds a stopped training.
        out: the checkpoint to write.
        reading: how to read the dataset, if it is a table.
        tensorboard: also log to TensorBoard.
        threads: CPU threads for training.
        resume: continue the training that was stopped.
        command: the command that resumes the run, printed on Ctrl-C.
    """
    recipe = pipeline.recipe()
    if tensorboard:
        _import_tensorboard()  # before the work starts
    dataset, splits = open_splits(pipeline, reading)
    torch.set_num_threads(threads)  # only now: a backbone that encodes text uses all cores
    if not dataset.has_labels and pipeline.label_weight:
        print(f"No labels: every pair matches, and the loss on labels ({pipeline.label_loss}) is left out.")
        pipeline = replace(pipeline, label_weight=0.0)
        recipe = pipeline.recipe()
    scoring = Scoring(dataset, splits)
    if pipeline.mine:
        encoder = baseline_or_checkpoint(pipeline.mining_model, dataset.tokens.dim, dataset.tokens.description)
        splits["training"], mined = add_hard_negatives(encoder, splits["training"], MATCH, pipeline.mining)
        print(mined.report())
    trainer = Trainer(recipe, splits["training"], splits["validation"])
    saved = SavedRun(folder, identity_of_run(recipe, splits["training"], splits["validation"]), command=command)
    if resume and (summary := saved.finished(out, folder / "metrics.json")):
        print(f"The run in {folder}/ is finished: {summary}")
        return
    print(saved.begin(trainer, resume))
    trained = _train(trainer, saved, _import_tensorboard().SummaryWriter(str(folder / "tensorboard")) if tensorboard else None)
    trained = _choose_encoder(trained, scoring)
    size = saved.save_result(out, trained.encoder)
    write_history(folder / "history.csv", trained.history, trained.metric)
    draw_history(folder / "training.png", trained, recipe.phases)
    metrics = {
        "pipeline": asdict(pipeline),
        "data": {name: data_facts(split) for name, split in splits.items()},
        **{split: {name: scores.known() for name, scores in by_encoder.items()} for split, by_encoder in scoring.scores.items()},
        "epoch": trained.epoch,
        "fell_back": trained.fell_back,
        "seconds": round(saved.seconds, 1),
        "bytes": size,
    }
    write_metrics(folder / "metrics.json", metrics)
    saved.finish(f"{out}, validation MRR@10 {scoring.scores['validation']['encoder'].mrr:.4f}")
    print(f"\n{scoring.table()}\n")
    print(f"{out}: {size / 2**20:.2f} MiB, trained in {saved.seconds:.0f} s. Curve, history, figures: {folder}/")


def _train(trainer: Trainer, saved: SavedRun, writer: Any) -> TrainingResult:
    """Train, logging to a TensorBoard writer or None."""

    def log(phase: str, loss: float, score: float) -> None:
        writer.add_scalar("loss", loss, trainer.batches_done)
        writer.add_scalar(f"validation {METRICS[trainer.metric]}", score, trainer.batches_done)

    with writer or nullcontext():
        return saved.run(trainer, log if writer else None)


def _import_tensorboard() -> Any:
    return import_optional(
        "torch.utils.tensorboard", "--tensorboard needs a package that is not installed: pip install tensorboard"
    )


def _choose_encoder(trained: TrainingResult, scoring: Scoring) -> TrainingResult:
    """Score the trained encoder; mean pooling replaces it if its validation MRR is lower."""
    scoring.add("encoder", trained.encoder)
    validation = scoring.scores["validation"]
    if validation["encoder"].mrr >= validation["mean pooling"].mrr:
        return replace(trained, fell_back=False)
    print("Training did not help on the validation pairs: the result is mean pooling.")  # or no query has a match: MRR is NaN
    encoder = mean_pooling(scoring.tokens.dim)
    encoder.tokens_from = trained.encoder.tokens_from
    scoring.add("encoder", encoder)
    return replace(trained, encoder=encoder, fell_back=True)
