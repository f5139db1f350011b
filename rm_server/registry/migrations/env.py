"""Runs migrations over the connection, and in the transaction, that `database.Database` hands in."""

from __future__ import annotations

from alembic import context

from rm_server.registry.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
