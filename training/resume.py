"""Save and resume training runs, to the same bits as without a stop.

The state of a run is one file in its folder, `state.pt`: tensors, numbers and text, nothing that executes on load. It is
replaced atomically after each epoch and from time to time within one, so a run may be killed at any moment. A finished run
keeps only a summary in it. The arguments of the run are next to it in `arguments.json`. Those of a new run wait in
`arguments.json.new` until its pairs are open, because until then the folder may still hold an earlier run.
"""

from __future__ import annotations

import io
import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch
from filelock import FileLock, Timeout

from common.cli import take_options
from common.errors import InputError
from common.files import write_atomically, write_text_atomically
from common.progress import Progress
from data import PairData
from evaluation.checkpoint import load_tensors, save_encoder
from model import SentenceEncoder
from tokens.tables import is_on_hub
from training import processes
from training.recipe import Recipe, dotted

FORMAT_VERSION = 2
SAVE_SECONDS = 60.0
ARGUMENTS, NEW_ARGUMENTS = "arguments.json", "arguments.json.new"
LOCK = ".lock.tmp"  # the operating system frees it when its process ends, however that ends


def identity_of_run(recipe: Recipe, training: PairData, validation: PairData, device: str = "cpu") -> dict[str, Any]:
    """Everything that must be the same when a run resumes, as JSON has it; of the device, its type."""
    identity = {
        **asdict(recipe),
        "training pairs": training.identity(),
        "validation pairs": validation.identity(),
        "processes": processes.world_size(),
        "device": device,
    }
    return json.loads(json.dumps(identity))


def read_arguments(folder: Path) -> list[str] | None:
    """Return the arguments that the latest run in a folder keeps there, or None.

    Raises:
        InputError: if their file is damaged.
    """
    path = next((folder / name for name in (NEW_ARGUMENTS, ARGUMENTS) if (folder / name).exists()), None)
    if path is None:
        return None
    try:
        arguments = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, list) or not all(isinstance(argument, str) for argument in arguments):
        raise InputError("damaged, expected the run's arguments as a JSON list; delete it and give them again", path=path)
    return arguments


def with_saved_arguments(given: list[str], place: str = "run_dir", default: str | None = None) -> list[str]:
    """With --resume, the arguments that the run keeps in its folder, then the given ones, which win.

    Args:
        given: the command line.
        place: the option that names the folder.
        default: the folder if the option is not given.

    Raises:
        InputError: if there is nothing to resume and nothing else is asked for.
    """
    options, others = take_options(given, ("resume", place))
    values = getattr(options, place)
    folder = Path(values[-1]) if values else default and Path(default)
    if options.resume is None or not folder:
        return given
    saved = read_arguments(folder)
    if saved is None and not others:
        raise InputError("no run to resume in this folder", path=folder)
    return [f"--{place}", str(folder), *(saved or []), *given]


def arguments_to_save(arguments: Sequence[str], options: Any, files: Sequence[str], place: str = "run_dir") -> list[str]:
    """The arguments that resume a run from any folder: without --resume and its place, all files by absolute paths.

    Args:
        arguments: the command line.
        options: what it says, with defaults.
        files: the names of options whose values are paths.
        place: the option that names the run's folder.
    """
    _, saved = take_options(arguments, ("resume", place, *files))
    for name in files:
        values = options[name] if isinstance(options[name], list) else [options[name]]
        if options[name] and name == "backbone":  # a name, or an absolute path already
            saved += ["--backbone", options.backbone]
        elif options[name]:
            saved += [f"--{name}", *(value if is_on_hub(value) else str(Path(value).absolute()) for value in values)]
    return saved


class Resumable(Protocol):
    """What a trainer has so that its run can be saved and resumed; see `Trainer`."""

    device: torch.device
    epoch: int
    losses: list[float]
    on_batch: Callable[[str, float, float], None]
    on_safe_point: Callable[[], None]

    @property
    def batches_done(self) -> int:
        """Finished batches of the whole run."""

    @property
    def total_batches(self) -> int:
        """Batches in the whole run."""

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to resume, as tensors, numbers and text; complete at safe points."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state."""

    def save_best(self, folder: Path) -> Path | None:
        """Write the best encoder so far to a folder and return its path, None if it is in the state only."""

    def run(self) -> Any:
        """Train, or train the rest."""


class SavedRun:
    """The saved state of a run, in its folder."""

    def __init__(
        self,
        folder: Path,
        identity: dict[str, Any] | None = None,
        *,
        save_seconds: float = SAVE_SECONDS,
        command: str = "",
        place: str = "run_dir",
    ) -> None:
        """Prepare to read or write the state.

        Args:
            folder: of the run.
            identity: see `identity_of_run`; None sets it later, when the pairs are open.
            save_seconds: minimum time between saves within an epoch; 0 saves after each optimiser step.
            command: command that resumes the run, printed after Ctrl-C.
            place: the option that names the folder.
        """
        self.path = folder / "state.pt"
        self.identity = identity or {}
        self.save_seconds = save_seconds
        self.command = command
        self.place = place
        self._seconds_before = 0.0
        self._begin = self._last_save = time.monotonic()
        self._stop_requested = False
        self._arguments: list[str] | None = None
        self._lock = FileLock(folder / LOCK)

    @property
    def seconds(self) -> float:
        """Time spent on the run, including the time before it was resumed."""
        return self._seconds_before + time.monotonic() - self._begin

    @contextmanager
    def hold(self, arguments: Sequence[str], *, resume: bool) -> Iterator[None]:
        """Hold the folder from the first second of a run to its last, and keep its arguments there.

        A new run that ends with an error before it begins leaves the folder as it was.

        Raises:
            InputError: if another run is using the folder.
        """
        folder, self._arguments = self.path.parent, list(arguments)
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        if processes.is_main():
            self._acquire_lock()
        try:
            if processes.is_main() and not resume:
                self._write_arguments(NEW_ARGUMENTS)
            yield
        except KeyboardInterrupt as stop:
            raise KeyboardInterrupt(str(stop) or f"stopped. To resume: {self.command}") from stop
        except Exception:
            if processes.is_main() and not resume and self._arguments is not None:
                (folder / NEW_ARGUMENTS).unlink(missing_ok=True)
            raise
        finally:
            self._release_lock()
            for path in missing:
                with suppress(OSError):  # not empty
                    path.rmdir()

    def read(self) -> dict[str, Any] | None:
        """The saved state, or None, also if it is of a run before the latest one.

        Raises:
            InputError: if it is damaged, or from a run with another recipe, data, device or number of processes.
        """
        if self.path.with_name(NEW_ARGUMENTS).exists() or (contents := self._contents()) is None:
            return None
        ours, theirs = dotted(self.identity), dotted(contents["identity"])
        if contents.get("finished") or "device" not in theirs:  # irrelevant once finished, and not in older files
            theirs["device"] = ours.get("device")
        differences = [
            f"the {name} differ" if name.endswith("pairs") else f"{name} was {theirs.get(name)}, now {ours.get(name)}"
            for name in {**ours, **theirs}
            if ours.get(name) != theirs.get(name)
        ]
        if differences:
            raise InputError(
                f"this folder holds a different run: {'; '.join(differences[:3])}. Give the options of that run or another "
                f"--{self.place}, or start over without --resume",
                path=self.path,
            )
        return contents

    def _contents(self) -> dict[str, Any] | None:
        """The state of any run in the folder, or None."""
        if not self.path.exists():
            return None
        contents = load_tensors(self.path, "a saved run", "start over without --resume")
        if contents.get("format") != FORMAT_VERSION or not isinstance(contents.get("identity"), dict):
            raise InputError("not a saved run of this version; start over without --resume", path=self.path)
        return contents

    def finished(self, *results: Path) -> str | None:
        """The summary of a finished run, or None; if one of its results is gone, the run is to start over."""
        contents = self.read()
        summary = contents.get("finished") if contents else None
        if summary and not all(result.exists() for result in results):
            self.path.unlink()
            return None
        return summary

    def back_up(self) -> Path | None:
        """Clear the state for a new run, that of an unfinished one to `state.pt.previous`; returns the new path.

        Its arguments go to `arguments.json.previous`.
        """
        if not self.path.exists():
            return None
        with suppress(InputError):
            if (self._contents() or {}).get("finished"):
                self.path.unlink()  # the new run, if killed before its first save, is not finished
                return None
        with suppress(FileNotFoundError):
            os.replace(self.path.with_name(ARGUMENTS), self.path.with_name(f"{ARGUMENTS}.previous"))
        previous = self.path.with_name(f"{self.path.name}.previous")
        os.replace(self.path, previous)
        return previous

    def begin(self, trainer: Resumable, resume: bool) -> str:
        """Restore the trainer from the saved state when resuming; returns a line that says where the run starts.

        From here to `finish` no other run can begin in this folder.

        Raises:
            InputError: if another run is using the folder, or the saved state is damaged or from a different run.
        """
        folder = self.path.parent
        self._begin = self._last_save = time.monotonic()  # opening the pairs may have taken minutes
        if processes.is_main():
            self._acquire_lock()
        if resume and (contents := self.read()):
            try:
                trainer.load_state_dict(contents["trainer"])
                self._seconds_before = float(contents["seconds"])
            except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
                reason = str(error).split("\n", 1)[0]
                raise InputError(f"the saved run is damaged ({reason}); start over without --resume", path=self.path) from error
            note = f"Resuming in {folder}/ after {trainer.batches_done:,} of {trainer.total_batches:,} batches."
        else:
            note = f"The run is saved in {folder}/. To resume it if it is stopped: {self.command}"
            if resume:
                note = f"No saved run in {folder}/, starting a new one."
            if processes.is_main() and (previous := self.back_up()):
                note = f"An unfinished run was in {folder}/; its state is kept as {previous.name}. {note}"
        if processes.is_main() and self._arguments is not None:
            self._write_arguments(ARGUMENTS)
            (folder / NEW_ARGUMENTS).unlink(missing_ok=True)
            self._arguments = None  # kept: an error no longer takes them back
        return note

    @contextmanager
    def autosave(self, trainer: Resumable) -> Iterator[None]:
        """Save the trainer's state while it runs; Ctrl-C saves it too, with the best encoder so far, and stops the run.

        Raises:
            KeyboardInterrupt: after Ctrl-C, with a message that says how to resume.
        """
        trainer.on_safe_point = lambda: self._at_safe_point(trainer)
        before = signal.signal(signal.SIGINT, self._request_stop)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def run(self, trainer: Resumable, on_batch: Callable[[str, float, float], None] | None = None) -> Any:
        """Train with a progress bar, saving the state meanwhile, and return the result; `on_batch` as in `Trainer`."""
        bar = Progress(total=trainer.total_batches, initial=trainer.batches_done, unit="batch", disable=not processes.is_main())

        def show(phase: str, loss: float, score: float) -> None:
            bar.set_description(phase, refresh=False)
            bar.set_postfix(loss=f"{loss:.3f}", validation=f"{score:.4f}", refresh=False)
            bar.update()
            if on_batch:
                on_batch(phase, loss, score)

        trainer.on_batch = show
        try:
            with bar, self.autosave(trainer):
                return trainer.run()
        except BaseException:
            self._release_lock()
            raise

    def save_result(self, out: Path, encoder: SentenceEncoder) -> int:
        """Write the trained encoder to `out` and return its size in bytes.

        Raises:
            InputError: if that fails, as on a full disk; the encoder is in the run's folder then, and the message says where.
        """
        try:
            return save_encoder(out, encoder)
        except OSError as error:
            reason = f"cannot be written ({(error.strerror or str(error)).lower()})"
            try:
                kept = self.path.with_name("best.bin")
                save_encoder(kept, encoder)
                place = f"the trained encoder is in {kept}"
            except OSError:  # the same disk; the state after the last epoch is still there
                place = "free some space"
            self._release_lock()
            raise InputError(f"{reason}; {place}. To finish the run: {self.command}", path=out) from error

    def finish(self, summary: str) -> None:
        """Mark the run as finished; only this summary stays in the state file."""
        self._write({"finished": summary})
        self._release_lock()

    def _write_arguments(self, name: str) -> None:
        write_text_atomically(self.path.with_name(name), json.dumps(self._arguments, indent=1) + "\n")

    def _acquire_lock(self) -> None:
        if self._lock.is_locked:
            return
        path = Path(self._lock.lock_file)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(blocking=False)
        except Timeout as error:
            process = path.read_text(encoding="utf-8").split()[:1]
            who = f"process {process[0]}" if process else "another process"
            raise InputError(
                f"{who} is running in this folder; wait for it or give another --{self.place}", path=path.parent
            ) from error
        path.write_text(f"{os.getpid()}\n", encoding="utf-8")

    def _release_lock(self) -> None:
        if self._lock.is_locked:
            Path(self._lock.lock_file).unlink(missing_ok=True)  # first: from then on the file may be another run's
            self._lock.release()

    def _request_stop(self, *_: object) -> None:
        if self._stop_requested and processes.world_size() == 1:  # torchrun forwards Ctrl-C, so that it arrives twice
            raise KeyboardInterrupt
        self._stop_requested = True

    def _at_safe_point(self, trainer: Resumable) -> None:
        stops = processes.any_process(self._stop_requested, trainer.device)
        ends_epoch = not trainer.losses
        if processes.is_main() and (stops or ends_epoch or time.monotonic() - self._last_save >= self.save_seconds):
            self._write({"trainer": trainer.state_dict(), "seconds": self.seconds})
            self._last_save = time.monotonic()
        if stops:
            best = trainer.save_best(self.path.parent) if processes.is_main() else None
            so_far = f" Best encoder so far: {best}." if best else ""
            raise KeyboardInterrupt(f"stopped in epoch {trainer.epoch + bool(trainer.losses)}.{so_far} To resume: {self.command}")

    def _write(self, contents: dict[str, Any]) -> None:
        buffer = io.BytesIO()
        torch.save({"format": FORMAT_VERSION, "identity": self.identity, **contents}, buffer)
        with write_atomically(self.path) as file:
            file.write(buffer.getvalue())
