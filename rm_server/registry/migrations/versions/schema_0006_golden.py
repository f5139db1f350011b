"""Golden examples of a version's own. Programs of older schemas check those in its files."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds the column."""
    op.add_column("versions", sa.Column("golden_json", sa.Text))
