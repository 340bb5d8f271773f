"""Selects the files of a repository that make the model, and explains why one holds no model."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from llama_index_gap.model_settings import LoadingSettings
from llama_index_gap.models.base import ModelError
from llama_index_gap.models.checkpoints.checkpoint import Checkpoint, list_some
from llama_index_gap.models.presets import PRESETS

ALLOW_PICKLE = "allow_pickle=True (on the command line --allow-pickle)"
TRUST_REMOTE_CODE = "trust_remote_code=True (on the command line --trust-remote-code)"

MODULES = "modules.json"
_SETTINGS = (MODULES, "config.json", "config_sentence_transformers.json", "adapter_config.json")
_INDEX = ".index.json"
_ROUTER = "router_config.json"
_TEXTS = {".json", ".txt", ".model", ".jinja"}
# Files of other runtimes and libraries, and leftovers of training.
_OTHER_FOLDER = re.compile(
    r"(checkpoint|global_step)[-_]?\d+|onnx\w*|openvino\w*|coreml\w*|gguf\w*"
)
_OTHER_FILE = re.compile(
    r"open_clip_.*|consolidated.*|trainer_state\.json|all_results\.json|\w+_results\.json"
    r"|.*\.index\.fp\d+\.json|.*\.fp(16|32)\.index\.json"
)
_PICKLES = re.compile(r".+\.(bin|pt|pth|ckpt|pkl)")
_NO_WEIGHTS = re.compile(r"(training_args|optimizer|scheduler|rng_state|scaler|random_states)\b.*")
_OTHER_FORMATS = {
    "GGUF (for llama.cpp)": re.compile(r".+\.gguf"),
    "ONNX": re.compile(r".+\.onnx"),
    "OpenVINO": re.compile(r"(.+/)?openvino\w*\.(xml|bin)"),
    "TensorFlow": re.compile(r".+\.(h5|tflite|pb)"),
    "Flax": re.compile(r".+\.msgpack"),
    "Core ML": re.compile(r".+\.ml(model|package.*)"),
    "Rust": re.compile(r".+\.ot"),
}
_REPOSITORY_FILES = {".gitattributes", ".gitignore", "README.md", "LICENSE", "LICENSE.txt"}


def is_setting(file: str) -> bool:
    """Whether a file describes the other files, and so must be read first."""
    path = PurePosixPath(file)
    known = path.name in _SETTINGS or path.name.endswith(_INDEX)
    return known and not _is_other(path)


def needed_files(
    names: Sequence[str], checkpoint: Checkpoint, settings: LoadingSettings
) -> list[str]:
    """The files that make the model, with each weight once.

    Safetensors are preferred to pickles, one file to its shards, and full precision to variants.
    Files of other runtimes, and leftovers of training, are left out.

    Args:
        names: all files of the repository or folder, relative to it.
        checkpoint: a checkpoint whose ``is_setting`` files can be read already.
        settings: what the caller allows.

    Raises:
        ModelError: the files hold no model that may be loaded; says what they hold, and the way
            out.
    """
    usable = {name for name in names if not _is_other(PurePosixPath(name))}
    places = _places(usable, checkpoint, settings)
    weights: set[str] = set()
    pickled: list[str] = []
    for place in places:
        found = _weights(usable, place, checkpoint, allow_pickle=settings.allow_pickle)
        weights |= found
        here = sorted(name for name in usable if _is_pickle(name, place))
        if here and not found:
            pickled.append(here[0])
    if pickled and not settings.allow_pickle:
        if weights:
            raise ModelError(
                f"{checkpoint.name}: {pickled[0]} holds pickled weights, which can carry code; "
                f"pass {ALLOW_PICKLE} if you trust its makers, or save the model again as "
                "safetensors"
            )
        raise ModelError(_only_pickles(checkpoint, pickled[0]))
    if not weights:
        raise ModelError(_no_weights(names, checkpoint, pickled))
    anywhere = settings.trust_remote_code  # a model's own code may read any file
    texts = {
        name
        for name in usable
        if _is_text(name, anywhere)
        and (anywhere or any(_lies_in(name, place) for place in [*places, *_EXTRA]))
        and not (name.endswith(_INDEX) and name not in weights)
    }
    more = {name for name in usable if name.endswith(".safetensors")} if anywhere else set()
    adapters = {name for name in usable if re.fullmatch(r"adapter_model[\w.-]*\.safetensors", name)}
    doubles = {name for place in places for name in _doubles(usable, place, weights)}
    return sorted(weights | texts | adapters | (more - doubles))


class OnlyAdaptersError(ModelError):
    """A repository that holds adapters but no whole model."""


_EXTRA = ("additional_chat_templates/",)


def _is_other(path: PurePosixPath) -> bool:
    hidden = any(part.startswith(".") for part in path.parts)
    folder = any(_OTHER_FOLDER.fullmatch(part.lower()) for part in path.parts[:-1])
    return hidden or folder or bool(_OTHER_FILE.fullmatch(path.name))


def _is_text(name: str, code: bool) -> bool:
    path = PurePosixPath(name)
    return path.suffix in _TEXTS or name == "README.md" or (code and path.suffix == ".py")


def _lies_in(name: str, place: str) -> bool:
    """Whether a file belongs to a place: at or below a module's folder, or directly in the root."""
    return name.startswith(place) if place else "/" not in name


def _is_pickle(name: str, place: str) -> bool:
    own = name.removeprefix(place)
    plain = name.startswith(place) and "/" not in own
    return plain and bool(_PICKLES.fullmatch(own)) and not _NO_WEIGHTS.match(own)


def _places(usable: set[str], checkpoint: Checkpoint, settings: LoadingSettings) -> list[str]:
    """The places of weights: the root, and the folders of sentence-transformers' modules."""
    if MODULES not in usable:
        return [""]
    from llama_index_gap.models.checkpoints.vetting import module_paths  # imports torch

    modules = module_paths(checkpoint)
    own = sorted({kind for kind, _ in modules if not kind.startswith("sentence_transformers.")})
    if own and not settings.trust_remote_code:
        raise ModelError(
            f"{checkpoint.name}: {MODULES} names {list_some(set(own), 3)}, the model's own code, "
            "which does not run by default; if you trust its makers, pass "
            f"{TRUST_REMOTE_CODE}"
        )
    places = {""} | {f"{path.strip('/')}/" for _, path in modules if path.strip("./")}
    # A router keeps its modules one level below.
    below = {
        f"{name.rpartition('/')[0]}/"
        for name in usable
        for place in places
        if (place or _ROUTER in usable) and name.startswith(place)
        if "/" in name.removeprefix(place)
    }
    return sorted(places | below)


def _weights(
    usable: set[str], place: str, checkpoint: Checkpoint, *, allow_pickle: bool
) -> set[str]:
    """The weights of one place, in the first format that transformers would look for."""
    formats = ["model.safetensors"] + (["pytorch_model.bin"] if allow_pickle else [])
    for file in formats:
        if place + file in usable:
            return {place + file}
        index = place + file + _INDEX
        if index in usable:
            return {index, *(place + shard for shard in _shards(checkpoint, index))}
    return set()


def _shards(checkpoint: Checkpoint, index: str) -> list[str]:
    from llama_index_gap.models.checkpoints.limits import shard_names  # imports torch

    suffix = "bin" if index.endswith(f".bin{_INDEX}") else "safetensors"
    return shard_names(checkpoint, index, checkpoint.read_json(index), suffix=suffix)


def _doubles(usable: set[str], place: str, weights: set[str]) -> set[str]:
    """Copies of the same weights, in shards or in another precision."""
    model = re.compile(r"model[\w.-]*\.safetensors")
    return {
        name
        for name in usable - weights
        if name.startswith(place) and model.fullmatch(name.removeprefix(place))
    }


def refuse_other_libraries(files: Sequence[str], checkpoint: Checkpoint) -> None:
    """Reject a repository whose model transformers and sentence-transformers cannot run.

    Args:
        files: all files of the repository or folder, relative to it.
        checkpoint: a checkpoint whose ``is_setting`` files can be read already.

    Raises:
        ModelError: the repository is empty, holds only adapters, or is for another library.
    """
    names, name = set(files), checkpoint.name
    usable = {each for each in names if not _is_other(PurePosixPath(each))}
    if not names - _REPOSITORY_FILES:
        raise ModelError(f"{name}: is empty, it holds no files of a model; pass another folder")
    if MODULES in usable:
        return
    config = checkpoint.config if "config.json" in usable else {}
    if "model_type" not in config and ("pretrained_cfg" in config or _says_timm(config)):
        raise ModelError(
            f"{name}: is made for timm, which this package does not run; choose a repository with "
            "transformers' files, such as facebook/dinov2-base for images only "
            "('llama-gap models' lists some)"
        )
    open_clip = any(PurePosixPath(each).name.startswith("open_clip_") for each in names)
    if open_clip and "model_type" not in config:
        raise ModelError(
            f"{name}: is made for open_clip, which this package does not run; choose a repository "
            "that also holds transformers' config.json and model.safetensors, as many of laion's do"
        )
    own = {"model.safetensors", "pytorch_model.bin"}
    full = own | {each + _INDEX for each in own}
    if "adapter_config.json" in usable and not (full & usable and "model_type" in config):
        raise OnlyAdaptersError(_only_adapters(checkpoint))
    if "model_index.json" in usable and "config.json" not in usable:
        raise ModelError(
            f"{name}: is a pipeline that generates images (diffusers) and cannot embed or rank; "
            "'llama-gap models' lists models that can"
        )


def _says_timm(config: Mapping[str, Any]) -> bool:
    return isinstance(config.get("architecture"), str) and "num_classes" in config


def _only_adapters(checkpoint: Checkpoint) -> str:
    base = checkpoint.read_json("adapter_config.json").get("base_model_name_or_path")
    of = f" of {str(base)[:100]}" if base else ""
    return (
        f"{checkpoint.name}: holds only adapters (LoRA){of}, not a whole model; choose the "
        "repository with the merged model, whose name often ends in -hf or -merged, or merge them "
        "with peft and pass the folder"
    )


def _only_pickles(checkpoint: Checkpoint, file: str) -> str:
    pinned = {each: preset for preset in PRESETS.values() for each in preset.checkpoints}
    preset = pinned.get(checkpoint.name)
    other = "choose a revision with safetensors (--revision)"
    if preset is not None and preset.revision is not None:
        other = (
            f"pass revision={preset.revision!r} (--revision), which has safetensors and which the "
            f"plain name {preset.name!r} uses"
        )
    return (
        f"{checkpoint.name}: holds only pickled weights ({file}), which can carry code; pass "
        f"{ALLOW_PICKLE} if you trust its makers, or {other}"
    )


def _no_weights(names: Sequence[str], checkpoint: Checkpoint, pickled: list[str]) -> str:
    found = [
        format_
        for format_, pattern in _OTHER_FORMATS.items()
        if any(pattern.fullmatch(name) for name in names)
    ]
    way = "choose a repository with model.safetensors"
    if found:
        return (
            f"{checkpoint.name}: holds weights only for {' and '.join(found)}, which this package "
            f"does not read; {way}"
        )
    others = pickled or sorted(name for name in names if name.endswith(".safetensors"))
    if others:
        return (
            f"{checkpoint.name}: holds no model.safetensors, and transformers does not read "
            f"{list_some(set(others), 3)}; {way}"
        )
    return f"{checkpoint.name}: holds no weights; {way}, or download it again"


def needs_pooling(name: str) -> str:
    """The message about an encoder whose files do not state its pooling."""
    return (
        f"{name}: its files do not state how token vectors become one vector (there is no "
        f"{MODULES}); pass pooling='last', 'mean' or 'cls' (--pooling) as its model card says, and "
        "query_prompt and document_prompt (--query-prompt, --document-prompt) if it was trained "
        "with prompts; or choose a model that sentence-transformers saved"
    )


Check = Callable[[Checkpoint], None]
"""Judges a checkpoint by its configuration only, before its weights are downloaded."""
