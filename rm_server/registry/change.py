"""One change of the catalog, inside its transaction: who makes it, when, why, and the line of history it leaves."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, insert, update

from rm_server.errors import InvalidRequest
from rm_server.registry.queries import revision
from rm_server.registry.tables import history, state


@dataclass(frozen=True, slots=True)
class Change:
    """A change under way. Nothing of it is seen by others before its transaction commits."""

    connection: Connection
    time: datetime
    actor: str
    comment: str

    def __post_init__(self) -> None:
        if not self.actor:
            raise InvalidRequest("A change of the catalog needs an actor: who makes it.")

    def record(
        self, action: str, model: str, version: int, detail: str, *, label: str = "", previous_version: int = 0
    ) -> None:
        """Ends the change: one more revision, one line of history. Not called where nothing changed."""
        number = revision(self.connection) + 1
        self.connection.execute(update(state).values(revision=number))
        self.connection.execute(
            insert(history).values(
                revision=number,
                time=self.time,
                actor=self.actor,
                action=action,
                model=model,
                version=version,
                label=label,
                previous_version=previous_version,
                detail=detail,
                comment=self.comment,
            )
        )
