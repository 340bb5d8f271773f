"""Tiny encoders with random weights, in the file layout of the hub's checkpoints.

They know nothing about images or words. They exist so that the demo, the tests and the
benchmarks run the very code that loads a real checkpoint, offline and in seconds.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_index_gap.models.checkpoints.checkpoint import quiet_transformers

if TYPE_CHECKING:
    from transformers import CLIPTokenizer, PreTrainedTokenizerBase


_TOWER: dict[str, object] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
_SENTENCES = (
    "the quick brown fox jumps over the lazy dog",
    "pack my box with five dozen liquor jugs",
    "how vexingly quick daft zebras jump",
    "a red bicycle leans on the wall of a house",
    "players celebrate with a silver trophy",
)


def make_tiny_clip(
    folder: str | Path,
    *,
    seed: int = 0,
    text_config: dict[str, object] | None = None,
    vision_config: dict[str, object] | None = None,
    projection_dim: int = 16,
) -> Path:
    """Write a random-weight CLIP checkpoint, laid out as openai/clip-vit-base-patch32 is.

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
        **_TOWER,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 77,
        "bos_token_id": tokenizer.bos_token_id,
        # transformers pools at the end token only if its id is not 2 (its old default).
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        **(text_config or {}),
    }
    vision = {**_TOWER, "image_size": 32, "patch_size": 8, **(vision_config or {})}
    side = int(str(vision["image_size"]))
    image_processor = CLIPImageProcessorPil(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    )
    torch.manual_seed(seed)
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=projection_dim)
    return save_checkpoint(Path(folder), CLIPModel(config), tokenizer, image_processor)


def make_tiny_siglip(folder: str | Path, *, seed: int = 0, gemma_tokenizer: bool = False) -> Path:
    """Write a random-weight SigLIP checkpoint, laid out as google/siglip-base-patch16-224 is.

    Args:
        folder: where to write; made if missing.
        seed: seed of the random weights; the same seed gives the same files.
        gemma_tokenizer: give it a Gemma tokenizer that keeps capital letters, as the
            fixed-resolution SigLIP 2 checkpoints have, in place of SigLIP's own
            SentencePiece model (which needs the extra ``siglip``).

    Returns:
        The folder.
    """
    import torch
    from transformers import SiglipConfig, SiglipImageProcessorPil, SiglipModel

    tokenizer = _gemma_tokenizer() if gemma_tokenizer else _siglip_tokenizer()
    text = {
        **_TOWER,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 64,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {**_TOWER, "image_size": 32, "patch_size": 8}
    image_processor = SiglipImageProcessorPil(size={"height": 32, "width": 32})
    torch.manual_seed(seed)
    config = SiglipConfig(text_config=text, vision_config=vision)
    return save_checkpoint(Path(folder), SiglipModel(config), tokenizer, image_processor)


def make_tiny_dinov2(folder: str | Path, *, seed: int = 0) -> Path:
    """Write a random-weight DINOv2 checkpoint, laid out as facebook/dinov2-base is.

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
    """Write a model and what belongs to it as the hub's checkpoints are; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with quiet_transformers():
        for part in parts:
            part.save_pretrained(folder)  # type: ignore[attr-defined]
    return folder


def clip_tokenizer(
    tokens: Sequence[str], merges: Sequence[tuple[str, str]] = (), *, max_length: int = 77
) -> CLIPTokenizer:
    """A tokenizer of CLIP's kind.

    Args:
        tokens: the vocabulary but for the marks of start and end.
        merges: pairs of tokens that become one, the most important first.
        max_length: longest text in tokens, marks included.
    """
    from transformers import CLIPTokenizer

    # The end token last, as in OpenAI's vocabulary.
    vocab = {
        token: index for index, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])
    }
    pairs: Any = list(merges)  # what it takes, whatever its annotation says
    return CLIPTokenizer(vocab=vocab, merges=pairs, model_max_length=max_length)


def clip_letters() -> list[str]:
    """The tokens that CLIP's vocabulary begins with: letters, and letters that end a word."""
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    return [*letters, *(letter + "</w>" for letter in letters)]


def _siglip_tokenizer() -> PreTrainedTokenizerBase:
    import sentencepiece
    from transformers import SiglipTokenizer

    with tempfile.TemporaryDirectory() as scratch:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(_SENTENCES * 20),
            model_prefix=f"{scratch}/spiece",
            vocab_size=64,
            hard_vocab_limit=False,
            bos_id=-1,
            minloglevel=2,
        )
        return SiglipTokenizer(vocab_file=f"{scratch}/spiece.model")


def _gemma_tokenizer() -> PreTrainedTokenizerBase:
    from transformers import GemmaTokenizer

    letters = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    bytes_ = [f"<0x{value:02X}>" for value in range(256)]
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *letters, *bytes_]
    vocab = {token: index for index, token in enumerate(tokens)}
    return GemmaTokenizer(vocab=vocab, merges=[], model_max_length=64, padding_side="right")
