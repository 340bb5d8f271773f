"""Runs sequences of different lengths through a causal language model in one pass, unpadded.

The sequences follow each other in a single row, and attention is computed for each one separately.
A sequence may continue a prefix whose keys and values are cached, and its own prefix can be cached.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Item = TypeVar("Item")

_ATTENTION = "llama_index_gap_packed"


@dataclass(frozen=True)
class Prefix:
    """The beginning of a sequence: the keys and values that later tokens need.

    Attributes:
        layers: keys and values of each layer, both of shape (1, key heads, length, head_dim);
            never written to.
        next_position: position of the next token; less than the length after an image, whose tokens
            share positions.
    """

    layers: tuple[tuple[Tensor, Tensor], ...]
    next_position: int

    @property
    def length(self) -> int:
        """Number of tokens."""
        return self.layers[0][0].shape[2]

    @property
    def nbytes(self) -> int:
        """Bytes of its keys and values."""
        return sum(tensor.nbytes for layer in self.layers for tensor in layer)

    def cut(self, length: int) -> Prefix:
        """The first ``length`` tokens; all of them must be text."""
        layers = tuple((keys[:, :, :length], values[:, :, :length]) for keys, values in self.layers)
        return Prefix(layers, next_position=length)


@dataclass
class Piece:
    """The part of a sequence that a pass computes: all of it, or what follows a cached prefix.

    Attributes:
        embeddings: embeddings of the tokens, shape (length, width).
        positions: positions of the tokens in time, height and width, shape (3, length).
        past: the prefix before these tokens; None if there is none.
        keep: number of first tokens whose keys and values ``kept`` returns.
    """

    embeddings: Tensor
    positions: Tensor
    past: Prefix | None = None
    keep: int = 0
    _kept: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    @property
    def length(self) -> int:
        """Number of tokens."""
        return len(self.embeddings)

    @property
    def kept(self) -> Prefix:
        """The first ``keep`` tokens, after the pass."""
        return Prefix(tuple(self._kept), int(self.positions[:, : self.keep].max()) + 1)

    @cached_property
    def mask(self) -> Tensor | None:
        """The tokens (columns) that each new token (row) attends to; None for all before it."""
        if self.past is None:
            return None
        shape = (1, 1, self.length, self.past.length + self.length)
        every = torch.ones(shape, dtype=torch.bool, device=self.embeddings.device)
        return every.tril(diagonal=self.past.length)

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Put the prefix's keys and values before those of the new tokens."""
        if self.keep:
            # Copied, because a slice would keep the tensors of the whole pass in memory.
            self._kept.append((keys[:, :, : self.keep].clone(), values[:, :, : self.keep].clone()))
        if self.past is None:
            return keys, values
        past_keys, past_values = self.past.layers[layer]
        return torch.cat([past_keys, keys], dim=2), torch.cat([past_values, values], dim=2)


def in_batches(
    items: Iterable[Item],
    weight: Callable[[Item], int],
    *,
    most_weight: int,
    most_items: int | None = None,
) -> Iterator[list[Item]]:
    """Split items, in their order, into the fewest batches within the limits.

    Args:
        items: the items to split.
        weight: gives the weight of an item; an item that is too heavy gets its own batch.
        most_weight: maximum weight of a batch.
        most_items: maximum number of items in a batch; None for any number.
    """
    batch: list[Item] = []
    total = 0
    for item in items:
        if batch and (total + weight(item) > most_weight or len(batch) == most_items):
            yield batch
            batch, total = [], 0
        batch.append(item)
        total += weight(item)
    if batch:
        yield batch


def use_packing(model: PreTrainedModel) -> None:
    """Prepare a language model for ``run_packed``; it cannot do anything else then."""
    from transformers import AttentionInterface

    AttentionInterface.register(_ATTENTION, _attend)
    model.set_attn_implementation(_ATTENTION)


def run_packed(model: nn.Module, pieces: Sequence[Piece]) -> Tensor:
    """Run a language model over n pieces.

    Args:
        model: prepared by ``use_packing``.
        pieces: n sequences; only their ``kept`` changes.

    Returns:
        The final hidden state of the last token of each piece, shape (n, width).
    """
    hidden: Tensor = model(
        inputs_embeds=torch.cat([piece.embeddings for piece in pieces])[None],
        position_ids=torch.cat([piece.positions for piece in pieces], dim=1)[:, None],
        use_cache=False,
        pieces=pieces,
    ).last_hidden_state
    lengths = torch.tensor([piece.length for piece in pieces], device=hidden.device)
    return hidden[0, lengths.cumsum(0) - 1]


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    pieces: Sequence[Piece],
    **_: Any,
) -> tuple[Tensor, None]:
    """Compute the attention of each piece to itself, as transformers' AttentionInterface asks.

    Inputs have the shape (1, heads, tokens of all pieces, head_dim), the output (1, tokens, heads,
    head_dim).
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    lengths = [piece.length for piece in pieces]
    mixed = []
    for piece, q, k, v in zip(
        pieces,
        *(torch.split(tensor, lengths, dim=2) for tensor in (query, key, value)),
        strict=True,
    ):
        keys, values = piece.extend(module.layer_idx, k, v)
        mixed.append(
            sdpa_attention_forward(module, q, keys, values, piece.mask, scaling=scaling)[0]
        )
    return torch.cat(mixed, dim=1), None
