"""Which neighbours share a prefix, as tables; how they are laid out; and that nobody's score is touched by it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import tiny_models
from tiny_models import VOCAB_SIZE

from rm_server.backends.interface import ComputeSettings
from rm_server.backends.items import Batch, EncodedItem
from rm_server.backends.loading import load_backend
from rm_server.backends.shared_prefix import find_shared_prefixes, tokens_to_compute
from rm_server.backends.torch.backend import TorchBackend
from rm_server.backends.torch.forward import PackedForward
from rm_server.backends.torch.layout import SharedAttention, SharedPrefix, lay_out
from rm_server.registry.manifest import Manifest


def batch_of(*items: Sequence[int]) -> Batch:
    return Batch.of([EncodedItem(ids=np.array(item, np.int32), num_tokens=len(item)) for item in items])


def found(*items: Sequence[int], max_tokens: int | None = None) -> list[tuple[int, int, int]]:
    batch = batch_of(*items)
    groups = find_shared_prefixes(batch.ids, batch.lengths, max_tokens)
    return [(group.first, group.num_items, group.length) for group in groups]


def run(number: int, length: int = 50) -> list[int]:
    """A prefix of its own."""
    return [1000 * number + position for position in range(length)]


A, B, C = run(1), run(2), run(3)
SYSTEM = run(9, 40)


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        ([], []),
        ([[*A, 1]], []),
        ([[*A, 1], [*B, 1]], []),
        ([[*A, 1], [*A, 2], [*A, 3]], [(0, 3, 50)]),
        ([[*A, 1], [*A, 2], [*B, 1], [*B, 2]], [(0, 2, 50), (2, 2, 50)]),
        ([[*C, 1], [*A, 1], [*A, 2], [*B, 1]], [(1, 2, 50)]),
        # Neighbours only: an item between them parts a group.
        ([[*A, 1], [*B, 1], [*A, 2]], []),
        # Two groups under one system prompt save more apart: 90 + 90 against 3 * 40.
        ([[*SYSTEM, *A, 1], [*SYSTEM, *A, 2], [*SYSTEM, *B, 1], [*SYSTEM, *B, 2]], [(0, 2, 90), (2, 2, 90)]),
        # Four strangers under one system prompt.
        ([[*SYSTEM, 1], [*SYSTEM, 2], [*SYSTEM, 3], [*SYSTEM, 4]], [(0, 4, 40)]),
        # Every item keeps a token of its own, also when one is the beginning of the other, or the same again.
        ([A, [*A, 1]], [(0, 2, 49)]),
        ([A, A, A], [(0, 3, 49)]),
        ([[1], [1], [1]], []),
        # Not worth a second attention call: too few tokens, too small a share.
        ([[*run(1, 20), 1], [*run(1, 20), 2]], []),
        ([[*A, *run(5, 400)], [*A, *run(6, 400)]], []),
    ],
)
def test_finds_the_groups_that_pay(items: list[list[int]], expected: list[tuple[int, int, int]]) -> None:
    assert found(*items) == expected


def test_items_longer_than_a_window_take_no_part() -> None:
    items = [[*A, 1], [*A, 2], [*A, 3, 3]]
    assert found(*items, max_tokens=52) == [(0, 3, 50)]
    assert found(*items, max_tokens=51) == [(0, 2, 50)]
    assert found(*items, max_tokens=50) == []


def test_finds_what_trying_everything_finds() -> None:
    random = np.random.default_rng(0)
    prefixes = [run(number, int(random.integers(5, 60))) for number in range(3)]
    for _ in range(50):
        items = [[*prefixes[random.integers(3)], *random.integers(9000, 9999, 3)] for _ in range(6)]
        saved = sum((num_items - 1) * length for _, num_items, length in found(*items))
        assert saved == best_by_trying(items)


def best_by_trying(items: list[list[int]]) -> int:
    """Tokens saved by the best way of cutting the items into groups, each of which pays."""
    if not items:
        return 0
    best = 0
    for size in range(1, len(items) + 1):
        group = items[:size]
        limit = min(len(item) for item in group) - 1
        length = next((n for n in range(limit) if len({item[n] for item in group}) > 1), limit)
        saved = (size - 1) * length
        if not (length >= 4 and saved >= 32 and saved >= 0.12 * sum(len(item) for item in group)):
            saved = 0
        best = max(best, saved + best_by_trying(items[size:]))
    return best


def test_the_layout_of_a_group() -> None:
    batch = batch_of([7, 8], [1, 2, 3, 4], [1, 2, 5], [9])
    layout = lay_out(batch.ids, batch.lengths, batch.ids + 100, [SharedPrefix(1, 2, 2)])
    assert layout.ids.tolist() == [7, 8, 1, 2, 3, 4, 5, 9]
    assert layout.positions.tolist() == [0, 1, 0, 1, 2, 3, 2, 0]
    assert layout.type_ids is not None
    assert layout.type_ids.tolist() == [107, 108, 101, 102, 103, 104, 105, 109]
    assert layout.segments == ((0, 2), (2, 4), (4, 6), (6, 7), (7, 8))
    assert layout.items == ((0, 2), (4, 6), (6, 7), (7, 8))
    assert layout.shared == (SharedAttention(queries=(4, 7), keys=(2, 4)),)


def test_the_layout_of_strangers() -> None:
    batch = batch_of([7, 8], [9])
    layout = lay_out(batch.ids, batch.lengths)
    assert (layout.ids.tolist(), layout.positions.tolist()) == ([7, 8, 9], [0, 1, 0])
    assert layout.segments == layout.items == ((0, 2), (2, 3))
    assert layout.shared == ()


@pytest.mark.parametrize(
    "family", ["gpt2", "llama", "qwen3", "mistral", "qwen2_sliding", "llama_dynamic_rope", "gemma", "deepseek_v3"]
)
def test_scores_with_a_shared_prompt_are_those_of_strangers(tmp_path: Path, family: str) -> None:
    folder = tiny_models.make_checkpoint(tmp_path, family, **({"sliding_window": 70} if family == "mistral" else {}))
    backend = load_backend(folder, Manifest(kind="sequence_classification", max_tokens=120), ComputeSettings())
    assert isinstance(backend, TorchBackend)
    assert isinstance(backend.forward, PackedForward)
    random = np.random.default_rng(0)
    items: list[list[int]] = []
    for size in (1, 4, 3, 1, 5):
        prompt = random.integers(5, VOCAB_SIZE, 20 if size == 3 else 33).tolist()
        items.extend(prompt + random.integers(5, VOCAB_SIZE, random.integers(1, 60)).tolist() for _ in range(size))
    together = backend.score(batch_of(*items))
    shares = backend.forward.last is not None and backend.forward.last.layout.shared
    assert shares or family in ("qwen2_sliding", "llama_dynamic_rope")
    strangers = np.concatenate([backend.score(batch_of(item)) for item in items])
    assert np.ptp(strangers) > 0.3
    np.testing.assert_allclose(together, strangers, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("items", "max_tokens", "expected"),
    [
        ([[*A, 1], [*A, 2, 3], [*A, 4]], None, [51, 2, 1]),
        # Groups beside each other, and a stranger.
        ([[*A, 1], [*A, 2], [*B, 1], C, [*B, 2]], None, [51, 1, 51, 50, 51]),
        # Too long to take part.
        ([[*A, 1], [*A, 2], [*A, 2, 3]], 51, [51, 1, 52]),
        # A common BOS is no prompt; nor is a short one before long completions.
        ([[1, *A], [1, *B]], None, [51, 51]),
        ([[*A[:10], *B], [*A[:10], *C]], None, [60, 60]),
        # The same twice: the second keeps a token of its own.
        ([A, A], None, [50, 1]),
        ([], None, []),
    ],
)
def test_what_is_left_to_compute(items: list[list[int]], max_tokens: int | None, expected: list[int]) -> None:
    batch = batch_of(*items)
    assert tokens_to_compute(batch.ids, batch.lengths, max_tokens) == expected


def test_nothing_is_left_out_beside_another_owner() -> None:
    batch = batch_of([*A, 1], [*A, 2], [*A, 3])
    assert tokens_to_compute(batch.ids, batch.lengths, None, np.array([4, 4, 1], np.int32)) == [51, 1, 51]


def test_a_forward_is_as_large_as_what_is_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_models.make_checkpoint(tmp_path, "llama")
    manifest = Manifest(kind="sequence_classification", max_tokens=120)
    backend = load_backend(folder, manifest, ComputeSettings())
    alone = load_backend(folder, manifest, ComputeSettings(deterministic=True))
    assert isinstance(backend, TorchBackend)
    assert isinstance(alone, TorchBackend)
    batch = batch_of(*([*range(5, 55), number] for number in range(60, 72)), *([number] * 51 for number in range(3)))
    strangers = alone.score(batch)
    monkeypatch.setattr("rm_server.backends.torch.forward.MAX_FORWARD_TOKENS", 120)
    # 51 + 11 and a stranger; the others in twos.
    assert [len(part) for part in backend.forward.group(range(15), batch)] == [13, 2]
    assert (backend.shares_up_to > 120, alone.shares_up_to) == (True, 0)
    np.testing.assert_allclose(backend.score(batch), strangers, atol=1e-5, rtol=0)


def test_encoders_share_nothing(tmp_path: Path) -> None:
    folder = tiny_models.make_checkpoint(tmp_path, "bert")
    backend = load_backend(folder, Manifest(kind="sequence_classification", max_tokens=120), ComputeSettings())
    assert isinstance(backend, TorchBackend)
    assert isinstance(backend.forward, PackedForward)
    backend.score(batch_of([*range(5, 90), 91], [*range(5, 90), 92]))
    assert backend.forward.last is not None
    assert backend.forward.last.layout.shared == ()


def test_items_of_different_owners_share_nothing() -> None:
    batch = batch_of([*A, 1], [*A, 2], [*A, 3], [*A, 4])
    owners = np.array([5, 5, 2, 2], np.int32)
    groups = find_shared_prefixes(batch.ids, batch.lengths, None, owners)
    assert [(group.first, group.num_items, group.length) for group in groups] == [(0, 2, 50), (2, 2, 50)]
    assert find_shared_prefixes(batch.ids, batch.lengths, None, np.arange(4, dtype=np.int32)) == []
