"""How versions are computed best, by kind of machine. Programs of older schemas never read it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from rm_server.registry.tables import UtcDateTime

revision = "0004"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Makes the table."""
    op.create_table(
        "serving_profiles",
        sa.Column("model", sa.String(200), nullable=False),
        sa.Column("version", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("device", sa.String(200), nullable=False),
        sa.Column("precision", sa.String(16), nullable=False),
        sa.Column("workers", sa.Integer, nullable=False),
        sa.Column("threads_per_worker", sa.Integer, nullable=False),
        sa.Column("max_batch_tokens", sa.Integer, nullable=False),
        sa.Column("tokens_per_s", sa.Double, nullable=False),
        sa.Column("create_time", UtcDateTime, nullable=False),
        sa.PrimaryKeyConstraint("model", "version", "device", name="pk_serving_profiles"),
        sa.ForeignKeyConstraint(
            ["model", "version"], ["versions.model", "versions.version"], name="fk_serving_profiles_versions"
        ),
    )
