"""Tiny encoders with random weights, in the file layout of real checkpoints.

They know nothing about images or words. They let examples, tests and benchmarks run the code that
loads a real checkpoint, offline and in seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_index_gap.models.checkpoints.checkpoint import quiet_transformers

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

TOWER: dict[str, object] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


def make_tiny_clip(
    folder: str | Path,
    *,
    seed: int = 0,
    text_config: dict[str, object] | None = None,
    vision_config: dict[str, object] | None = None,
    projection_dim: int = 16,
) -> Path:
    """Write a CLIP checkpoint with random weights, in the layout of openai/clip-vit-base-patch32.

    Args:
        folder: where to write; made if missing.
        seed: seed of the random weights; the same seed gives the same files.
        text_config: overrides of the text tower's sizes.
        vision_config: overrides of the vision tower's sizes.
        projection_dim: dimension of the shared space.

    Returns:
        The folder.
    """
    import torch
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

    tokenizer = clip_tokenizer(clip_letters())
    text = {
        **TOWER,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 77,
        "bos_token_id": tokenizer.bos_token_id,
        # transformers pools at the end token only if its id is not 2 (its old default).
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        **(text_config or {}),
    }
    vision = {**TOWER, "image_size": 32, "patch_size": 8, **(vision_config or {})}
    size = int(str(vision["image_size"]))
    image_processor = CLIPImageProcessorPil(
        size={"shortest_edge": size}, crop_size={"height": size, "width": size}
    )
    torch.manual_seed(seed)
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=projection_dim)
    return save_checkpoint(Path(folder), CLIPModel(config), tokenizer, image_processor)


def make_tiny_dinov2(folder: str | Path, *, seed: int = 0) -> Path:
    """Write a DINOv2 checkpoint with random weights, in the layout of facebook/dinov2-base.

    Args:
        folder: where to write; made if missing.
        seed: seed of the random weights; the same seed gives the same files.

    Returns:
        The folder.
    """
    import torch
    from transformers import BitImageProcessorPil, Dinov2Config, Dinov2Model

    image_processor = BitImageProcessorPil(
        size={"shortest_edge": 48}, crop_size={"height": 42, "width": 42}
    )
    torch.manual_seed(seed)
    config = Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=42, patch_size=14
    )
    return save_checkpoint(Path(folder), Dinov2Model(config), image_processor)


def save_checkpoint(folder: Path, *parts: object) -> Path:
    """Write a model with its tokenizer and processor as a checkpoint; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with quiet_transformers():
        for part in parts:
            part.save_pretrained(folder)  # type: ignore[attr-defined]
    return folder


def clip_tokenizer(
    tokens: Sequence[str], merges: Sequence[tuple[str, str]] = (), *, max_length: int = 77
) -> CLIPTokenizer:
    """A tokenizer like CLIP's.

    Args:
        tokens: the vocabulary without the start and end tokens.
        merges: pairs of tokens to join, the most important first.
        max_length: the most tokens of a text, with start and end.
    """
    from transformers import CLIPTokenizer

    # The end token comes last, as in OpenAI's vocabulary.
    vocab = {
        token: index for index, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])
    }
    pairs: Any = list(merges)  # the library's annotation is wrong
    return CLIPTokenizer(vocab=vocab, merges=pairs, model_max_length=max_length)


def clip_letters() -> list[str]:
    """The first tokens of CLIP's vocabulary: each letter, and each letter at the end of a word."""
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    return [*letters, *(letter + "</w>" for letter in letters)]
