from __future__ import annotations

from typing import Any

import pytest
from command_line import gap

import llama_index_gap


def test_passwords_go_into_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[dict[str, Any]] = []

    def refuse(*_: object, **settings: Any) -> None:
        opened.append(settings)
        raise ValueError("enough")

    monkeypatch.setattr(llama_index_gap, "DualIndex", refuse)
    monkeypatch.setenv("MILVUS_TOKEN", "root:secret")

    in_the_url = gap("search", "ship", "--db", "http://root:secret@localhost:19530")
    assert in_the_url.code == 2
    assert "MILVUS_TOKEN" in in_the_url.err
    assert "secret" not in in_the_url.err
    assert gap("search", "ship", "--db", "http://localhost:19530").err == "error: enough\n"
    ((token, others),) = [(each.pop("token"), each) for each in opened]
    assert token == "root:secret"
    assert "secret" not in str(others)
