"""Loading settings for tests: on the CPU and in float32 unless a test says otherwise."""

from __future__ import annotations

from typing import Any

from llama_index_gap.model_settings import LoadingSettings


def on_cpu(options: dict[str, Any]) -> LoadingSettings:
    """Take the loading settings out of options; number formats may be torch dtypes."""
    given = {name: options.pop(name) for name in LoadingSettings.model_fields if name in options}
    given["dtype"] = str(given.get("dtype", "float32")).removeprefix("torch.")
    return LoadingSettings(**{"device": "cpu", **given})
