"""Measures how long the commands of ``llama-gap`` take from a cold start.

    python benchmarks/startup.py [--against FOLDER] [--rounds 10] [--only search "mcp: initialize"]

``--against`` names the checkout of another commit, such as from ``git worktree add FOLDER COMMIT``.
Each command runs in a separate process; each round runs all commands of both checkouts, on the
demo's newsroom of 300 articles with its tiny CLIP checkpoint. Processor time covers the process and
its threads; other programs on the machine disturb it less than the clock time. The table shows
medians, and the ratio of this checkout to the other.

The ``mcp`` rows show how long a chat program waits, from the start of the process.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[1]
RUN = "from llama_index_gap.cli.app import main; main()"
CHECKPOINT = ROOT / "llama_index_gap" / "demo" / "checkpoint"
QUERY = "a white ship at night"
HELLO = {
    "protocolVersion": "2025-06-18",
    "capabilities": {},
    "clientInfo": {"name": "benchmark", "version": "1"},
}
REQUESTS = {
    "mcp: initialize": ("initialize", HELLO),
    "mcp: tools/list": ("tools/list", {}),
    "mcp: first search": ("tools/call", {"name": "search", "arguments": {"query": QUERY}}),
}
Seconds = tuple[float, float]
"""Seconds of clock time and of processor time."""


def start(checkout: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-P", "-c", RUN, *arguments],
        env={**os.environ, "PYTHONPATH": str(checkout), "HF_HUB_OFFLINE": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def run(checkout: Path, *arguments: str) -> Seconds:
    started, before = time.perf_counter(), sum(os.times()[2:4])
    with start(checkout, *arguments) as process:
        process.communicate()
    if process.returncode:
        raise SystemExit(f"llama-gap {' '.join(arguments)}: exit code {process.returncode}")
    return time.perf_counter() - started, sum(os.times()[2:4]) - before


def talk(checkout: Path, database: str) -> dict[str, Seconds]:
    """Send each request after the answer to the one before."""
    seconds: dict[str, Seconds] = {}
    started = time.perf_counter()
    with start(checkout, "mcp", "--db", database) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for number, (name, (method, params)) in enumerate(REQUESTS.items()):
            request = {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            answer = json.loads(process.stdout.readline())
            if answer["id"] != number or "error" in answer or answer["result"].get("isError"):
                raise SystemExit(f"{name}: {str(answer)[:500]}")
            taken = sum(time_of(process.pid))
            seconds[name] = (time.perf_counter() - started, taken)
            if number == 0:
                done = {"jsonrpc": "2.0", "method": "notifications/initialized"}
                process.stdin.write(json.dumps(done) + "\n")
        process.stdin.close()
    return seconds


def time_of(process: int) -> list[float]:
    """Processor time of a running process, in user and in system mode (Linux)."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return [int(each) / os.sysconf("SC_CLK_TCK") for each in fields[11:13]]


def one_round(checkout: Path, folder: Path, only: set[str]) -> dict[str, Seconds]:
    database, corpus = str(folder / "demo" / "newsroom.db"), str(folder / "demo" / "newsroom")
    fresh = str(folder / f"{time.time_ns()}.db")
    commands = {
        "--help": ["--help"],
        "models": ["models"],
        "info": ["info", "--db", database],
        "read": ["read", corpus],
        "search": ["search", QUERY, "--db", database],
        "index": ["index", corpus, "--db", fresh, "--model", str(CHECKPOINT)],
    }
    seconds = {
        name: run(checkout, *arguments)
        for name, arguments in commands.items()
        if not only or name in only
    }
    if not only or only & REQUESTS.keys():
        seconds |= talk(checkout, database)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", type=Path)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--only", nargs="*", default=[], help="measure only these rows")
    options = parser.parse_args()
    checkouts = {"here": ROOT}
    if options.against:
        checkouts["against"] = options.against.resolve()
    found: dict[str, list[dict[str, Seconds]]] = {name: [] for name in checkouts}
    with tempfile.TemporaryDirectory() as work:
        demo = ["--folder", str(Path(work) / "demo"), "--articles", "300", "--queries", "10"]
        run(ROOT, "demo", *demo)
        for number in range(options.rounds + 1):  # the first round fills the file system's cache
            for name, checkout in checkouts.items():
                taken = one_round(checkout, Path(work), set(options.only))
                if number:
                    found[name].append(taken)
    columns = "".join(f"{name:>12}" for name in checkouts)
    print(f"{'seconds':<20}{'processor' + columns:>33}        clock{columns}")
    for row in found["here"][0]:
        line = f"{row:<20}"
        for kind in (1, 0):
            values = [median(taken[row][kind] for taken in each) for each in found.values()]
            ratio = f"  ×{values[0] / values[1]:.2f}" if len(values) > 1 else ""
            line += "".join(f"{value:>12.2f}" for value in values) + ratio
        print(line)


if __name__ == "__main__":
    main()
