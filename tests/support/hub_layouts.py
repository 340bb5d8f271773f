"""Tiny repositories for the imitated hub, in the layouts of real ones."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from hub import Repository, files_of
from paths import PARITY
from safetensors.torch import load
from tiny_rerankers import make_tiny_bert_reranker
from tiny_siglip import make_tiny_siglip
from tiny_vision_language import make_tiny_qwen2_vl

from llama_index_gap.demo.tiny import make_tiny_clip, make_tiny_dinov2

CLIP = "openai/clip-vit-base-patch32"
CONVERTED = "c237dc49a33fc61debc9276459120b7eac67e7ef"
"""The commit of CLIP that holds safetensors."""
_OTHER_RUNTIMES = {"tf_model.h5": b"tensorflow" * 10, "flax_model.msgpack": b"flax" * 10}
_CARD = b"---\nlicense: mit\n---\n# A model\n"


def make_repositories(folder: Path) -> dict[str, Repository]:
    """All layouts, by the name of the real repository.

    Args:
        folder: where to make checkpoints.
    """
    clip = files_of(make_tiny_clip(folder / "clip"))
    siglip2 = files_of(make_tiny_siglip(folder / "siglip2", gemma_tokenizer=True))
    bert = files_of(make_tiny_bert_reranker(folder / "bert"))
    dinov2 = files_of(make_tiny_dinov2(folder / "dinov2"))
    vlm = files_of(make_tiny_qwen2_vl(folder / "vlm"))
    nomic_text = _parity("nomic_text_tiny") | {
        name: (PARITY / "jina_clip_tiny" / name).read_bytes()
        for name in ("tokenizer.json", "tokenizer_config.json")
    }
    pickled_clip = _pickled(clip)
    both = clip | {"pytorch_model.bin": pickled_clip["pytorch_model.bin"]}
    own_code = {"modules.json": _json([_module("custom_st.Transformer")]), "custom_st.py": b"x = 1"}
    adapters = {
        "adapter_config.json": _json({"base_model_name_or_path": "vidore/colqwen2-base"}),
        "adapter_model.safetensors": b"adapters" * 100,
        "checkpoint-2310/adapter_config.json": _json({"base_model_name_or_path": "x"}),
        "checkpoint-2310/adapter_model.safetensors": b"adapters" * 100,
        "checkpoint-2310/optimizer.pt": b"optimizer" * 100,
        "tokenizer.json": b"{}",
    }
    open_clip = {
        "open_clip_config.json": b"{}",
        "open_clip_model.safetensors": clip["model.safetensors"] + b"of open_clip",
        "open_clip_pytorch_model.bin": pickled_clip["pytorch_model.bin"],
    }
    revisions: dict[str, dict[str, dict[str, bytes]]] = {
        CLIP: {
            "main": pickled_clip | _OTHER_RUNTIMES,
            CONVERTED: both | _OTHER_RUNTIMES,
        },
        "openai/clip-vit-base-patch16": {"main": pickled_clip | _OTHER_RUNTIMES},
        "openai/clip-vit-large-patch14": {"main": both | _OTHER_RUNTIMES},
        "sentence-transformers/clip-ViT-B-32": {"main": _in_module(pickled_clip)},
        "nomic-ai/nomic-embed-text-v1.5": {
            "main": nomic_text | {"onnx/model.onnx": b"onnx" * 100},
            "refs/pr/56": nomic_text | {"config.json": _native(nomic_text["config.json"])},
        },
        "nomic-ai/nomic-embed-vision-v1.5": {"main": _parity("nomic_vision_tiny")},
        "jinaai/jina-clip-v2": {
            "main": _with_pickle(_parity("jina_clip_tiny")) | {"onnx/model.onnx": b"onnx" * 100}
        },
        "laion/CLIP-ViT-B-32-laion2B-s34B-b79K": {"main": both | open_clip},
        "laion/CLIP-open-clip-only": {"main": open_clip},
        "vidore/colqwen2-v1.0": {"main": adapters},
        "vidore/colqwen2-v1.0-hf": {"main": _parity("colqwen2_tiny")},
        "jinaai/jina-reranker-m0": {"main": _parity("jina_m0_tiny")},
        "google/siglip2-base-patch16-224": {"main": siglip2},
        "facebook/dinov2-base": {"main": dinov2},
        "owner/plain-vision-language": {"main": vlm},
        "llamaindex/vdr-2b-multi-v1": {"main": vlm | own_code},
        "jinaai/jina-embeddings-v5-omni": {"main": _config_only(clip, "jina_omni", "JinaOmni")},
        "jinaai/jina-reranker-v3": {
            "main": _config_only(clip, "qwen3", "JinaForRanking", own=True)
        },
        "owner/own-model-type": {"main": _config_only(clip, "mine", "Mine", own=True)},
        "cross-encoder/ms-marco-MiniLM-L6-v2": {"main": bert},
        "timm/vit_base_patch16_224": {
            "main": {
                "config.json": _json(
                    {"architecture": "vit_base_patch16_224", "num_classes": 9, "pretrained_cfg": {}}
                ),
                "model.safetensors": clip["model.safetensors"],
            }
        },
        "owner/gguf": {
            "main": {"model-q4.gguf": b"gguf" * 100, "config.json": clip["config.json"]}
        },
        "owner/onnx": {"main": {"onnx/model.onnx": b"onnx", "config.json": clip["config.json"]}},
        "owner/empty": {"main": {".gitattributes": b"", "README.md": _CARD}},
    }
    gated = "facebook/dinov3-vitb16-pretrain-lvd1689m"
    return {name: Repository(each) for name, each in revisions.items()} | {
        gated: Repository({"main": dinov2}, gated=True),
        "owner/often": Repository({"main": clip}, refuses=429),
        "owner/broken": Repository({"main": clip}, refuses=503),
        "owner/data": Repository({"main": {"data.csv": b"a,b"}}, kind="datasets"),
    }


def _parity(name: str) -> dict[str, bytes]:
    files = files_of(PARITY / name)
    return {each: content for each, content in files.items() if not each.startswith("parity")}


def _pickled(files: Mapping[str, bytes]) -> dict[str, bytes]:
    return {
        name: content
        for name, content in _with_pickle(files).items()
        if name != "model.safetensors"
    }


def _with_pickle(files: Mapping[str, bytes]) -> dict[str, bytes]:
    made = io.BytesIO()
    torch.save(load(files["model.safetensors"]), made)
    return {**files, "pytorch_model.bin": made.getvalue()}


def _in_module(files: Mapping[str, bytes]) -> dict[str, bytes]:
    inner = {f"0_CLIPModel/{name}": content for name, content in files.items()}
    module = _module("sentence_transformers.models.CLIPModel", "0_CLIPModel")
    return {**inner, "modules.json": _json([module])}


def _module(kind: str, path: str = "") -> dict[str, Any]:
    return {"idx": 0, "name": "0", "path": path, "type": kind}


def _native(config: bytes) -> bytes:
    """A Nomic text model's settings with transformers' names, as in refs/pr/56."""
    old = json.loads(config)
    return _json(
        {
            "architectures": ["NomicBertModel"],
            "model_type": "nomic_bert",
            "vocab_size": old["vocab_size"],
            "hidden_size": old["n_embd"],
            "num_hidden_layers": old["n_layer"],
            "num_attention_heads": old["n_head"],
            "intermediate_size": old["n_inner"],
            "hidden_act": "silu",
            "layer_norm_eps": old["layer_norm_epsilon"],
            "max_position_embeddings": 2048,
            "type_vocab_size": old["type_vocab_size"],
            "rope_parameters": {"rope_type": "default", "rope_theta": old["rotary_emb_base"]},
        }
    )


def _config_only(
    files: Mapping[str, bytes], model_type: str, architecture: str, *, own: bool = False
) -> dict[str, bytes]:
    """A model that cannot be loaded, so that its weights must not be fetched."""
    config: dict[str, Any] = {"model_type": model_type, "architectures": [architecture]}
    if own:
        config["auto_map"] = {"AutoModel": f"modeling.{architecture}"}
    return {**files, "config.json": _json(config), "modeling.py": b"x = 1"}


def _json(content: Any) -> bytes:
    return json.dumps(content).encode()
