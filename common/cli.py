"""Option parsing, output checks and error exits that all commands share."""

from __future__ import annotations

import argparse
import errno
import os
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TypeVar

from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace

from common.errors import InputError

T = TypeVar("T")

ADVICE = {
    errno.ENOSPC: ", nothing was written there; free some space or choose another folder",
    errno.EFBIG: ", nothing was written there; the file size limit is lower, choose another folder",
    errno.EACCES: "; choose another folder or file, or ask for permission",
    errno.EROFS: "; choose a writable folder",
}
PAIRS_HELP = "a table (CSV, TSV, JSON lines, Parquet, hf:NAME), a .store file, .dat files or their folder"


class _HelpFormatter(DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the description's line breaks, so that its examples can be copied, and appends defaults to help texts."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text, default = action.help or "", action.default
        has_default = isinstance(default, (str, int, float)) and default is not False and default != argparse.SUPPRESS
        return f"{text} (default: %(default)s)" if has_default else text


def make_parser(prog: str, description: str) -> ArgumentParser:
    """Return a parser whose errors `run_command` prints as one line."""
    return ArgumentParser(
        prog=prog,
        usage=f"python {prog} [options]",
        description=description,
        formatter_class=_HelpFormatter,
        exit_on_error=False,
        allow_abbrev=False,  # a misspelt recipe field must not match a longer one
    )


def output_file(path: str | os.PathLike[str], inputs: Iterable[str | os.PathLike[str] | None] = (), *, suffix: str = "") -> Path:
    """Check an output file before the work starts and return it.

    Args:
        path: the file.
        inputs: files, or folders with .dat files, that it must not overwrite.
        suffix: the suffix it must have, if any.

    Raises:
        InputError: if it is a folder or one of the inputs, its parent is a file, or its suffix is wrong.
        OSError: if it cannot be written.
    """
    if Path(path).is_dir() or os.fspath(path).endswith(("/", os.sep)):  # which a Path leaves out
        raise InputError("is a folder, expected the name of a file to write", path=path)
    path = Path(path)
    _check_parents(path.parent)
    if suffix and path.suffix.lower() != suffix:
        raise InputError(f"has the wrong suffix, expected one that ends in {suffix}", path=path)
    sources = [Path(source) for source in inputs if source is not None]
    folders = [source for source in sources if source.is_dir()]
    sources += [file for folder in folders for file in (*folder.glob("*.dat"), *folder.glob("*.dat.gz"))]
    if path.resolve() in [source.resolve() for source in sources]:
        raise InputError("is an input and would be overwritten; choose another name", path=path)
    _try_to_write(path)
    return path


def output_folder(path: str | os.PathLike[str]) -> Path:
    """Check an output folder before the work starts and return it; it is made when something is written there.

    Raises:
        InputError: if it or one of its parents is a file.
        OSError: if it cannot be made or written to.
    """
    path = Path(path)
    _check_parents(path)
    _try_to_write(path / "file")
    return path


def _check_parents(path: Path) -> None:
    for folder in (path, *path.parents):
        if folder.exists() and not folder.is_dir():
            raise InputError("is a file, expected a folder", path=folder)


def _try_to_write(path: Path) -> None:
    """Write a temporary file where `path` will be, or in the lowest of its folders that exists: nothing is left behind."""
    folder = next(folder for folder in path.absolute().parents if folder.exists())
    try:
        with tempfile.NamedTemporaryFile(prefix=f".{path.name}.", suffix=".tmp", dir=folder) as file:
            file.write(b"x")
    except OSError as error:
        raise OSError(error.errno, f"cannot be written: {error.strerror}", str(path.parent)) from error


def take_options(arguments: Sequence[str], names: Iterable[str]) -> tuple[argparse.Namespace, list[str]]:
    """Split a command line into some options' lists of values, None where not given, and all other arguments."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in names:
        parser.add_argument(f"--{name}", nargs="*")
    return parser.parse_known_args(arguments)


def settings_among(options: Namespace, kind: type[T]) -> T:
    """A dataclass filled from the options of the same names."""
    return kind(**{field.name: options[field.name] for field in fields(kind)})  # type: ignore[arg-type]


def command_to_resume(folder: Path, arguments: Sequence[str] | None = None, place: str = "run_dir") -> str:
    """The command line that resumes the current command in a run's folder, with these arguments or all it has now.

    `place` is the option that names the folder.
    """
    given = sys.argv[1:] if arguments is None else arguments
    arguments = [sys.argv[0], *(argument for argument in given if argument != "--resume")]
    if not any(argument.split("=")[0] == f"--{place}" for argument in arguments):
        arguments += [f"--{place}", str(folder)]
    start = "torchrun with its options," if "TORCHELASTIC_RUN_ID" in os.environ else "python"
    return f"{start} {shlex.join([*arguments, '--resume'])}"


def run_command(main: Callable[[], None]) -> None:
    """Run a script's `main`; bad input prints one line on stderr and exits with status 2, Ctrl-C with 130.

    Operating system errors (no such file, no permission, disk full) count as bad input: users can act on them.
    """
    try:
        main()
    except InputError as error:
        _exit(2, f"error: {error}")
    except argparse.ArgumentError as error:
        _exit(2, f"error: {' '.join(str(error).split())} (--help lists the options)")
    except OSError as error:
        if error.strerror is None:
            raise
        place = f"{error.filename}: " if error.filename else ""
        _exit(2, f"error: {place}{error.strerror.lower()}{ADVICE.get(error.errno or 0, '')}")
    except KeyboardInterrupt as stop:
        _exit(130, str(stop) or "stopped")


def _exit(status: int, message: str) -> None:
    print(message, file=sys.stderr)
    raise SystemExit(status)
