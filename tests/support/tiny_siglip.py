"""A tiny SigLIP with random weights, in the file layout of real checkpoints."""

from __future__ import annotations

import tempfile
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from llama_index_gap.demo.tiny import TOWER, save_checkpoint

_SENTENCES = (
    "the quick brown fox jumps over the lazy dog",
    "pack my box with five dozen liquor jugs",
    "how vexingly quick daft zebras jump",
    "a red bicycle leans on the wall of a house",
    "players celebrate with a silver trophy",
)


def make_tiny_siglip(folder: str | Path, *, seed: int = 0, gemma_tokenizer: bool = False) -> Path:
    """Write a SigLIP checkpoint with random weights, like google/siglip-base-patch16-224.

    Args:
        folder: where to write; made if missing.
        seed: seed of the random weights; the same seed gives the same files.
        gemma_tokenizer: give it a Gemma tokenizer that keeps capital letters, as in the
            fixed-resolution SigLIP 2 checkpoints, instead of SigLIP's SentencePiece model (which
            needs the extra ``siglip``).

    Returns:
        The folder.
    """
    import torch
    from transformers import SiglipConfig, SiglipImageProcessorPil, SiglipModel

    tokenizer = _gemma_tokenizer() if gemma_tokenizer else _siglip_tokenizer()
    text = {
        **TOWER,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 64,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {**TOWER, "image_size": 32, "patch_size": 8}
    image_processor = SiglipImageProcessorPil(size={"height": 32, "width": 32})
    torch.manual_seed(seed)
    config = SiglipConfig(text_config=text, vision_config=vision)
    return save_checkpoint(Path(folder), SiglipModel(config), tokenizer, image_processor)


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
