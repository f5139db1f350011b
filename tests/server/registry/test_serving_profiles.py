"""Serving profiles: one for each version and kind of device, in history and snapshot, gone with their version."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from rm_server.errors import InvalidRequest, ModelNotFound, VersionNotFound
from rm_server.registry.catalog import Catalog
from rm_server.registry.records import ServingProfile
from rm_server.registry.serving_profiles import set_serving_profile

PROFILE = ServingProfile("m", 1, "cpu: a", "bf16", 2, 1, 4096, 17000.0)


@pytest.fixture
def catalog(home: tuple[Catalog, object]) -> Iterator[Catalog]:
    home[0].register("m", "a" * 64, "sequence_classification", 128, "ann")
    return home[0]


def test_a_profile_is_kept_for_its_version_and_device(catalog: Catalog) -> None:
    before = catalog.revision()
    set_serving_profile(catalog, PROFILE, "bob", "after the upgrade")
    ((key, found),) = catalog.snapshot().profiles.items()
    assert key == (("m", 1), "cpu: a")
    assert found.create_time is not None
    assert replace(found, create_time=None) == PROFILE
    (newest,) = catalog.history("m", 1)
    assert (newest.action, newest.actor, newest.comment) == ("set_serving_profile", "bob", "after the upgrade")
    assert newest.detail == "bf16, 2 × 1 threads, batches of 4096 tokens: 17000 tokens/s on cpu: a"
    assert catalog.revision() == before + 1


def test_a_new_profile_replaces_that_of_the_same_device(catalog: Catalog) -> None:
    other = replace(PROFILE, device="cuda: b", precision="fp16")
    for profile in (PROFILE, other, replace(PROFILE, precision="fp32")):
        set_serving_profile(catalog, profile, "bob")
    profiles = catalog.snapshot().profiles
    assert {device: profile.precision for (_, device), profile in profiles.items()} == {
        "cpu: a": "fp32",
        "cuda: b": "fp16",
    }


def test_a_new_profile_leaves_those_of_other_versions(catalog: Catalog) -> None:
    catalog.register("m", "b" * 64, "sequence_classification", 128, "ann")
    catalog.register("other", "a" * 64, "sequence_classification", 128, "ann")
    for profile in (replace(PROFILE, version=2), replace(PROFILE, model="other"), PROFILE):
        set_serving_profile(catalog, profile, "bob")
    assert {key for key, _ in catalog.snapshot().profiles} == {("m", 1), ("m", 2), ("other", 1)}


def test_a_deleted_versions_profile_is_gone(catalog: Catalog) -> None:
    set_serving_profile(catalog, PROFILE, "bob")
    catalog.delete_version("m", 1, "bob")
    assert catalog.snapshot().profiles == {}


def test_what_does_not_exist_has_no_profile(catalog: Catalog) -> None:
    with pytest.raises(VersionNotFound):
        set_serving_profile(catalog, replace(PROFILE, version=2), "bob")
    with pytest.raises(ModelNotFound):
        set_serving_profile(catalog, replace(PROFILE, model="n"), "bob")


@pytest.mark.parametrize(
    "change",
    [
        {"precision": "fp64"},
        {"device": ""},
        {"device": "x" * 201},
        {"workers": 0},
        {"threads_per_worker": 0},
        {"max_batch_tokens": 0},
        {"tokens_per_s": 0.0},
    ],
)
def test_senseless_profiles_are_refused(catalog: Catalog, change: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest):
        set_serving_profile(catalog, replace(PROFILE, **change), "bob")
    assert catalog.snapshot().profiles == {}
