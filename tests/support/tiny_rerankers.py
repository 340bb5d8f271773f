"""Tiny rerankers with random weights, in the layout of real checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertTokenizer,
    PreTrainedTokenizerBase,
    Qwen2Tokenizer,
    Qwen2VLImageProcessorPil,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from llama_index_gap.models.checkpoints.checkpoint import quiet_transformers

_CONTROL_TOKENS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
# The template decides how a pair is written; this one writes all parts of each side in order.
TEMPLATE = (
    "<|im_start|>system\nJudge.<|im_end|>\n<|im_start|>user\n"
    "{% for message in messages if message.role in ['query', 'document'] %}"
    "{{ message.role }}: {% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}{{ '\n' }}{% endfor %}"
    "<|im_end|>{{ '\n<|im_start|>assistant\n' }}"
)


def make_tiny_bert_reranker(folder: Path, *, labels: int = 1, **config: Any) -> Path:
    """Write a BERT with a classifier and 64 tokens, like cross-encoder/ms-marco-MiniLM-L6-v2.

    Args:
        folder: where to write.
        labels: the number of outputs for a pair.
        config: further entries of ``config.json``.
    """
    letters = "abcdefghijklmnopqrstuvwxyz0123456789./:"
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *("##" + x for x in letters)]
    vocab = {token: index for index, token in enumerate(tokens)}
    settings = BertConfig(
        vocab_size=len(vocab),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        num_labels=labels,
        initializer_range=0.5,  # so that scores differ
        **config,
    )
    torch.manual_seed(0)
    with quiet_transformers():
        BertForSequenceClassification(settings).save_pretrained(folder)
        BertTokenizer(vocab=vocab, model_max_length=64).save_pretrained(folder)
    return folder


def make_tiny_qwen_reranker(
    folder: Path, *, template: str = TEMPLATE, no: str | None = "n"
) -> Path:
    """Write a reranker like Qwen/Qwen3-VL-Reranker-2B, which subtracts two words' logits.

    Args:
        folder: where to write.
        template: the chat template.
        no: the word whose logit is subtracted from the logit of "y"; None to subtract none.
    """
    tokenizer = byte_tokenizer()
    ids = tokenizer.get_vocab()
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": len(ids),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "max_position_embeddings": 4096,
            "initializer_range": 0.5,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5e6,
                "mrope_section": [4, 2, 2],
                "mrope_interleaved": True,
            },
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": 32,
            "patch_size": 16,
            "deepstack_visual_indexes": [0],
            "num_position_embeddings": 64,
            "initializer_range": 0.5,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )
    image_processor = Qwen2VLImageProcessorPil(
        patch_size=16, size={"shortest_edge": 32 * 32, "longest_edge": 16 * 32 * 32}
    )
    torch.manual_seed(0)
    with quiet_transformers():
        Qwen3VLForConditionalGeneration(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        image_processor.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(template)
    forward = {"method": "forward", "method_output_name": "logits"}
    files = {
        "processor_config.json": {"processor_class": "Qwen3VLProcessor"},
        "config_sentence_transformers.json": {
            "model_type": "CrossEncoder",
            "activation_fn": "torch.nn.modules.linear.Identity",
            "prompts": {},
            "default_prompt_name": None,
        },
        "modules.json": [
            {
                "idx": 0,
                "name": "0",
                "path": "",
                "type": "sentence_transformers.base.modules.transformer.Transformer",
            },
            {
                "idx": 1,
                "name": "1",
                "path": "1_LogitScore",
                "type": "sentence_transformers.cross_encoder.modules.logit_score.LogitScore",
            },
        ],
        "sentence_bert_config.json": {
            "transformer_task": "any-to-any",
            "modality_config": {
                "text": forward,
                "image": forward,
                "message": {**forward, "format": "structured"},
            },
            "module_output_name": "causal_logits",
        },
        "1_LogitScore/config.json": {
            "true_token_id": ids["y"],
            "false_token_id": None if no is None else ids[no],
        },
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    return folder


def byte_tokenizer() -> PreTrainedTokenizerBase:
    letters = sorted(ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate([*letters, *_CONTROL_TOKENS])}
    return Qwen2Tokenizer(
        vocab=vocab,
        merges=[],
        model_max_length=4096,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        extra_special_tokens=_CONTROL_TOKENS[1:],
        padding_side="left",
    )
