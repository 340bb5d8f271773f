"""A tiny vision-language model with random weights, like embedders that build on Qwen2-VL."""

from __future__ import annotations

from pathlib import Path

import torch
from tiny_rerankers import byte_tokenizer
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLImageProcessorPil

from llama_index_gap.models.checkpoints.checkpoint import quiet_transformers

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
)


def make_tiny_qwen2_vl(folder: Path, *, template: str | None = TEMPLATE) -> Path:
    """Write a plain checkpoint, without ``modules.json``, so that nothing defines its pooling.

    Args:
        folder: where to write; made if missing.
        template: the chat template; None for none.
    """
    tokenizer = byte_tokenizer()
    ids = tokenizer.get_vocab()
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": len(ids),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 4096,
            "initializer_range": 0.5,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": [4, 2, 2],
            },
        },
        vision_config={
            "depth": 2,
            "embed_dim": 32,
            "hidden_size": 32,
            "num_heads": 2,
            "mlp_ratio": 2,
            "patch_size": 14,
            "initializer_range": 0.5,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    with quiet_transformers():
        Qwen2VLForConditionalGeneration(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        Qwen2VLImageProcessorPil(
            size={"shortest_edge": 28 * 28, "longest_edge": 16 * 28 * 28}
        ).save_pretrained(folder)
    (folder / "processor_config.json").write_text('{"processor_class": "Qwen2VLProcessor"}')
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder
