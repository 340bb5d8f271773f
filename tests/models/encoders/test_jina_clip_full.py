"""jina-clip-v2 in its real size with random weights: it loads, within limits of memory."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from enlarge import (
    JINA_LENGTHS,
    JINA_SETTINGS,
    JINA_VOCABULARY,
    enlarged_shapes,
    write_enlarged,
)
from paths import PARITY
from PIL import Image

TINY = PARITY / "jina_clip_tiny"
OVERRIDES = "hf_model_config_kwargs"
STATED = ["lora_adaptations", "lora_alpha", "lora_rank", "task_instructions"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        os.environ.get("GAP_FULL_SIZE") != "1",
        reason="needs minutes, 2 GB of disk and 8 GB of memory; GAP_FULL_SIZE=1 runs it",
    ),
]

# In a separate process, so that the peak of memory is the encoder's.
EMBED = """
import json, resource, sys, time
import numpy as np
from PIL import Image
from llama_index_gap.models import LoadingSettings, load_encoder

clock = [time.perf_counter()]
encoder = load_encoder(sys.argv[1], LoadingSettings(device="cpu", dtype=sys.argv[2]))
clock.append(time.perf_counter())
loaded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
long = "cat " * 9000
tokens = encoder._tokenizer([long], "document")["input_ids"].shape[1]
text = encoder.encode_text([long], "document")
clock.append(time.perf_counter())
image = encoder.encode_images([Image.open(sys.argv[3])])
clock.append(time.perf_counter())
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({
    "tokens": tokens,
    "cut": encoder.count_truncated([long, "cat"], "document"),
    "shapes": [text.shape, image.shape],
    "lengths": [float(np.linalg.norm(vector)) for vector in (text, image)],
    "seconds (load, text, photo)": [round(b - a, 1) for a, b in zip(clock, clock[1:])],
    "peak in GB (after load, in all)": [round(kb / 2**20, 2) for kb in (loaded, peak)],
}))
"""


def real_shapes() -> dict[str, tuple[int, ...]]:
    """The names and shapes of jinaai/jina-clip-v2's tensors."""
    return enlarged_shapes(TINY, JINA_LENGTHS | JINA_VOCABULARY, layers=24)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("jina_clip_full")
    overrides = json.loads((TINY / "config.json").read_text())["text_config"][OVERRIDES]
    settings = {
        **JINA_SETTINGS,
        "config.json": {
            **JINA_SETTINGS["config.json"],
            # Like the real checkpoint, which takes the sizes from its base.
            f"text_config.{OVERRIDES}": {key: overrides[key] for key in STATED},
            "vision_config.layers": 24,
        },
    }
    write_enlarged(TINY, folder, real_shapes(), settings)
    noise = np.random.default_rng(0).integers(0, 256, (3000, 4000, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "photo.jpg")
    yield folder
    shutil.rmtree(folder)


def test_there_are_as_many_parameters_as_the_model_card_says():
    count = sum(np.prod(shape, dtype=int) for shape in real_shapes().values())
    assert count / 1e6 == pytest.approx(865, rel=0.01)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_longest_text_and_a_large_photo(folder, dtype):
    photo = str(folder / "photo.jpg")
    run = subprocess.run(
        [sys.executable, "-c", EMBED, str(folder), dtype, photo],
        capture_output=True,
        check=False,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    report = json.loads(run.stdout)
    print(dtype, report)  # noqa: T201 (pytest -s shows it)
    assert (report["tokens"], report["cut"]) == (8192, 1)
    assert report["shapes"] == [[1, 1024], [1, 1024]]
    assert report["lengths"] == pytest.approx([1, 1], abs=1e-5)
