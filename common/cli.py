"""What all commands share: how they read options and how they end."""

from __future__ import annotations

import argparse
import errno
import os
import shlex
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from jsonargparse import ArgumentParser, DefaultHelpFormatter

from common.errors import InputError

ADVICE = {
    errno.ENOSPC: ", nothing was written there; make room, or choose another folder",
    errno.EFBIG: ", nothing was written there; the system allows no file of this size, choose another folder",
    errno.EACCES: "; choose another folder or file, or ask for the right to use it",
    errno.EROFS: "; choose a folder that can be written",
}
PAIRS_HELP = "a .store file, text (.csv, .tsv), a folder with .dat files, or the paths of the .dat files"


class _HelpFormatter(DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the line breaks of the description, so that its examples can be copied; names defaults where there are any."""

    def _get_help_string(self, action: argparse.Action) -> str:
        described = action.help or ""
        default = action.default
        has_default = isinstance(default, (str, int, float)) and default is not False and default != argparse.SUPPRESS
        return f"{described} (default: %(default)s)" if has_default else described


def make_parser(prog: str, description: str) -> ArgumentParser:
    """A parser whose errors `run_command` shows as one line."""
    return ArgumentParser(
        prog=prog,
        usage=f"python {prog} [options]",
        description=description,
        formatter_class=_HelpFormatter,
        exit_on_error=False,
        allow_abbrev=False,  # a misspelt field of a recipe must not be taken for a longer one
    )


def output_file(path: str | os.PathLike[str], inputs: Iterable[str | os.PathLike[str] | None] = (), *, suffix: str = "") -> Path:
    """A file to write, checked before the work that it is for.

    Args:
        path: what the user gave.
        inputs: files that are read, or folders with .dat files, which it must not replace.
        suffix: how its name ends, where it can be of one kind only.

    Raises:
        InputError: where it is a folder, lies in a file, is one of the inputs, or has another name.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError("is a folder, expected the name of a file to write", path=path)
    output_folder(path.parent)
    if suffix and path.suffix.lower() != suffix:
        raise InputError(f"is no name for what is written there, expected one that ends in {suffix}", path=path)
    read = [Path(source) for source in inputs if source is not None]
    read += [file for folder in read if folder.is_dir() for pattern in ("*.dat", "*.dat.gz") for file in folder.glob(pattern)]
    if path.resolve() in [file.resolve() for file in read]:
        raise InputError("is read, and would be replaced by what is written; choose another name", path=path)
    return path


def output_folder(path: str | os.PathLike[str]) -> Path:
    """A folder to write to, which need not be there yet.

    Raises:
        InputError: where it is a file, or lies in one.
    """
    path = Path(path)
    for place in (path, *path.parents):
        if place.exists() and not place.is_dir():
            raise InputError("is a file, expected a folder", path=place)
    return path


def command_to_resume(folder: Path) -> str:
    """The present command as one types it, to go on in a run's folder."""
    arguments = [argument for argument in sys.argv if argument != "--resume"]
    if not any(argument.split("=")[0] == "--run_dir" for argument in arguments):
        arguments += ["--run_dir", str(folder)]
    start = "torchrun with the options it had," if "TORCHELASTIC_RUN_ID" in os.environ else "python"
    return f"{start} {shlex.join([*arguments, '--resume'])}"


def run_command(main: Callable[[], None]) -> None:
    """Run the `main` of a script; bad input ends in one line on stderr and exit status 2.

    Errors of the operating system (no such file, no permission, disk full) are bad input too: the user can act on
    them, and a traceback would not help. Ctrl-C ends with status 130.
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
