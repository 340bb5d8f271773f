from __future__ import annotations

from contextlib import closing

import pytest
from llama_index.core.schema import TextNode

from llama_index_gap.index import ledger as module
from llama_index_gap.index.ledger import Is, Ledger


def test_nodes_wait_in_order_whatever_is_in_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WINDOW", 2)
    nodes = [TextNode(id_=str(number), text=f"text {number}") for number in range(7)]
    nodes[3].metadata["function"] = lambda: None  # cannot be pickled

    with closing(Ledger()) as ledger:
        ledger.wait(nodes)
        assert ledger.how_many_wait() == 7
        lists = list(ledger.waiting())

    assert [[each.node_id for each in some] for some in lists] == [
        ["0", "1"],
        ["2", "3"],
        ["4", "5"],
        ["6"],
    ]
    assert lists[1][1] is nodes[3]
    assert "function" in nodes[3].metadata  # LlamaIndex's pickles would drop all metadata


def test_what_is_known_of_documents_adds_up() -> None:
    with closing(Ledger()) as ledger:
        ledger.place("a", "a.md")
        ledger.note_documents({"a": Is.GIVEN, "b\ud800": Is.GIVEN})
        ledger.place("a", "other.md")
        ledger.note_documents({"a": Is.READ | Is.CHANGED})

        assert ledger.places(["a", "b\ud800", "c"]) == {"a": "a.md"}
        assert ledger.ask("SELECT key, known FROM documents ORDER BY key") == [
            ("a", Is.GIVEN | Is.READ | Is.CHANGED),
            ("b\ud800", Is.GIVEN),
        ]


def test_ids_are_given_once_or_again() -> None:
    with closing(Ledger()) as ledger:
        assert ledger.give(["a", "b\ud800"]) == set()
        assert ledger.give(["b\ud800", "c"]) == {"b\ud800"}
        assert ledger.given_again(["a", "b\ud800", "c"]) == {"b\ud800"}
        assert ledger.given_among(["a", "d"]) == {"a"}
