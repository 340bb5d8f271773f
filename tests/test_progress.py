"""Long work without a terminal prints a line now and then; the clock is simulated."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import gap, write_texts

from llama_index_gap import progress
from llama_index_gap.progress import Progress, in_lines, timed_step, told


class Clock:
    """A clock whose time the test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    monkeypatch.setattr("tqdm.std.time", clock)
    monkeypatch.setattr(Progress, "_last_line_at", 0.0)
    with in_lines():
        yield clock


def test_lines_come_after_ten_seconds_then_every_thirty(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress(total=4_000, desc="Indexing", unit="node") as bar:
        for _ in range(80):  # a second each
            clock.now += 1
            bar.update(50)

    assert capsys.readouterr().err == (
        "Indexing: 500 of 4,000 nodes after 10 s\n"
        "Indexing: 2,000 of 4,000 nodes after 40 s\n"
        "Indexing: 3,500 of 4,000 nodes after 1 min 10 s\n"
    )


def test_short_work_writes_nothing(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(20):
        for _ in Progress(range(9), "Reading"):
            clock.now += 1

    assert capsys.readouterr().err == ""


def test_bars_within_each_other_write_no_more_lines(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in Progress(range(4), "Asking", unit="query"):
        for _ in Progress(iter("abcdefghijkl"), "Reranking"):
            clock.now += 1

    assert capsys.readouterr().err == (
        "Asking: 0 of 4 queries, Reranking: 10 after 10 s\n"  # of an unknown number
        "Asking: 3 of 4 queries, Reranking: 10 after 46 s\n"
    )


def test_work_in_leaps_writes_a_line_after_each(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress(total=3, desc="Copying", unit="row") as bar:
        for _ in range(3):
            clock.now += 600
            bar.update()

    assert len(capsys.readouterr().err.splitlines()) == 3


def test_elsewhere_it_is_a_bar(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with in_lines(False):
        list(Progress(range(3), "Reading"))

    assert "\rReading: 100%|" in capsys.readouterr().err


def test_nothing_is_written_where_nobody_wants_it(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in Progress(range(3), "Reading", disable=True):
        clock.now += 100

    assert capsys.readouterr().err == ""


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "FIRST_SECONDS", 0.01)
    monkeypatch.setattr(progress, "_BAR_AFTER_SECONDS", 0.01)
    monkeypatch.setattr(progress, "EVERY_SECONDS", 0.0)


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize(
    ("lines", "expected"),
    [(True, "Loading \\x1b[2Jclip after 0 s\n"), (False, "\rLoading \\x1b[2Jclip: 00:00")],
)
def test_a_step_that_cannot_be_counted_shows_its_time(
    lines: bool, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with in_lines(lines), timed_step("Loading \x1b[2Jclip"):
        shown = written(capsys, expected)
    shown += capsys.readouterr().err

    assert shown.startswith(expected)
    assert lines or shown.endswith(" \r")  # the bar is cleared


def written(capsys: pytest.CaptureFixture[str], expected: str) -> str:
    """Wait until a text is on stderr; returns all that was written."""
    shown, end = "", time.monotonic() + 20
    while expected not in shown and time.monotonic() < end:
        time.sleep(0.01)
        shown += capsys.readouterr().err
    return shown


def test_a_short_step_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    for wanted in (True, False):
        with in_lines(wanted), timed_step("Loading clip"):
            pass

    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("soon")
def test_a_step_is_silent_where_nobody_watches(capsys: pytest.CaptureFixture[str]) -> None:
    with timed_step("Loading clip"):
        time.sleep(0.1)

    assert capsys.readouterr().err == ""


@pytest.fixture
def without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "FIRST_SECONDS", 1e-9)
    monkeypatch.setattr(progress, "EVERY_SECONDS", 0.0)


@pytest.mark.usefixtures("without_waiting")
def test_commands_say_how_far_they_are(tiny_clip: Path, tmp_path: Path) -> None:
    folder, db = tmp_path / "corpus", tmp_path / "gap.db"
    folder.mkdir()
    write_texts(folder / "docs.jsonl", 8)
    queries = [f'{{"query": "text number {i}", "relevant": ["doc-{i}"]}}' for i in range(3)]
    (folder / "queries.jsonl").write_text("\n".join(queries))

    indexed = gap("index", folder, "--db", db, "--model", tiny_clip)
    in_step = gap("sync", folder, "--db", db)
    copied = gap("copy", "--db", db, "--to-name", "other")
    embedded = gap("reembed", "--db", db, "--name", "other", "--dimensions", 8)
    evaluated = gap("evaluate", folder, "--db", db)

    for shown, line in (
        (indexed, "Indexing: 8 nodes after"),
        (in_step, "Comparing: 8 nodes"),
        (copied, "Copying: 8 of 8 rows after"),
        (embedded, "Embedding: 8 of 8 rows after"),
        (evaluated, "Asking: 3 of 3 queries after"),
    ):
        assert shown.code == 0, shown.err
        assert line in shown.err
        assert "\r" not in shown.err


def test_a_listener_hears_each_update_in_place_of_bars_and_lines(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    heard: list[str] = []

    with told(heard.append), Progress(total=9, desc="Reading", unit="page", disable=True) as bar:
        bar.update(4)
        clock.now += 60
        bar.update(5)
    with Progress(total=9, desc="Reading", disable=True) as bar:
        bar.update(9)

    steps = [f"Reading: {done} of 9 pages" for done in (0, 4, 9)]
    assert heard == steps
    assert capsys.readouterr().err == ""
