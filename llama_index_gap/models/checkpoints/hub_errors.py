"""Explains errors of the model hub, and says what to do."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import suppress
from difflib import get_close_matches
from typing import Any

from llama_index_gap.model_settings import LoadingSettings
from llama_index_gap.models.checkpoints.checkpoint import first_line
from llama_index_gap.models.presets import PRESETS, SCORER_PRESETS

_LOG_IN = "log in with 'hf auth login', or set HF_TOKEN"
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS}
_OFFLINE = "pass the folder of a downloaded model, or try a demo that runs offline: llama-gap demo"


def explain(
    error: Exception, name: str, repo: str, settings: LoadingSettings, *, begun: bool = False
) -> str:
    """Say in one line what went wrong, and the way out.

    Args:
        error: raised by the hub's library.
        name: the model, as the user wrote it.
        repo: the model with its owner.
        settings: how to find it.
        begun: whether the download cache holds a part of it.
    """
    chain = list(_chain(error))
    kinds = {each.__name__ for one in chain for each in type(one).__mro__}
    response = getattr(_with_response(chain), "response", None)
    status = getattr(response, "status_code", None)
    page = f"https://huggingface.co/{repo}"
    if "GatedRepoError" in kinds:
        return f"{name}: is gated, and its makers decide who may download it: {_ask(page)}"
    if "DisabledRepoError" in kinds:
        return f"{name}: the hub has closed this model; choose another one ({page} may say why)"
    if "RevisionNotFoundError" in kinds:
        return _no_revision(name, repo, settings.revision)
    bad_token = "Invalid credentials" in getattr(response, "headers", {}).get("x-error-message", "")
    # The hub answers 401 for unknown models too, so as not to reveal which ones are private.
    if "RepositoryNotFoundError" in kinds or (status == 401 and not bad_token):
        return _no_model(name, repo)
    if status == 401:
        return (
            f"{name}: the hub does not know your token; set a valid one ('hf auth login', or "
            "HF_TOKEN), or, if the model is public, none ('hf auth logout', and unset HF_TOKEN)"
        )
    if status == 403:
        return (
            f"{name}: the hub denies access ({first_line(_with_response(chain))}); your token may "
            "lack the right to read this model: give it that right, or set another token ('hf auth "
            "login', or HF_TOKEN)"
        )
    if status == 429:
        return f"{name}: {_too_often(response)}"
    if status is not None and status >= 500:
        return (
            f"{name}: the hub has a fault ({status}); try again later "
            "(https://status.huggingface.co), or pass the folder of a downloaded model"
        )
    for one in chain:
        if isinstance(one, OSError) and one.errno in {errno.ENOSPC, errno.EDQUOT}:
            return (
                f"{name}: the disk is full; free some space, or choose another place with "
                "cache_folder= (--cache-folder) or the environment variable HF_HOME; then run the "
                "same again: the download continues"
            )
        if isinstance(one, OSError) and one.errno in _DISK_ERRORS:
            return (
                f"{name}: the download cache cannot be written ({first_line(one)}); choose another "
                "place with cache_folder= (--cache-folder) or the environment variable HF_HOME"
            )
    if status is not None:
        return f"{name}: the model hub says: {first_line(_with_response(chain))} ({status})"
    return (
        f"{name}: not a folder here, {'only partly' if begun else 'not'} in the download cache, "
        f"and {_unreachable(chain, kinds)}"
        f"{_near(name)}; {_OFFLINE}"
    )


def is_of_disk(error: Exception) -> bool:
    """Whether this machine's disk is the cause, not the hub or the network."""
    return any(isinstance(one, OSError) and one.errno in _DISK_ERRORS for one in _chain(error))


def near_preset(name: str) -> str | None:
    """The preset or its hub name that is nearly ``name``: a few letters or capitals differ."""
    plain = {each.lower(): each for each in [*PRESETS, *SCORER_PRESETS]}
    hub = {each: each for preset in PRESETS.values() for each in preset.checkpoints}
    hub |= {preset.checkpoint: preset.checkpoint for preset in SCORER_PRESETS.values()}
    known = {each.lower(): each for each in hub} if "/" in name else plain
    near = get_close_matches(name.lower(), known, n=1, cutoff=0.9 if "/" in name else 0.7)
    return known[near[0]] if near and known[near[0]] != name else None


def _near(name: str) -> str:
    near = near_preset(name)
    return f"; did you mean {near!r}?" if near else ""


def _chain(error: BaseException | None) -> Iterator[Any]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _with_response(chain: list[Any]) -> Any:
    """The error that holds the hub's response, else the first one."""
    return next((one for one in chain if getattr(one, "response", None) is not None), chain[0])


def _logged_in() -> bool:
    from huggingface_hub import get_token

    return bool(get_token())


def _ask(page: str) -> str:
    if _logged_in():
        return (
            f"your account has no access yet; ask at {page} and wait for their answer, or log in "
            "with another account ('hf auth login', HF_TOKEN)"
        )
    return f"ask at {page}, then {_LOG_IN}"


def _no_revision(name: str, repo: str, revision: str | None) -> str:
    from huggingface_hub import HfApi

    names: list[str] = []
    with suppress(Exception):  # only a hint
        refs = HfApi().list_repo_refs(repo)
        names = [each.name for each in [*refs.branches, *refs.tags]][:8]
    known = f"; it has {', '.join(names)}" if names else ""
    return (
        f"{name}: has no revision {revision!r}{known}; pass a branch, a tag or a commit from "
        f"https://huggingface.co/{repo}/commits/main, or leave it out"
    )


def _no_model(name: str, repo: str) -> str:
    near = _near(name)
    if not near and (kind := _other_kind(repo)):
        return f"{name}: is a {kind} on the hub, not a model; 'llama-gap models' lists some models"
    asked = f" (looked for {repo})" if repo != name else ""
    private = (
        "your account may not see it if it is private"
        if _logged_in()
        else f"for a private one {_LOG_IN}"
    )
    return (
        f"{name}: no such folder here, and the hub shows no such model{asked}{near}; check the "
        f"name at https://huggingface.co/models, or {private}"
    )


def _other_kind(repo: str) -> str | None:
    from huggingface_hub import HfApi

    for kind, asked in (("data set", "dataset"), ("space", "space")):
        with suppress(Exception):  # only a hint
            HfApi().repo_info(repo, repo_type=asked, timeout=5)
            return kind
    return None


def _too_often(response: Any) -> str:
    headers = response.headers
    found = re.search(r"\bt=(\d+)", headers.get("ratelimit", "")) or re.fullmatch(
        r"(\d+)", headers.get("retry-after", "")
    )
    wait = f"wait {found[1]} seconds" if found else "wait some minutes"
    more = "" if _logged_in() else f", or {_LOG_IN}, which raises the limit"
    return f"the hub limits the requests from one address; {wait}{more}"


def _unreachable(chain: list[Any], kinds: set[str]) -> str:
    last = first_line(chain[-1])
    said = " ".join(str(one) for one in chain)
    if "OfflineModeIsEnabled" in kinds:
        return (
            "HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) is set, which turns off all access to the "
            "hub: unset it to download the model"
        )
    if "ProxyError" in kinds:
        return (
            f"the proxy in HTTPS_PROXY does not connect to the hub ({_no_secret(last)}; correct or "
            "unset HTTPS_PROXY)"
        )
    if "SSLError" in kinds or "CERTIFICATE" in said or "SSL" in said:
        return (
            f"the hub's certificate is not trusted ({_no_secret(last)}); behind a company's proxy, "
            "set SSL_CERT_FILE and REQUESTS_CA_BUNDLE to the file with its certificate"
        )
    if kinds & {"TimeoutException", "Timeout", "TimeoutError"}:
        return "the model hub cannot be reached (it did not answer in time)"
    return f"the model hub cannot be reached ({_no_secret(last)})"


def _no_secret(text: str) -> str:
    """The text without passwords in URLs."""
    return re.sub(r"//[^/@\s]+@", "//", text)
