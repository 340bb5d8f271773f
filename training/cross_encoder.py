"""The newsroom's cross-encoder as it is trained: a Qwen2-VL of 2 million parameters.

It is written as jina-reranker-m0 is, so that the code that runs the real one runs it. Its words
begin as the dual encoder's; all else is random.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AttentionInterface, Qwen2VLConfig, Qwen2VLImageProcessorPil, Qwen2VLModel
from transformers.models.qwen2_vl.modeling_qwen2_vl import apply_rotary_pos_emb_vision
from transformers.vision_utils import get_vision_position_ids

from llama_index_gap.demo.drawing import SIZE
from llama_index_gap.demo.newsroom import CHECKPOINT, Article
from llama_index_gap.modality import Modality
from llama_index_gap.models.rerankers.jina_reranker import (
    DOCUMENT,
    LOGIT_BIAS,
    QUERY,
    SCORE_TOKEN_ID,
)
from training.train_dual_encoder import make_tokenizer

_START, _END, _IMAGE, _VIDEO = (
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
WIDTH = 128  # that of the dual encoder's words
_HEADS, _KEY_HEADS = 4, 2
_PATCH, _MERGE = 12, 2
_GRID = SIZE // _PATCH
SEEN = (_GRID // _MERGE) ** 2  # tokens of an image
CLAIMS = ("who", "event", "place", "time", "thing", "other thing", "relation", "setting", "sky")

_IMAGES: dict[str, Any] = {
    "min_pixels": SIZE**2,
    "max_pixels": SIZE**2,
    "patch_size": _PATCH,
    "temporal_patch_size": 2,
    "merge_size": _MERGE,
}


class CrossEncoder(nn.Module):
    """The model as it is trained; some of its parts are not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.tokenizer = make_tokenizer([DOCUMENT, QUERY])
        self.tokenizer.add_tokens([_START, _END, _IMAGE, _VIDEO], special_tokens=True)
        self._vocabulary = self.tokenizer.get_vocab()
        self._image_processor = Qwen2VLImageProcessorPil(**_IMAGES)
        self.settings = _settings(self._vocabulary)
        config = Qwen2VLConfig.from_dict(self.settings | {"torch_dtype": "float32"})
        self.model: Any = Qwen2VLModel(config)
        self.model.language_model.set_attn_implementation(_ATTENTION)
        inner, logit = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 1)
        nn.init.constant_(logit.bias, LOGIT_BIAS)
        self.score = nn.Sequential(inner, nn.ReLU(), logit)
        self.verdicts = nn.Linear(WIDTH, 3 * len(CLAIMS))  # not asked, holds, does not hold
        self.caption_scale = nn.Parameter(torch.tensor(-1.0))
        self._begin()

    @torch.no_grad()
    def _begin(self) -> None:
        """Begin with known words, and let half of the heads attend to equal words."""
        stored = load_file(CHECKPOINT / "model.safetensors")
        known = stored["text_model.embeddings.token_embedding.weight"].float()
        words = json.loads((CHECKPOINT / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]
        embeddings: Tensor = self.model.get_input_embeddings().weight.normal_(std=0.5)
        for word in words.keys() & self._vocabulary.keys():
            embeddings[self._vocabulary[word]] = known[words[word]] * (0.5 / known.std())
        for layer in self.model.language_model.layers:
            attention = layer.self_attn
            keys = attention.k_proj.weight.view(_KEY_HEADS, -1, WIDTH)
            attention.q_proj.weight.view(_HEADS, -1, WIDTH)[:: _HEADS // _KEY_HEADS] = keys

    def see(self, articles: Sequence[Article]) -> Tensor:
        """The vectors of n images for the language model; shape (n, tokens, width)."""
        found = self._image_processor([a.image() for a in articles], return_tensors="pt")
        vectors = _see(self.model.visual, found["pixel_values"], found["image_grid_thw"])
        return vectors.view(len(articles), SEEN, WIDTH)

    def read(
        self, modality: Modality, articles: Sequence[Article], queries: Sequence[str], picks: Tensor
    ) -> Reading:
        """Read the text or image of n articles, each with k queries that do not see each other.

        Args:
            modality: what is read of the articles: their headlines or their images.
            articles: the n articles.
            queries: any number of texts.
            picks: which of them are paired with each article, shape (n, k).
        """
        embed = self.model.get_input_embeddings()
        documents, positions, ends = self._documents(modality, articles)
        texts = [[*ids, SCORE_TOKEN_ID] for ids in self._encode(QUERY + text for text in queries)]
        chosen = [texts[pick] for pick in picks.flatten().tolist()]
        asked = torch.tensor([token for ids in chosen for token in ids])
        layout = _Layout([len(each) for each in documents], [len(ids) for ids in chosen])
        begin = ends.repeat_interleave(picks.shape[1])[layout.query_of]
        hidden = self.model.language_model(
            inputs_embeds=torch.cat([*documents, embed(asked)])[None],
            position_ids=torch.cat([*positions, (begin + layout.place).expand(3, -1)], 1)[:, None],
            attention_mask=None,
            use_cache=False,
            layout=layout,
        ).last_hidden_state[0, layout.tokens_of_documents :]
        return Reading(hidden, asked, layout, picks.shape)

    def _documents(
        self, modality: Modality, articles: Sequence[Article]
    ) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """The embeddings and positions of each document, and where its query begins."""
        embed = self.model.get_input_embeddings()
        if modality == "text":
            texts = self._encode(f"{DOCUMENT}{article.headline}\n" for article in articles)
            embedded = embed(torch.tensor([token for ids in texts for token in ids]))
            lengths = [len(ids) for ids in texts]
            positions = [torch.arange(length).expand(3, -1) for length in lengths]
            return list(embedded.split(lengths)), positions, torch.tensor(lengths)
        (before,) = self._encode([DOCUMENT])
        start, end, image = (self._vocabulary[each] for each in (_START, _END, _IMAGE))
        ids = torch.tensor([*before, start, *SEEN * [image], end])
        words = embed(ids)
        documents = [
            torch.cat([words[: len(before) + 1], vectors.to(words.dtype), words[-1:]])
            for vectors in self.see(articles)
        ]
        place, _ = self.model.get_rope_index(
            ids[None],
            mm_token_type_ids=(ids == image)[None].int(),
            image_grid_thw=torch.tensor([[1, _GRID, _GRID]]),
        )
        return (
            documents,
            len(articles) * [place[:, 0]],
            torch.full((len(articles),), int(place.max()) + 1),
        )

    def _encode(self, texts: Iterable[str]) -> list[list[int]]:
        found = self.tokenizer.backend_tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [each.ids for each in found]

    def tokens(self, texts: Iterable[str]) -> list[int]:
        """The tokens of texts, without the ``{}`` of a template."""
        return [
            token for ids in self._encode(text.replace("{}", "") for text in texts) for token in ids
        ]

    def caption_loss(self, reading: Reading, own: int) -> Tensor:
        """The loss of predicting, word by word, each article's own queries: the first of its k."""
        (before,) = self._encode([QUERY])
        at = reading.words(len(before), own)
        logits = reading.hidden[at] @ self.model.get_input_embeddings().weight.T
        return cross_entropy(self.caption_scale.exp() * logits, reading.asked[at + 1])

    def save(self, folder: Path) -> None:
        """Write the checkpoint."""
        self.tokenizer.save_pretrained(folder)
        for name, content in (
            ("config.json", self.settings),
            (
                "preprocessor_config.json",
                _IMAGES | {"image_processor_type": "Qwen2VLImageProcessor"},
            ),
        ):
            (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        parts = {
            "model.": self.model.language_model,
            "visual.": self.model.visual,
            "score.": self.score,
        }
        tensors = {
            prefix + key: tensor.half().contiguous()
            for prefix, part in parts.items()
            for key, tensor in part.state_dict().items()
        }
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _see(visual: Any, patches: Tensor, grids: Tensor) -> Tensor:
    """Run the vision tower over n images of one size, all at once.

    It computes what ``Qwen2VisionTransformerPretrainedModel`` does. That one attends to image after
    image and convolves, which takes four times as long to train on a processor.

    Args:
        visual: the tower.
        patches: of all images, shape (n * patches, values).
        grids: the ``image_grid_thw`` of each image, shape (n, 3), all rows alike.

    Returns:
        Shape (n * tokens, width).
    """
    places = get_vision_position_ids(grids[:1], _MERGE)
    hidden = patches @ visual.patch_embed.proj.weight.flatten(1).T
    hidden = hidden.view(len(grids), -1, hidden.shape[-1])
    turns = visual.rotary_pos_emb(hidden, places)
    for block in visual.blocks:
        attention = block.attn
        parts = attention.qkv(block.norm1(hidden)).view(
            *hidden.shape[:2], 3, attention.num_heads, attention.head_dim
        )
        asks, keys, values = parts.unbind(2)  # each (n, patches, heads, head_dim)
        asks, keys = apply_rotary_pos_emb_vision(asks, keys, *turns)
        asks, keys, values = (
            part.transpose(1, 2).to(values.dtype) for part in (asks, keys, values)
        )
        weights = (attention.scaling * asks @ keys.mT).softmax(-1)
        mixed = (weights.to(values.dtype) @ values).transpose(1, 2).reshape(hidden.shape)
        hidden = hidden + attention.proj(mixed)
        hidden = hidden + block.mlp(block.norm2(hidden))
    merged: Tensor = visual.merger(hidden)
    return merged


class _Layout:
    """Where documents and their queries lie in one row of tokens: documents first.

    Args:
        documents: lengths of n documents.
        queries: lengths of n * k queries, k after each document.

    Attributes:
        query_of: for each token of the queries, the number of its query.
        place: for each token of the queries, its place in the query.
    """

    def __init__(self, documents: Sequence[int], queries: Sequence[int]) -> None:
        self.each = len(queries) // len(documents)
        self.tokens_of_documents = sum(documents)
        self.documents, self.is_document = _grid(documents)
        self.queries, self.is_query = _grid(queries)
        self.lengths = torch.tensor(queries)
        self.query_of, self.place = self.is_query.nonzero().T
        longest = self.documents.shape[1]
        self.before_document = _later_ones(longest)
        self.before_query = torch.cat(
            [
                torch.zeros(len(documents), 1, self.queries.shape[1], longest).masked_fill(
                    ~self.is_document[:, None, None], -torch.inf
                ),
                _later_ones(self.queries.shape[1]).expand(len(documents), 1, -1, -1),
            ],
            dim=-1,
        )[:, :, None]


def _grid(lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """A grid of rows of different lengths, which lie one after the other.

    Returns:
        Where each token lies, shape (rows, longest), and which places of the grid hold a token.
    """
    there = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    where = torch.zeros(there.shape, dtype=torch.long)
    where[there] = torch.arange(sum(lengths))
    return where, there


def _later_ones(length: int) -> Tensor:
    """Minus infinity where the key comes later than the query."""
    return torch.full((length, length), -torch.inf).triu(1)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    layout: _Layout,
    **_: Any,
) -> tuple[Tensor, None]:
    """Let documents attend to themselves, and each query to itself and its document.

    The shapes are those of transformers' AttentionInterface: from (1, heads, tokens, head_dim) to
    (1, tokens, heads, head_dim). (PyTorch's own attention trains slowly on processors.)
    """
    shared = query.shape[1] // key.shape[1]
    parts = (query * scaling, key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1))
    rows = [part[0].transpose(0, 1) for part in parts]  # (tokens, heads, head_dim)
    first = layout.tokens_of_documents
    documents = [_gather(row[:first], layout.documents) for row in rows]
    queries = [_gather(row[first:], layout.queries) for row in rows]

    asks, keys, values = documents
    weights = (asks @ keys.mT + layout.before_document.to(asks.dtype)).softmax(-1)
    of_documents = (weights @ values).transpose(1, 2)[layout.is_document]

    # From here on (n, heads, k, length, head_dim).
    asks, own_keys, own_values = (
        part.view(len(keys), layout.each, *part.shape[1:]).transpose(1, 2) for part in queries
    )
    to_document = (asks.flatten(2, 3) @ keys.mT).view(*asks.shape[:4], -1)
    scores = torch.cat([to_document, asks @ own_keys.mT], dim=-1)
    weights = (scores + layout.before_query.to(asks.dtype)).softmax(-1)
    longest = keys.shape[2]
    of_document = (weights[..., :longest].flatten(2, 3) @ values).view(asks.shape)
    mixed = of_document + weights[..., longest:] @ own_values
    of_queries = mixed.transpose(1, 2).flatten(0, 1).transpose(1, 2)[layout.is_query]
    return torch.cat([of_documents, of_queries])[None].to(query.dtype), None


def _gather(rows: Tensor, where: Tensor) -> Tensor:
    """Tokens in a grid; shape (rows, heads, longest, head_dim)."""
    found = rows.flatten(1).index_select(0, where.flatten())
    return found.view(*where.shape, *rows.shape[1:]).transpose(1, 2)


_ATTENTION = "llama_index_gap_training"
AttentionInterface.register(_ATTENTION, _attend)


@dataclass(frozen=True)
class Reading:
    """The hidden states of queries, each read after an article.

    Attributes:
        hidden: of all their tokens, shape (tokens, width).
        asked: the ids of these tokens.
        layout: how they lie.
        shape: n articles and k queries for each.
    """

    hidden: Tensor
    asked: Tensor
    layout: _Layout
    shape: torch.Size

    @property
    def last(self) -> Tensor:
        """The hidden states of the score tokens, shape (n, k, width)."""
        return self.hidden[self.layout.lengths.cumsum(0) - 1].view(*self.shape, -1)

    def words(self, prompt: int, own: int) -> Tensor:
        """The tokens that come before a word of an article's first ``own`` queries."""
        layout = self.layout
        is_own = layout.query_of % self.shape[1] < own
        before_a_word = layout.place < layout.lengths[layout.query_of] - 2
        return torch.nonzero(is_own & (layout.place >= prompt - 1) & before_a_word)[:, 0]


def _settings(vocabulary: dict[str, int]) -> dict[str, Any]:
    """The content of config.json, in the form of jina-reranker-m0's."""
    return {
        "architectures": ["JinaVLForRanking"],
        "model_type": "qwen2_vl",
        "hidden_size": WIDTH,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": _HEADS,
        "num_key_value_heads": _KEY_HEADS,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        # Slow turns: words that are far from each other are still alike.
        "rope_theta": 10000.0,
        "rope_scaling": {"mrope_section": [4, 6, 6], "rope_type": "default", "type": "default"},
        "max_position_embeddings": 32768,
        "max_window_layers": 4,
        "use_sliding_window": False,
        "tie_word_embeddings": True,
        "attention_dropout": 0.0,
        "initializer_range": 0.088,  # one by the square root of the width
        "torch_dtype": "float16",
        "use_cache": False,
        "vocab_size": len(vocabulary),
        "bos_token_id": vocabulary["<|startoftext|>"],
        "eos_token_id": vocabulary["<|endoftext|>"],
        "vision_start_token_id": vocabulary[_START],
        "vision_end_token_id": vocabulary[_END],
        "image_token_id": vocabulary[_IMAGE],
        "video_token_id": vocabulary[_VIDEO],
        "vision_config": {
            "model_type": "qwen2_vl",
            "hidden_size": WIDTH,
            "embed_dim": 128,
            "depth": 3,
            "num_heads": 4,
            "mlp_ratio": 4,
            "in_chans": 3,
            "patch_size": _PATCH,
            "spatial_patch_size": _PATCH,
            "spatial_merge_size": _MERGE,
            "temporal_patch_size": 2,
        },
    }
