"""jina-reranker-m0 in its real size with random weights: it loads, within limits of memory."""

import json
import math
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from enlarge import M0_SETTINGS, m0_shapes, write_enlarged
from paths import PARITY
from PIL import Image

TINY = PARITY / "jina_m0_tiny"

# In a separate process, so that the peak of memory is the scorer's.
SCORE = """
import json, resource, sys, time
from PIL import Image
from llama_index_gap.models import LoadingSettings, load_scorer

clock = [time.perf_counter()]
scorer = load_scorer(sys.argv[1], LoadingSettings(device="cpu", dtype="bfloat16"))
clock.append(time.perf_counter())
loaded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
documents = ["cat " * 250, Image.open(sys.argv[2])]
scores = []
for query in ("a red cat", "a red cat", "a blue dog"):
    scores.append(scorer.score(query, documents).tolist())
    clock.append(time.perf_counter())
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({
    "scores": scores,
    "seconds (load, cold, kept, kept)": [round(b - a, 1) for a, b in zip(clock, clock[1:])],
    "peak in GB (after load, in all)": [round(kb / 2**20, 2) for kb in (loaded, peak)],
    "kept in MB": round(scorer._prefixes.nbytes / 1e6, 1),
}))
"""


def test_there_are_as_many_parameters_as_the_model_card_says():
    shapes = m0_shapes(TINY, M0_SETTINGS)
    count = sum(map(math.prod, shapes.values()))
    # The card says 2.4 billion: it counts the vocabulary twice, the second time as the unused head.
    head = math.prod(shapes["model.embed_tokens.weight"])
    assert (count + head) / 1e9 == pytest.approx(2.44, abs=0.01)


@pytest.mark.slow
@pytest.mark.skipif(
    os.environ.get("GAP_FULL_SIZE") != "1",
    reason="needs minutes, 5 GB of disk and 8 GB of memory; GAP_FULL_SIZE=1 runs it",
)
def test_a_long_text_and_a_large_photo(tmp_path):
    folder = write_enlarged(TINY, tmp_path / "full", m0_shapes(TINY, M0_SETTINGS), M0_SETTINGS)
    noise = np.random.default_rng(0).integers(0, 256, (3000, 4000, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "photo.jpg")
    run = subprocess.run(
        [sys.executable, "-c", SCORE, str(folder), str(folder / "photo.jpg")],
        capture_output=True,
        check=False,
        text=True,
    )
    shutil.rmtree(folder)
    assert run.returncode == 0, run.stderr
    report = json.loads(run.stdout)
    print(report)  # noqa: T201 (pytest -s shows it)
    cold, kept, other = report["scores"]
    assert cold == pytest.approx(kept, abs=0.01)
    assert np.isfinite([cold, kept, other]).all()
    # 1015 and 736 + … tokens of two times 28 layers, 2 heads and 128 numbers in two bytes
    assert report["kept in MB"] == pytest.approx(50, abs=5)
