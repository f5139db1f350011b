"""Leases by the time of their end. Programs of older schemas are only quicker by that."""

from __future__ import annotations

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Makes the index."""
    op.create_index("ix_runs_has_ended_lease_expires_at", "runs", ["has_ended", "lease_expires_at"])
