"""A training run that was stopped goes on where it was, to the same bits.

The state of a run is one file in its folder, `state.pt`: tensors, numbers and text, nothing that executes when it is read. It
is replaced whole, after each epoch and from time to time within one, so a run can be killed at any moment. Once the run is
finished, the file says only that.
"""

from __future__ import annotations

import io
import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from common.errors import InputError
from common.files import write_atomically
from data import PairData
from evaluation.checkpoint import load_tensors, save_encoder
from evaluation.encoding import device_of
from training import processes
from training.recipe import Recipe, dotted
from training.trainer import Trainer

FORMAT_VERSION = 1
SAVE_SECONDS = 60.0


def identity_of_run(recipe: Recipe, training: PairData, validation: PairData, device: str = "cpu") -> dict[str, Any]:
    """What must be the same where a run goes on; of the device, its type."""
    return {
        **asdict(recipe),
        "training pairs": training.identity(),
        "validation pairs": validation.identity(),
        "processes": processes.count(),
        "device": device,
    }


class SavedRun:
    """The state of a run in its folder."""

    def __init__(self, folder: Path, identity: dict[str, Any], *, save_seconds: float = SAVE_SECONDS, command: str = "") -> None:
        """Name the run; nothing is read or written yet.

        Args:
            folder: of the run.
            identity: see `identity_of_run`.
            save_seconds: save no more often than this within an epoch, 0 after each step of the optimiser.
            command: how to go on, for who presses Ctrl-C.
        """
        self.path = folder / "state.pt"
        self.identity = json.loads(json.dumps(identity))
        self.save_seconds = save_seconds
        self.command = command
        self._seconds_before = 0.0
        self._begin = self._last_save = time.monotonic()
        self._stop_requested = False

    @property
    def seconds(self) -> float:
        """Time spent on the run, also before it was stopped."""
        return self._seconds_before + time.monotonic() - self._begin

    def read(self) -> dict[str, Any] | None:
        """The state, None where there is none.

        Raises:
            InputError: where it is damaged, or of a run by another recipe or on other data.
        """
        contents = self._contents()
        if contents is None:
            return None
        ours, theirs = dotted(self.identity), dotted(contents["identity"])
        if contents.get("finished") or "device" not in theirs:  # where it was made matters for what is left to do only
            theirs["device"] = ours.get("device")
        differences = [
            f"the {name} are others" if name.endswith("pairs") else f"{name} is {ours.get(name)}, there {theirs.get(name)}"
            for name in {**ours, **theirs}
            if ours.get(name) != theirs.get(name)
        ]
        if differences:
            raise InputError(
                f"the run in this folder is another one: {'; '.join(differences[:3])}. Give the options it began with, another "
                "--run_dir, or leave out --resume to begin again",
                path=self.path,
            )
        return contents

    def _contents(self) -> dict[str, Any] | None:
        """The state of whichever run was in the folder."""
        if not self.path.exists():
            return None
        contents = load_tensors(self.path, "the state of a run", "leave out --resume to begin again")
        if contents.get("format") != FORMAT_VERSION or not isinstance(contents.get("identity"), dict):
            raise InputError("not the state of a run of this version; leave out --resume to begin again", path=self.path)
        return contents

    def finished(self) -> str | None:
        """What a finished run came to, None for one that is not."""
        contents = self.read()
        return contents.get("finished") if contents else None

    def restore(self, trainer: Trainer) -> bool:
        """Put a trainer where the run was; False where there is nothing to go on from."""
        contents = self.read()
        if contents is None:
            return False
        try:
            trainer.load_state_dict(contents["trainer"])
            self._seconds_before = float(contents["seconds"])
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            reason = str(error).split("\n", 1)[0]
            raise InputError(f"the state is damaged ({reason}); leave out --resume to begin again", path=self.path) from error
        return True

    def set_aside(self) -> Path | None:
        """Make way for a new run; the state of one that was stopped is kept as `state.pt.previous`, and this is given."""
        if not self.path.exists():
            return None
        with suppress(InputError):
            if (self._contents() or {}).get("finished"):
                return None
        previous = self.path.with_name(f"{self.path.name}.previous")
        os.replace(self.path, previous)
        return previous

    def begin(self, trainer: Trainer, resume: bool) -> str:
        """Put the trainer where the run was, if that is wanted; a sentence that says whether it begins or goes on."""
        folder = self.path.parent
        if resume and self.restore(trainer):
            return f"Going on in {folder}/ after {trainer.batches_done:,} of {trainer.total_batches:,} batches."
        if resume:
            return f"No run was saved in {folder}/: this one begins."
        note = f"Saved in {folder}/ on the way; if it is stopped, --run_dir {folder} --resume goes on."
        if processes.is_first() and (previous := self.set_aside()):
            note = f"The state of a run that was stopped in {folder}/ is kept as {previous.name}. {note}"
        return note

    @contextmanager
    def keeping(self, trainer: Trainer) -> Iterator[None]:
        """While a trainer runs: save its state; Ctrl-C saves it too, and the best encoder so far, and ends the block.

        Raises:
            KeyboardInterrupt: after Ctrl-C, with a message that says how to go on.
        """
        trainer.on_safe_point = lambda: self._keep(trainer)
        before = signal.signal(signal.SIGINT, self._request_stop)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def finish(self, summary: str) -> None:
        """Leave of the state only what the run came to."""
        self._write({"finished": summary})

    def _request_stop(self, *_: object) -> None:
        if self._stop_requested and processes.count() == 1:  # torchrun passes Ctrl-C on, so that it comes twice
            raise KeyboardInterrupt
        self._stop_requested = True

    def _keep(self, trainer: Trainer) -> None:
        stops = processes.any_process(self._stop_requested, device_of(trainer.encoder))
        ends_epoch = not trainer.losses
        if processes.is_first() and (stops or ends_epoch or time.monotonic() - self._last_save >= self.save_seconds):
            self._write({"trainer": trainer.state_dict(), "seconds": self.seconds})
            self._last_save = time.monotonic()
        if stops:
            raise KeyboardInterrupt(self._farewell(trainer))

    def _farewell(self, trainer: Trainer) -> str:
        best = self.path.with_name("best.bin")
        if processes.is_first():
            save_encoder(best, trainer.best_encoder())
        return f"stopped in epoch {trainer.epoch + bool(trainer.losses)}. Best encoder so far: {best}. To go on: {self.command}"

    def _write(self, contents: dict[str, Any]) -> None:
        buffer = io.BytesIO()
        torch.save({"format": FORMAT_VERSION, "identity": self.identity, **contents}, buffer)
        with write_atomically(self.path) as file:
            file.write(buffer.getvalue())
