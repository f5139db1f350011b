"""What a version stands on: composites on the parts that they name, adapters on a base that is loaded with them."""

from __future__ import annotations

import pytest

from rm_server.errors import DigestMismatch, ModelNotFound, VersionInUse, VersionNotFound
from rm_server.registry.catalog import Catalog
from rm_server.registry.records import VersionKey

A, B, C, D = (letter * 64 for letter in "abcd")


@pytest.fixture
def catalog(home: tuple[Catalog, object]) -> Catalog:
    """a@1, a@2 and b@1."""
    catalog, _ = home
    for model, digest in (("a", A), ("a", B), ("b", B)):
        catalog.register(model, digest, "sequence_classification", 128, "ann")
    return catalog


def test_composites_know_their_parts_in_order(catalog: Catalog) -> None:
    catalog.register("a", C, "composite", 0, "ann", parts={("b", 1): B, ("a", 2): B, ("a", 1): A})
    catalog.register("b", C, "composite", 0, "ann", parts={("a", 2): B})
    assert catalog.snapshot().parts == {("a", 3): (("a", 1), ("a", 2), ("b", 1)), ("b", 2): (("a", 2),)}
    with pytest.raises(VersionInUse, match=r"part of the composite a@3, b@2"):
        catalog.delete_version("a", 2, "ann")


def test_an_adapter_stands_on_its_base_which_is_no_part_of_it(catalog: Catalog) -> None:
    catalog.register("b", C, "lora", 128, "ann", parts={("a", 1): A})
    catalog.register("c", D, "composite", 0, "ann", parts={("b", 2): C})
    assert catalog.snapshot().parts == {("c", 1): (("b", 2),)}
    with pytest.raises(VersionInUse, match=r"base of the adapter b@2"):
        catalog.delete_version("a", 1, "ann")


@pytest.mark.parametrize(
    ("part", "digest", "refusal"),
    [(("x", 1), A, ModelNotFound), (("a", 9), A, VersionNotFound), (("a", 1), B, DigestMismatch)],
)
def test_what_is_not_there_as_it_is_said_to_be_is_no_part(
    catalog: Catalog, part: VersionKey, digest: str, refusal: type[Exception]
) -> None:
    before = catalog.snapshot()
    with pytest.raises(refusal):
        catalog.register("a", C, "composite", 0, "ann", parts={("b", 1): B, part: digest})
    assert (catalog.snapshot().versions, catalog.revision()) == (before.versions, before.revision)
