"""Tells those who watch what changed. A slow watcher gets each kind of change once, however often it happened."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Literal, TypeAlias
from weakref import WeakSet

ChangeKind: TypeAlias = Literal["VERSIONS", "STATE", "LABELS"]
"""Versions were registered or deleted; a version's state changed; labels were set or removed."""


@dataclass(frozen=True, slots=True)
class ModelChange:
    """Something of a model changed; what it is now stands elsewhere."""

    kind: ChangeKind
    model: str


class Subscription(AsyncIterator[ModelChange]):
    """The changes since it was made. For one reader; dropping it is enough to end it."""

    def __init__(self) -> None:
        self._pending: dict[ModelChange, None] = {}
        self._has_some = asyncio.Event()

    async def __anext__(self) -> ModelChange:
        await self._has_some.wait()
        change = next(iter(self._pending))
        del self._pending[change]
        if not self._pending:
            self._has_some.clear()
        return change

    def push(self, change: ModelChange) -> None:
        """Adds a change that the reader has not seen."""
        self._pending[change] = None
        self._has_some.set()


class Changes:
    """Where changes are published. Lives on the event loop."""

    def __init__(self) -> None:
        self._subscriptions: WeakSet[Subscription] = WeakSet()

    def subscribe(self) -> Subscription:
        """All changes from now on."""
        subscription = Subscription()
        self._subscriptions.add(subscription)
        return subscription

    def publish(self, kind: ChangeKind, model: str) -> None:
        """Tells all who watch."""
        for subscription in list(self._subscriptions):
            subscription.push(ModelChange(kind, model))
