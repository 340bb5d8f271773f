"""From a name to a loaded encoder."""

from __future__ import annotations

from llama_index_gap.models.base import Encoder
from llama_index_gap.models.checkpoint import find_checkpoint
from llama_index_gap.models.runtime import Dtype, resolve_device, resolve_dtype


def load_encoder(
    name: str,
    *,
    device: str | None = None,
    dtype: Dtype = "auto",
    max_text_tokens: int | None = None,
    query_prompt: str | None = None,
    document_prompt: str | None = None,
    revision: str | None = None,
    cache_folder: str | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> Encoder:
    """Load the encoder that a checkpoint holds.

    Args:
        name: a folder or a hub name.
        device: a torch device; None for a GPU if there is one.
        dtype: number format of the weights; ``"auto"`` for bfloat16 where it is fast.
        max_text_tokens: cut texts earlier than the checkpoint does.
        query_prompt: put before each query; None for the checkpoint's own.
        document_prompt: put before each document; None for the checkpoint's own.
        revision: branch, tag or commit on the hub.
        cache_folder: where downloads are kept.
        trust_remote_code: run Python code that comes with the checkpoint.
        allow_pickle: read weights in pickle format where there are no safetensors.

    Raises:
        ModelError: the checkpoint cannot be found or loaded.
        ValueError: an argument does not fit this machine or the checkpoint.
    """
    from llama_index_gap.models.sentence_transformer import SentenceTransformerEncoder

    device = resolve_device(device)
    checkpoint = find_checkpoint(
        name,
        revision=revision,
        cache_folder=cache_folder,
        trust_remote_code=trust_remote_code,
        allow_pickle=allow_pickle,
    )
    return SentenceTransformerEncoder(
        checkpoint,
        device=device,
        dtype=resolve_dtype(dtype, device),
        max_text_tokens=max_text_tokens,
        query_prompt=query_prompt,
        document_prompt=document_prompt,
        trust_remote_code=trust_remote_code,
        allow_pickle=allow_pickle,
    )
