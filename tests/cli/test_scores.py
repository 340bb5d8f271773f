from __future__ import annotations

import math

from llama_index.core.schema import NodeRelationship, RelatedNodeInfo, TextNode

from llama_index_gap.cli.scores import shares
from llama_index_gap.nodes import ScoredNode
from llama_index_gap.results import FusionUsed, SearchResult, documents_of


def shares_of(fused: float, **scores: float) -> str:
    document = {NodeRelationship.SOURCE: RelatedNodeInfo(node_id="a")}
    hit = ScoredNode(node=TextNode(relationships=document), score=fused, scores=scores)
    result = SearchResult(documents_of([hit]), fusion=FusionUsed("background", "intent"))
    return shares(result, result[0])


def test_with_intent_each_leg_has_its_share_of_the_odds() -> None:
    """Odds of 2 by the text and 1 by the image are half and a quarter of 4."""
    evidence = {"text_evidence": math.log(2), "image_evidence": 0.0}

    found = shares_of(math.log(4), text=0.7, image=0.3, **evidence)
    assert found == ": by text 50%, image 25%, both 25%"


def test_legs_with_too_few_vectors_have_no_shares() -> None:
    """They add nothing: even odds by each leg, and in all."""
    assert shares_of(0.0, text=0.7, image=0.3, text_evidence=0.0, image_evidence=0.0) == ""
