"""Starts Python processes that run this package's modules, and ends them reliably."""

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
    """Start a process that runs ``main`` of a module of this package, with pipes to it.

    Unlike ``multiprocessing`` with spawn, the process does not run the caller's script again, so
    scripts need no guard. Its standard input ends when this process ends, for whatever reason.

    Args:
        module: its ``main`` takes the arguments as strings.
        *arguments: for ``main``.
        working_folder: whether the process may import from the working folder if this one may;
            that folder may hold other people's files.
        own_errors: whether the caller reads the process's standard error.

    Raises:
        OSError: the system cannot start a process.
    """
    here, working = Path(__file__).resolve().parents[1], _resolved("")
    folders = [each for each in map(_resolved, sys.path) if each is not None]
    paths = [str(each) for each in folders if working_folder or each != working or each == here]
    return subprocess.Popen(  # noqa: S603  # runs this package's code only
        [sys.executable, "-I", "-c", _START, json.dumps(paths), module, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE if own_errors else None,
    )


def end_own(process: subprocess.Popen[bytes]) -> None:
    """Kill a process, whatever it is doing, and wait until it has ended."""
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            with suppress(OSError):  # the pipe may hold a request that it never read
                pipe.close()


def answers_to_parent() -> BinaryIO:
    """The pipe for answers to the parent; call it once, in the process that was started.

    From then on, whatever libraries print goes to standard error, and Ctrl-C is ignored: the
    parent handles it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return answers


def working_folder() -> str | None:
    """The working folder; None if it was deleted."""
    try:
        return str(Path.cwd())
    except OSError:
        return None


def _resolved(path: str) -> Path | None:
    try:
        return Path(path).resolve()
    except OSError:  # the working folder was deleted
        return None
