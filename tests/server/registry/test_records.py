"""What a snapshot says of each model, however many there are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rm_server.registry.records import CalibrationRecord, Snapshot


class Watched(dict[Any, Any]):
    """Counts how often it was gone through."""

    num_passes = 0

    def __iter__(self) -> Iterator[Any]:
        self.num_passes += 1
        return super().__iter__()

    def items(self) -> Any:
        self.num_passes += 1
        return super().items()


def test_the_common_scale_is_gain_times_raw_plus_bias() -> None:
    assert CalibrationRecord("d" * 64, gain=2.0, bias=-1.0).apply(3.0) == 5.0


def test_versions_and_labels_come_in_order_and_all_models_are_gone_through_once() -> None:
    versions = Watched({(model, version): None for model in "cab" for version in (10, 9, 1)})
    labels = Watched({("b", "stable"): 9, ("a", "stable"): 10, ("b", "canary"): 10})
    snapshot = Snapshot(1, versions, labels, frozenset())
    assert snapshot.models() == ("a", "b", "c")
    assert {model: snapshot.versions_of(model) for model in snapshot.models()} == dict.fromkeys("abc", (1, 9, 10))
    assert [list(snapshot.labels_of(model).items()) for model in "abc"] == [
        [("stable", 10)],
        [("canary", 10), ("stable", 9)],
        [],
    ]
    assert (snapshot.versions_of("d"), snapshot.labels_of("d")) == ((), {})
    assert (versions.num_passes, labels.num_passes) == (1, 1)
