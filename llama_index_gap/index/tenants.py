"""Tenants of an index: each has separate collections, named by a hash of the tenant's name."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection
from pathlib import Path

from llama_index_gap.errors import InvalidValueError
from llama_index_gap.store.addresses import TIMEOUT_SECONDS, lite_path
from llama_index_gap.store.connection import StoreError
from llama_index_gap.store.database import Database
from llama_index_gap.store.milvus import MilvusStore

TENANT_PROPERTY = "tenant"
"""Property of a tenant's text collection: the tenant's name."""
_MOST_CHARACTERS = 255
_SCOPE = re.compile(r"\w+_tenant_[0-9a-f]{32}", re.ASCII)


def scope_of(name: str, tenant: str | None) -> str:
    """The beginning of the names of an index's collections.

    A hash stands for the tenant. So the database never sees any part of a tenant's name, and no two
    tenants share a collection.

    Args:
        name: the name of the index.
        tenant: the tenant; None for an index without tenants.

    Raises:
        ValueError: the tenant's name is not text, is empty or too long, or has invisible
            characters; or the name of the index looks like that of a tenant's collections.
    """
    if _SCOPE.fullmatch(name):
        raise InvalidValueError(
            f"name={name!r}: collections of a tenant have such names; pass the name of the index, "
            "and tenant="
        )
    if tenant is None:
        return name
    if not isinstance(tenant, str):
        raise InvalidValueError(f"tenant={tenant!r}: must be text")
    if not tenant.isprintable() or tenant != tenant.strip() or not tenant:
        raise InvalidValueError(
            f"tenant={tenant[:100]!r}: must be printable text without spaces at its ends"
        )
    if len(tenant) > _MOST_CHARACTERS:
        raise InvalidValueError(
            f"tenant={tenant[:100]!r}…: has {len(tenant):,} characters, more than "
            f"{_MOST_CHARACTERS}; shorten it"
        )
    return f"{name}_tenant_{hashlib.blake2b(tenant.encode(), digest_size=16).hexdigest()}"


def is_scope_of(scope: str, tenant: str) -> bool:
    """Whether this beginning of names belongs to a tenant, as an untrusted database claims."""
    name, _, _ = scope.rpartition("_tenant_")
    try:
        return bool(name) and scope_of(name, tenant) == scope
    except InvalidValueError:
        return False


def check_tenancy(
    held: Collection[str], uri: str, name: str, tenant: str | None, *, make: bool
) -> None:
    """Reject a tenant for an index without tenants, and no tenant for an index with tenants.

    Args:
        held: the names of all collections of the database.
        uri: the database, for messages.
        name: the name of the index.
        tenant: the tenant that was passed to ``DualIndex``.
        make: whether a missing tenant is created.

    Raises:
        ValueError: the index and the tenant conflict; the message names the way out.
    """
    shared, own = _texts_of(held, name), _texts_of(held, scope_of(name, tenant))
    if tenant is not None and shared:
        raise InvalidValueError(
            f"{uri}: {name} was made without tenants, so it has no tenant={tenant!r}; leave "
            "tenant out, or pass another name and insert the tenant's documents there"
        )
    if tenant is not None and not make and not own:
        raise InvalidValueError(
            f"{uri}: {name} has no tenant {tenant!r}; check the name, or pass "
            "embed_model (llama-gap index: --model) to create it"
        )
    if tenant is None and not shared and scopes_of(held, name):
        raise InvalidValueError(
            f"{uri}: {name} has tenants, and each is opened separately; pass tenant= "
            "(llama-gap: --tenant); llama_index_gap.list_tenants(uri, name) lists them"
        )


def claim(store: MilvusStore, tenant: str | None) -> None:
    """Record the tenant's name in its text collection, if it is not yet there.

    Args:
        store: the text collection.
        tenant: the tenant that was passed to ``DualIndex``.

    Raises:
        StoreError: the collection names another tenant.
    """
    stored = store.initial_properties.get(TENANT_PROPERTY)
    if tenant is None or stored == tenant:
        return
    if stored is not None:
        raise StoreError(
            f"{store.collection_name} belongs to tenant {stored!r}, not to {tenant!r}; somebody "
            "renamed the collection: rename it back"
        )
    store.set_properties({TENANT_PROPERTY: tenant})


def list_tenants(
    uri: str = "./gap.db",
    name: str = "gap",
    *,
    token: str | None = None,
    timeout: float = TIMEOUT_SECONDS,
) -> list[str]:
    """The names of an index's tenants, sorted: for the owner of the database, never for a tenant.

    Args:
        uri: a Milvus Lite file, or the URL of a Milvus server.
        name: the name of the index.
        token: the credentials for a server.
        timeout: seconds that a server may take to answer a call.

    Raises:
        ValueError: there is no such database.
        StoreError: the database cannot be opened.
    """
    path = lite_path(uri)
    if path is not None and not Path(path).exists():
        raise InvalidValueError(
            f"{uri}: no such database; DualIndex(uri, embed_model=…) creates one"
        )
    with Database(uri, token, timeout) as database:
        held = database.names()
        scopes = scopes_of(held, name)
        texts = [text for scope in scopes for text in _texts_of(held, scope)]
        tenants = [(database.properties(text) or {}).get(TENANT_PROPERTY) for text in texts]
    return sorted({each for each in tenants if each})


def scopes_of(held: Collection[str], name: str) -> list[str]:
    """The beginnings of the names of each tenant's collections.

    Args:
        held: the names of all collections.
        name: the name of the index.
    """
    text = re.compile(rf"({re.escape(name)}_tenant_[0-9a-f]{{32}})_text(_v\d+)?", re.ASCII)
    return sorted({fits[1] for each in held if (fits := text.fullmatch(each))})


def _texts_of(held: Collection[str], scope: str) -> list[str]:
    text = re.compile(rf"{re.escape(scope)}_text(_v\d+)?", re.ASCII)
    return [each for each in held if text.fullmatch(each)]
