"""Tiny checkpoints, images, and the folder of shared data."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from milvus_server import milvus_server, why_no_server
from PIL import Image
from ray_cluster import ray_cluster, why_no_ray
from tiny_siglip import make_tiny_siglip

from llama_index_gap.demo.tiny import make_tiny_clip, make_tiny_dinov2


@pytest.fixture(scope="session", autouse=True)
def _own_data_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What the package keeps in the user's folders, tests keep in folders of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("data")))
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="session")
def tiny_siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_siglip(tmp_path_factory.mktemp("siglip"))


@pytest.fixture(scope="session")
def tiny_siglip2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_siglip(tmp_path_factory.mktemp("siglip2"), gemma_tokenizer=True)


@pytest.fixture(scope="session")
def tiny_dinov2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_dinov2(tmp_path_factory.mktemp("dinov2"))


@pytest.fixture(scope="session")
def noise() -> list[Image.Image]:
    """Five images of different sizes."""
    rng = np.random.default_rng(0)
    sizes = [(40, 50), (64, 33), (32, 32), (90, 41), (35, 80)]
    return [
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        for width, height in sizes
    ]


@pytest.fixture(scope="session")
def noise_files(noise: list[Image.Image], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The same five as PNG files."""
    folder = tmp_path_factory.mktemp("noise")
    paths = [str(folder / f"{index}.png") for index in range(len(noise))]
    for image, path in zip(noise, paths, strict=True):
        image.save(path)
    return paths


@pytest.fixture(scope="session")
def gap_shared() -> Path:
    """Data that others published; the tests that read it skip where it is not."""
    folder = os.environ.get("GAP_SHARED")
    if not folder:
        pytest.skip("GAP_SHARED is not set: it names the folder of shared data (see .ci/run)")
    return Path(folder)


@pytest.fixture(scope="session")
def milvus_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real Milvus server; one for all tests, since a machine can run but one."""
    if reason := why_no_server():
        pytest.skip(reason)
    with milvus_server(tmp_path_factory.mktemp("milvus")) as url:
        yield url


@pytest.fixture(scope="session")
def ray_address() -> Iterator[str]:
    """A real Ray cluster of two workers; one for all tests, since it takes seconds to start."""
    if reason := why_no_ray():
        pytest.skip(reason)
    with ray_cluster() as address:
        yield address


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl-C interrupts, also where the tests were started in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
