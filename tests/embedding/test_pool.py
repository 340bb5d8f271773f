from __future__ import annotations

import asyncio
import copy
import gc
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from gate import PATIENCE_S
from llama_index.core.schema import ImageNode, TextNode
from PIL import Image

from llama_index_gap import DualEncoderEmbedding, DualIndex
from llama_index_gap.embedding import pool as pool_module
from llama_index_gap.embedding.pool import EncoderPool
from llama_index_gap.errors import EmbeddingError
from llama_index_gap.images.opening import ImageError
from llama_index_gap.index.models import identity_of
from llama_index_gap.models import LoadingSettings, ModelError
from llama_index_gap.models.worker import Answer, EncoderSettings, LengthsRequest

TEXTS = [f"{number} red balloons" for number in range(11)]
SETTINGS: dict[str, Any] = {
    "dtype": "float32",
    "embed_batch_size": 2,
    "query_prompt": "q: ",
    "document_prompt": "d: ",
}


@pytest.fixture(scope="module")
def alone(tiny_clip: Path) -> DualEncoderEmbedding:
    return DualEncoderEmbedding(model_name=tiny_clip, **SETTINGS)


@pytest.fixture(scope="module")
def pooled(tiny_clip: Path) -> Iterator[DualEncoderEmbedding]:
    embedding = DualEncoderEmbedding(model_name=tiny_clip, workers=2, **SETTINGS)
    yield embedding
    embedding.close()


class OwnNode(ImageNode):
    """An instance of a class that no other process knows."""


OwnNode.__module__ = "__main__"


def process_ids(embedding: DualEncoderEmbedding) -> list[int]:
    pool = embedding._encoders.pool
    assert pool is not None
    return [each._process.pid for each in pool._processes.values()]


def wait_until(holds: Callable[[], bool]) -> None:
    """Poll until a condition holds in another process."""
    end = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)


def is_gone(process_id: int) -> bool:
    try:
        state = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state == "Z"


# --- the same as without ------------------------------------------------------------------------


def test_texts_and_queries_have_the_same_vectors_in_the_same_order(
    pooled: DualEncoderEmbedding, alone: DualEncoderEmbedding
) -> None:
    for embed in ("get_text_embedding_batch", "get_query_embedding_batch"):
        found, expected = (getattr(each, embed)(TEXTS) for each in (pooled, alone))

        np.testing.assert_allclose(found, expected, atol=1e-6)
    assert pooled.get_text_embedding_batch([]) == []
    assert pooled.get_query_embedding("a cat") == alone.get_query_embedding("a cat")


def test_images_of_every_form_have_the_same_vectors(
    pooled: DualEncoderEmbedding,
    alone: DualEncoderEmbedding,
    noise_files: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = Path(noise_files[0])
    monkeypatch.chdir(path.parent)
    images: list[Any] = [
        *(*noise_files, path.name, path, BytesIO(path.read_bytes())),
        *(Image.open(path), ImageNode(image_path=str(path)), OwnNode(image_path=path.name)),
    ]

    found = pooled.get_image_embedding_batch(images)

    np.testing.assert_allclose(found, alone.get_image_embedding_batch(images), atol=1e-6)
    assert pooled.get_image_embedding_batch([]) == []


def test_facts_and_identity_are_the_same(
    pooled: DualEncoderEmbedding, alone: DualEncoderEmbedding
) -> None:
    for fact in ("dimension", "modalities", "longest_text"):
        assert getattr(pooled, fact) == getattr(alone, fact)
    assert pooled.count_tokens(TEXTS) == alone.count_tokens(TEXTS)
    assert identity_of(pooled) == identity_of(alone)


def test_a_bad_image_is_the_same_error(
    pooled: DualEncoderEmbedding, alone: DualEncoderEmbedding, noise_files: list[str]
) -> None:
    images: list[Any] = [*noise_files[:3], "nowhere.png", "nor here.png", noise_files[0]]
    said = []
    for each in (pooled, alone):
        with pytest.raises(ImageError) as raised:
            each.get_image_embedding_batch(images)
        said.append((str(raised.value), raised.value.source, str(raised.value.__cause__)))

    assert said[0] == said[1]
    assert said[0][1] == "nowhere.png"


def test_an_index_holds_and_skips_the_same(
    pooled: DualEncoderEmbedding,
    alone: DualEncoderEmbedding,
    noise_files: list[str],
    tmp_path: Path,
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(Path(noise_files[0]).read_bytes()[:200])
    nodes = [
        *(TextNode(id_=f"text {number}", text=text) for number, text in enumerate(TEXTS)),
        *(
            ImageNode(id_=f"image {number}", image_path=path, text="a " * 200)
            for number, path in enumerate([*noise_files, str(broken), "nowhere.png"])
        ),
    ]
    reports = []
    for number, model in enumerate((pooled, alone)):
        with DualIndex(str(tmp_path / f"{number}.db"), "gap", model) as index:
            reports.append(index.insert_nodes(nodes))

    assert reports[0] == reports[1]
    assert (reports[0].text_rows, reports[0].image_rows, len(reports[0].skipped)) == (18, 5, 2)


def test_cut_texts_are_counted_in_one_warning(
    pooled: DualEncoderEmbedding, caplog: pytest.LogCaptureFixture
) -> None:
    pooled.get_text_embedding_batch(["word " * 200, "short", "word " * 100])

    (warning,) = [each.getMessage() for each in caplog.records]
    assert warning.startswith("2 of 3 texts are longer")


def test_what_a_process_logs_is_logged_here(
    pooled: DualEncoderEmbedding,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    answer = Answer(value=[1], logged=[("llama_index_gap.images.opening", 30, "100 % odd")])
    pool = pooled._encoders.pool
    assert pool is not None
    monkeypatch.setattr(pool, "_ready", lambda _: SimpleNamespace(ask=lambda _: answer))

    assert list(pool.map([LengthsRequest(["a"], "document")] * 2)) == [[1], [1]]
    assert caplog.record_tuples == [("llama_index_gap.images.opening", 30, "100 % odd")] * 2


# --- settings -----------------------------------------------------------------------------------


def test_copies_share_the_processes_and_pickles_hold_none(pooled: DualEncoderEmbedding) -> None:
    copied = copy.deepcopy(pooled)

    assert process_ids(copied) == process_ids(pooled)
    assert copied.to_dict()["workers"] == 2
    assert len(pickle.dumps(pooled)) < 5_000


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"workers": 0}, "greater than 0"),
        ({"devices": []}, r"devices=\[\]: name at least one"),
        ({"devices": ["cpu"], "workers": 1}, "devices=.* and workers=1: pass only one of them"),
        (
            {"devices": ["cpu"], "device": "cpu"},
            "devices=.* and device='cpu': pass only one of them",
        ),
    ],
)
def test_wrong_settings_start_nothing(
    settings: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "Popen", None)

    with pytest.raises(ValueError, match=message):
        DualEncoderEmbedding(model_name="nowhere", **settings)


def test_without_workers_there_is_none(alone: DualEncoderEmbedding) -> None:
    assert (alone.processes, alone._encoders.pool) == (0, None)
    alone.close()

    assert len(alone.get_text_embedding_batch(["a cat"])) == 1


def test_no_process_can_be_started(tiny_clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")

    with pytest.raises(EmbeddingError, match=r"cannot start a process .*use fewer"):
        DualEncoderEmbedding(model_name=tiny_clip, workers=1)


# --- whoever dies or leaves ---------------------------------------------------------------------


def test_async_in_two_event_loops_and_cancelled(
    pooled: DualEncoderEmbedding, alone: DualEncoderEmbedding
) -> None:
    expected = alone.get_text_embedding_batch(TEXTS)
    for _ in range(2):
        found = asyncio.run(pooled.aget_text_embedding_batch(TEXTS))
        np.testing.assert_allclose(found, expected, atol=1e-6)

    async def cancelled() -> None:
        """With the processes stopped, the event loop goes on, and the cancelled call ends."""
        pool = pooled._encoders.pool
        assert pool is not None
        for each in process_ids(pooled):
            os.kill(each, signal.SIGSTOP)
        try:
            task = asyncio.ensure_future(pooled.aget_text_embedding_batch(TEXTS))
            await asyncio.to_thread(wait_until, lambda: sum(pool._asked) > 2)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        finally:
            for each in process_ids(pooled):
                os.kill(each, signal.SIGCONT)

    asyncio.run(cancelled())
    np.testing.assert_allclose(pooled.get_text_embedding_batch(TEXTS), expected, atol=1e-6)


def test_what_a_killed_process_had_is_embedded_by_another(
    pooled: DualEncoderEmbedding,
    alone: DualEncoderEmbedding,
    caplog: pytest.LogCaptureFixture,
) -> None:
    pool = pooled._encoders.pool
    assert pool is not None
    victim = process_ids(pooled)[1]
    os.kill(victim, signal.SIGSTOP)

    async def killed_in_the_middle() -> Any:
        task = asyncio.ensure_future(pooled.aget_text_embedding_batch(TEXTS))
        await asyncio.to_thread(wait_until, lambda: pool._asked[1] == 2)
        os.kill(victim, signal.SIGKILL)
        return await task

    found = asyncio.run(killed_in_the_middle())

    np.testing.assert_allclose(found, alone.get_text_embedding_batch(TEXTS), atol=1e-6)
    said = {each.getMessage() for each in caplog.records}
    assert said
    assert all("process 2 of 2 was killed" in each and "red balloons" in each for each in said)
    assert victim not in process_ids(pooled)


def test_the_processes_end_with_the_last_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[object] = []
    fake = SimpleNamespace(ask=lambda _: Answer(value="answer"), end=lambda: ended.append(fake))
    monkeypatch.setattr(pool_module, "_Process", lambda: fake)
    pool = EncoderPool(EncoderSettings("a model", None, LoadingSettings()), [None, "cpu"])
    assert list(pool.map([LengthsRequest(["a"], "document")] * 9)) == ["answer"] * 9
    assert not ended

    del pool
    gc.collect()

    assert ended == [fake, fake]


class Bomb(BytesIO):
    """An image that ends the process that opens it."""

    def __reduce__(self) -> Any:
        return os._exit, (3,)


@pytest.mark.slow
def test_a_batch_that_ends_every_process_is_an_error_and_closing_ends_all(
    tiny_clip: Path, tmp_path: Path, noise_files: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    model = shutil.copytree(tiny_clip, tmp_path / "model")
    (model / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    embedding = DualEncoderEmbedding(model_name=model, devices=["cpu"], embed_batch_size=2)
    (warning,) = caplog.messages
    assert "cc-by-nc-4.0: it may not be used commercially" in warning
    with pytest.raises(EmbeddingError) as raised:
        embedding.get_image_embedding_batch([*noise_files, Bomb(b"12")])

    assert "process 1 of 1 (on cpu) ended with code 3, in a batch of 2" in str(raised.value)
    assert "like 2 others before it; if memory is short, use fewer" in str(raised.value)
    assert "like 2 others" not in caplog.text  # for the batch that was in the same process
    assert len(embedding.get_image_embedding_batch(noise_files)) == 5
    before = process_ids(embedding)
    embedding.close()
    assert all(map(is_gone, before))
    assert len(embedding.get_image_embedding_batch(noise_files)) == 5  # new processes were started
    embedding.close()


@pytest.mark.slow
def test_a_model_or_a_device_that_is_not_there_fails_at_construction(
    tiny_clip: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="device='cuda:77' cannot be used here"):
        DualEncoderEmbedding(model_name=tiny_clip, devices=["cpu", "cuda:77"])
    with pytest.raises(ModelError) as alone:
        DualEncoderEmbedding(model_name=tmp_path, local_files_only=True)
    with pytest.raises(ModelError) as pooled:
        DualEncoderEmbedding(model_name=tmp_path, local_files_only=True, workers=1)
    assert str(pooled.value) == str(alone.value)


# Without a guard, as users write it; it kills itself when told to.
SCRIPT = """
import os, signal, sys
from llama_index.core.callbacks import CallbackManager
from llama_index.core.callbacks.base_handler import BaseCallbackHandler
from llama_index.core.schema import TextNode
from llama_index_gap import DualEncoderEmbedding, DualIndex
from llama_index_gap.embedding import pool as pool_module
from llama_index_gap.embedding.pool import EncoderPool

print("begun", flush=True)
model, uri, batches, ending = sys.argv[1:]

class Ending(BaseCallbackHandler):
    seen = 0
    def __init__(self): super().__init__([], [])
    def on_event_start(self, event_type, *args, **kwargs):
        Ending.seen += event_type == "embedding"
        if Ending.seen == int(batches):
            os.kill(os.getpid(), int(ending))
    def on_event_end(self, *args, **kwargs): ...
    def start_trace(self, *args): ...
    def end_trace(self, *args): ...

embedding = DualEncoderEmbedding(
    model_name=model, workers=2, embed_batch_size=2, callback_manager=CallbackManager([Ending()])
)
print(*[each._process.pid for each in embedding._encoders.pool._processes.values()], flush=True)
with DualIndex(uri, "gap", embedding) as index:
    nodes = [TextNode(id_=str(n), text=f"balloon {n}") for n in range(60)]
    report = index.insert_nodes(nodes)
    print("torch" in sys.modules, report.unchanged, report.text_rows, flush=True)
"""


def run_script(*arguments: object) -> tuple[int, list[str]]:
    """Run the script; returns its exit code and its output."""
    command = [sys.executable, "-c", SCRIPT, *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    begun, *printed = done.stdout.splitlines()
    assert begun == "begun"
    process_ids = map(int, printed.pop(0).split())
    wait_until(lambda: all(map(is_gone, process_ids)))
    return done.returncode, printed


@pytest.mark.slow
def test_a_killed_script_leaves_no_process_and_another_run_goes_on(
    tiny_clip: Path, tmp_path: Path
) -> None:
    uri = tmp_path / "gap.db"

    # A window is 16 texts, and three windows may be on their way to the database.
    killed = run_script(tiny_clip, uri, 29, int(signal.SIGKILL))
    code, (printed,) = run_script(tiny_clip, uri, -1, 0)

    assert killed == (-signal.SIGKILL, [])
    assert code == 0
    has_torch, unchanged, written = printed.split()
    assert has_torch == "False"  # only the processes loaded the model
    assert 16 <= int(unchanged) < 60
    assert int(unchanged) + int(written) == 60


@pytest.mark.slow
def test_ctrl_c_leaves_no_process(tiny_clip: Path, tmp_path: Path) -> None:
    code, printed = run_script(tiny_clip, tmp_path / "gap.db", 5, int(signal.SIGINT))

    assert (code, printed) == (-signal.SIGINT, [])
