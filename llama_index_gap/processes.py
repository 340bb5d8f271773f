"""Python processes of this package's own: started, spoken to over pipes, and ended for certain."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

_START = (
    "import json, signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); "
    "sys.path[:] = json.loads(sys.argv[1]); "
    "from importlib import import_module; import_module(sys.argv[2]).main(*sys.argv[3:])"
)


def start_own(
    module: str,
    *arguments: str,
    working_folder: bool,
    own_errors: bool = False,
) -> subprocess.Popen[bytes]:
    """Start a process that runs the ``main`` of a module of this package, with pipes to it.

    The caller's script is not run again in it, as ``multiprocessing`` does where it spawns: a
    script needs no guard. Its input ends when this process ends, however that comes about.

    Args:
        module: has a ``main`` that takes the arguments as texts.
        *arguments: for ``main``.
        working_folder: whether modules are also taken from the working folder, where this process
            takes them from there; it may hold what others made.
        own_errors: whether what it writes to the standard error is for the caller to read.

    Raises:
        OSError: the system starts no process.
    """
    here, working = Path(__file__).resolve().parents[1], _resolved("")
    folders = [each for each in map(_resolved, sys.path) if each is not None]
    paths = [str(each) for each in folders if working_folder or each != working or each == here]
    return subprocess.Popen(  # noqa: S603  # of this package's own
        [sys.executable, "-I", "-c", _START, json.dumps(paths), module, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE if own_errors else None,
    )


def end_own(process: subprocess.Popen[bytes]) -> None:
    """End a process at once, whatever it is doing, and wait until it is gone."""
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            with suppress(OSError):  # a request that it never read
                pipe.close()


def answers_to_parent() -> BinaryIO:
    """In such a process: the pipe for answers, into which nothing else is printed any more.

    What libraries print goes to the standard error. Ctrl-C is for the process that asks.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return answers


def working_folder() -> str | None:
    """The working folder; None where it was deleted."""
    try:
        return str(Path.cwd())
    except OSError:
        return None


def _resolved(path: str) -> Path | None:
    try:
        return Path(path).resolve()
    except OSError:  # the working folder, which was deleted
        return None
