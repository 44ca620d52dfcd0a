"""The retrieval pipeline: set parts aside, score mean pooling, mine hard negatives, train, score again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from tqdm import tqdm

from common.errors import InputError
from data import PairData, open_pairs, split_by_groups
from evaluation.checkpoint import load_encoder, save_encoder
from evaluation.encoding import check_fits, encode
from model import EncoderConfig, SentenceEncoder, mean_pooling
from retrieval.mining import BASELINE, Mining, mining_encoder, with_mined_negatives
from retrieval.scores import RetrievalScores, find_documents, score_retrieval
from tokens.text_files import match_note
from training.recipe import LossTerm, Phase, Recipe, check_recipe
from training.reports import data_facts, draw_history, write_history, write_metrics
from training.resume import SavedRun, identity_of_run
from training.trainer import Trainer

MATCH, NO_MATCH = 5.0, 0.0  # labels in training


@dataclass
class Pipeline:
    """The retrieval pipeline.

    Args:
        dataset: labelled pairs: a .tsv, .csv or .store file.
        sample_size: pairs to use, drawn at random; 0 all of them.
        validation_size: part of the pairs to choose the best weights by.
        test_size: part of the pairs to report on.
        match_label: label from which on a pair matches.
        split_seed: of the parts set aside, so that runs with other seeds are scored on the same.
        seed: of everything else that is random.
        epochs: passes over the pairs.
        batch_size: pairs in a batch.
        sentences_at_a_time: encode a batch in parts of this many sentences, to bound its memory; 0 all at once.
        learning_rate: the peak, after warm-up.
        weight_decay: of AdamW.
        warmup_ratio: part of the training that is warm-up.
        encoder: what is trained; input_dim is taken from the data.
        scale: of cosines in the ranking loss.
        symmetric: the ranking loss also from match to sentence.
        label_loss: the loss beside it on all labelled pairs.
        label_weight: its weight; 0 leaves it out.
        mask_false_negatives: leave out documents that mean pooling finds more similar than the match.
        mine: find hard negatives.
        mining_model: what finds them: baseline (mean pooling) or a checkpoint.
        mining: which to take.
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
    scale: float = 20.0
    symmetric: bool = True
    label_loss: Literal["cosent", "cosine_mse", "pearson"] = "cosent"
    label_weight: float = 0.1
    mask_false_negatives: bool = True
    mine: bool = True
    mining_model: str = BASELINE
    mining: Mining = field(default_factory=Mining)

    def recipe(self) -> Recipe:
        """The same as a recipe of one phase.

        Raises:
            InputError: for a field that cannot be trained with.
        """
        options = {"scale": self.scale, "symmetric": float(self.symmetric), "min_label": MATCH}
        losses = {"ranking": LossTerm(options=options, guide="baseline" if self.mask_false_negatives else "none")}
        if self.label_weight:
            losses[self.label_loss] = LossTerm(weight=self.label_weight)
        recipe = Recipe(
            encoder=self.encoder,
            # The last weights: a rank correlation over pairs would choose others than those that rank best among all documents.
            phases={"ranking": Phase(epochs=self.epochs, losses=losses, without_duplicates=True, select="none")},
            never_below_baseline=False,  # by its own scores, see run
            batch_size=self.batch_size,
            sentences_at_a_time=self.sentences_at_a_time,
            learning_rate=self.learning_rate,
            warmup_epochs=self.warmup_ratio * self.epochs,
            weight_decay=self.weight_decay,
            seed=self.seed,
        )
        check_recipe(recipe)
        return recipe


@dataclass(frozen=True)
class Parts:
    """The dataset, and its parts without a sentence in common."""

    everything: PairData
    training: PairData
    validation: PairData
    test: PairData


def open_parts(pipeline: Pipeline) -> Parts:
    """Read the dataset and set validation and test apart.

    Raises:
        InputError: where it is missing, or has no matching or no other pairs.
    """
    if not pipeline.dataset:
        raise InputError("no dataset; give --dataset FILE, labelled pairs of sentences")
    for name in ("validation_size", "test_size"):
        if not 0 < getattr(pipeline, name) <= 0.5:
            raise InputError(f"{name} is {getattr(pipeline, name)}, expected above 0 and at most 0.5")
    if pipeline.validation_size + pipeline.test_size >= 1:
        raise InputError("validation_size and test_size leave nothing for training; together they must be below 1")
    pairs = open_pairs([pipeline.dataset])
    is_match = pairs.labels >= pipeline.match_label
    if is_match.all() or not is_match.any():
        what = "all" if is_match.all() else "none"
        raise InputError(f"{what} of the pairs match (match_label {pipeline.match_label:g}), expected some", path=pipeline.dataset)
    if note := match_note(pairs.labels, pipeline.match_label):
        print(note)
    pairs = replace(pairs, labels=np.where(is_match, MATCH, NO_MATCH).astype(np.float32))
    if pipeline.sample_size:
        rows = np.random.default_rng(pipeline.split_seed).permutation(len(pairs))[: pipeline.sample_size]
        pairs = pairs.select(np.sort(rows))
    rest, test = split_by_groups(pairs, pipeline.test_size, pipeline.split_seed)
    training, validation = split_by_groups(rest, pipeline.validation_size / (1 - pipeline.test_size), pipeline.split_seed)
    for name, part in (("training", training), ("validation", validation), ("test", test)):
        if not (part.labels == MATCH).any():
            raise InputError(f"no pair of the {name} part matches: give more pairs, or another --split_seed", path=pipeline.dataset)
    print(f"{len(pairs):,} pairs: {len(training):,} for training, {len(validation):,} for validation, {len(test):,} for test")
    return Parts(pairs, training, validation, test)


class Scoring:
    """Scores of encoders on the parts set aside, each among the sentences of the whole dataset."""

    PARTS = ("validation", "test")
    COLUMNS: ClassVar = {"mrr": "MRR@10", "recall": "recall@10", "ndcg": "nDCG@10", "average_precision": "average precision"}

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.documents = find_documents(parts.everything.tokens, parts.everything, MATCH)
        self.scores: dict[str, dict[str, RetrievalScores]] = {part: {} for part in self.PARTS}

    def add(self, name: str, encoder: SentenceEncoder) -> None:
        """Score an encoder under a name."""
        vectors = encode(encoder, self.parts.everything.tokens, self.documents.sentences)
        for part in self.PARTS:
            self.scores[part][name] = score_retrieval(vectors, getattr(self.parts, part), self.documents, MATCH)

    def figures(self) -> dict[str, dict[str, dict[str, float]]]:
        """All scores: by part, name, metric."""
        return {part: {name: asdict(values) for name, values in rows.items()} for part, rows in self.scores.items()}

    def table(self) -> str:
        """The scores for people."""
        lines = [f"{'':24}" + "".join(f"{title:>19}" for title in self.COLUMNS.values())]
        for part, rows in self.scores.items():
            for name, values in rows.items():
                lines.append(f"{part + ', ' + name:24}" + "".join(f"{getattr(values, column):19.4f}" for column in self.COLUMNS))
        return "\n".join(lines) + "\n"


def evaluate(pipeline: Pipeline, checkpoint: str) -> None:
    """Print the scores of a checkpoint beside mean pooling's, on the parts that training sets aside."""
    parts = open_parts(pipeline)
    encoder = load_encoder(checkpoint)
    check_fits(encoder, parts.everything)
    scoring = Scoring(parts)
    scoring.add("mean pooling", mean_pooling(parts.everything.tokens.dim))
    scoring.add("encoder", encoder)
    print(scoring.table(), end="")


def run(
    pipeline: Pipeline, folder: Path, out: Path, *, tensorboard: bool = False, resume: bool = False, command: str = ""
) -> dict[str, Any]:
    """The whole pipeline; what it came to, as in its metrics.json.

    Args:
        pipeline: what to do.
        folder: for the run's files.
        out: the checkpoint.
        tensorboard: log there too.
        resume: go on with the training that was stopped in this folder.
        command: how to go on, for who presses Ctrl-C.
    """
    recipe = pipeline.recipe()
    parts = open_parts(pipeline)
    scoring = Scoring(parts)
    scoring.add("mean pooling", mean_pooling(parts.everything.tokens.dim))
    training = parts.training
    if pipeline.mine:
        miner = mining_encoder(pipeline.mining_model, training)
        training, mined = with_mined_negatives(miner, training, MATCH, pipeline.mining)
        print(mined.report())
    trainer = Trainer(recipe, training, parts.validation)
    saved = SavedRun(folder, identity_of_run(recipe, training, parts.validation), command=command)
    if resume and (summary := saved.finished()):
        print(f"The run in {folder}/ is finished: {summary}")
        return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    print(saved.begin(trainer, resume))
    bar = tqdm(total=trainer.total_batches, initial=trainer.batches_done, unit="batch", disable=None)
    with bar, _log(folder, tensorboard) as log, saved.keeping(trainer):

        def show(phase: str, loss: float, spearman: float) -> None:
            bar.set_postfix(loss=f"{loss:.3f}", validation=f"{spearman:.4f}", refresh=False)
            bar.update()
            log(trainer.batches_done, loss, spearman)  # the bar counts nothing where it is not shown

        trainer.on_step = show
        trained = trainer.run()
    encoder = trained.encoder
    scoring.add("encoder", encoder)
    # Not "below": MRR is not a number where the only match of every question is itself, written twice.
    fell_back = not scoring.scores["validation"]["encoder"].mrr >= scoring.scores["validation"]["mean pooling"].mrr
    if fell_back:
        print("Training did not help on the validation part: the result is mean pooling.")
        encoder = mean_pooling(parts.everything.tokens.dim)
        encoder.tokens_from = trained.encoder.tokens_from
        scoring.add("encoder", encoder)
    size = save_encoder(out, encoder)
    write_history(folder / "history.csv", trained.history)
    draw_history(folder / "training.png", replace(trained, fell_back=fell_back), recipe.phases)
    metrics = {
        "pipeline": asdict(pipeline),
        "data": {"training": data_facts(training)} | {part: data_facts(getattr(parts, part)) for part in Scoring.PARTS},
        **scoring.figures(),
        "epoch": trained.epoch,
        "fell_back": fell_back,
        "seconds": round(saved.seconds, 1),
        "bytes": size,
    }
    write_metrics(folder / "metrics.json", metrics)
    saved.finish(f"{out}, validation MRR@10 {scoring.scores['validation']['encoder'].mrr:.4f}")
    print(
        f"\n{scoring.table()}\n{out}: {size / 2**20:.2f} MiB, trained in {saved.seconds:.0f} s. Curve, history, figures: {folder}/"
    )
    return metrics


@contextmanager
def _log(folder: Path, tensorboard: bool) -> Iterator[Callable[[int, float, float], None]]:
    """A function that takes step, loss and validation Spearman to TensorBoard, or nowhere."""
    if not tensorboard:
        yield lambda step, loss, spearman: None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InputError("--tensorboard needs a package that is not installed: pip install tensorboard") from error
    with SummaryWriter(str(folder / "tensorboard")) as writer:

        def log(step: int, loss: float, spearman: float) -> None:
            writer.add_scalar("loss", loss, step)
            writer.add_scalar("validation Spearman", spearman, step)

        yield log
