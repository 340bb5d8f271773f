from __future__ import annotations

import json
from pathlib import Path

from command_line import llama_gap


def test_what_steers_a_terminal_is_shown_and_not_sent(tmp_path: Path) -> None:
    document = {"text": "t", "images": ["\x1b[31mred\x1b]0;title\x07\u202e.png"]}
    (tmp_path / "a.jsonl").write_text(json.dumps(document))

    shown = llama_gap("read", str(tmp_path / "a.jsonl"))
    failed = llama_gap("read", "x\x1b[31m")

    assert "\\x1b[31mred" in shown.stdout
    assert not {"\x1b", "\x07", "\u202e"} & set(shown.stdout + failed.stderr)
