"""Serving profiles in the catalog: how a version is computed best on a kind of machine, as `rm-server tune` found.

A version is immutable and its digest says nothing of machines; so this lies beside it, and may change.
"""

from __future__ import annotations

from dataclasses import asdict, replace

from sqlalchemy import delete, insert

from rm_server.errors import InvalidRequest
from rm_server.registry import queries
from rm_server.registry.catalog import Catalog
from rm_server.registry.manifest import PRECISIONS
from rm_server.registry.names import MAX_NAME_LENGTH
from rm_server.registry.records import ServingProfile
from rm_server.registry.tables import serving_profiles


def set_serving_profile(catalog: Catalog, profile: ServingProfile, actor: str, comment: str = "") -> None:
    """Keeps a profile in place of the one that the version has for that kind of device.

    Raises ModelNotFound, VersionNotFound, InvalidRequest.
    """
    _check(profile)
    of = serving_profiles.c
    with catalog.changing(actor, comment) as change:
        queries.require_version(change.connection, profile.model, profile.version)
        change.connection.execute(
            delete(serving_profiles).where(
                of.model == profile.model, of.version == profile.version, of.device == profile.device
            )
        )
        change.connection.execute(insert(serving_profiles).values(asdict(replace(profile, create_time=change.time))))
        detail = (
            f"{profile.precision}, {profile.workers} × {profile.threads_per_worker} threads, batches of "
            f"{profile.max_batch_tokens} tokens: {profile.tokens_per_s:.0f} tokens/s on {profile.device}"
        )
        change.record("set_serving_profile", profile.model, profile.version, detail)


def _check(profile: ServingProfile) -> None:
    if profile.precision not in PRECISIONS:
        raise InvalidRequest(f"A serving profile's precision is {profile.precision!r}; known: {', '.join(PRECISIONS)}.")
    if not 0 < len(profile.device) <= MAX_NAME_LENGTH:
        raise InvalidRequest(f"A device's kind has 1 to {MAX_NAME_LENGTH} characters, not {len(profile.device)}.")
    if min(profile.workers, profile.threads_per_worker, profile.max_batch_tokens, profile.tokens_per_s) <= 0:
        raise InvalidRequest(f"A serving profile has workers, threads, tokens and a speed above 0, not {profile}.")
