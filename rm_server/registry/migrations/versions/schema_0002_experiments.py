"""Runs with their leases, splits, pins, shadows, outcomes, and what composites are made of."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from rm_server.registry.tables import UtcDateTime

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Makes the tables."""
    op.add_column("catalog_state", sa.Column("run_revision", sa.BigInteger, nullable=False, server_default="0"))
    op.create_table(
        "runs",
        sa.Column("run", sa.String(128), nullable=False),
        sa.Column("model", sa.String(200), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("arm", sa.String(64), nullable=False),
        sa.Column("lease_s", sa.Double, nullable=False),
        sa.Column("register_time", UtcDateTime, nullable=False),
        sa.Column("last_seen", UtcDateTime, nullable=False),
        sa.Column("lease_expires_at", UtcDateTime, nullable=False),
        sa.Column("has_ended", sa.Boolean, nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("run", "model", name="pk_runs"),
    )
    op.create_index("ix_runs_last_seen", "runs", ["last_seen"])
    op.create_index("ix_runs_revision", "runs", ["revision"])
    op.create_index("ix_runs_model_version", "runs", ["model", "version"])
    op.create_table(
        "run_statistics",
        sa.Column("run", sa.String(128), nullable=False),
        sa.Column("model", sa.String(200), nullable=False),
        sa.Column("version", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("num_items", sa.BigInteger, nullable=False),
        sa.Column("num_tokens", sa.BigInteger, nullable=False),
        sa.Column("score_mean", sa.Double, nullable=False),
        sa.Column("score_squares", sa.Double, nullable=False),
        sa.Column("items_per_s", sa.Double, nullable=False),
        sa.Column("tokens_per_s", sa.Double, nullable=False),
        sa.Column("last_seen", UtcDateTime, nullable=False),
        sa.PrimaryKeyConstraint("run", "model", "version", name="pk_run_statistics"),
    )
    op.create_index("ix_run_statistics_last_seen", "run_statistics", ["last_seen"])
    op.create_table(
        "splits",
        sa.Column("model", sa.String(200), nullable=False),
        sa.Column("salt", sa.String(200), nullable=False),
        sa.Column("update_time", UtcDateTime, nullable=False),
        sa.PrimaryKeyConstraint("model", name="pk_splits"),
        sa.ForeignKeyConstraint(["model"], ["models.name"], name="fk_splits_models"),
    )
    op.create_table(
        "split_arms",
        sa.Column("model", sa.String(200), nullable=False),
        sa.Column("arm", sa.String(64), nullable=False),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("weight", sa.Double, nullable=False),
        sa.Column("ramp_json", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("model", "arm", name="pk_split_arms"),
        sa.ForeignKeyConstraint(["model"], ["splits.model"], name="fk_split_arms_splits"),
        sa.ForeignKeyConstraint(
            ["model", "version"], ["versions.model", "versions.version"], name="fk_split_arms_versions"
        ),
    )
    op.create_table(
        "pins",
        sa.Column("model", sa.String(200), nullable=False),
        sa.Column("run", sa.String(128), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("model", "run", name="pk_pins"),
        sa.ForeignKeyConstraint(["model", "version"], ["versions.model", "versions.version"], name="fk_pins_versions"),
    )
    op.create_table(
        "shadows",
        sa.Column("model", sa.String(200), nullable=False),
        sa.Column("version", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("share", sa.Double, nullable=False),
        sa.Column("create_time", UtcDateTime, nullable=False),
        sa.PrimaryKeyConstraint("model", "version", name="pk_shadows"),
        sa.ForeignKeyConstraint(
            ["model", "version"], ["versions.model", "versions.version"], name="fk_shadows_versions"
        ),
    )
    op.create_table(
        "shadow_pairs",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), autoincrement=True, nullable=False),
        sa.Column("model", sa.String(200), nullable=False),
        sa.Column("shadow_version", sa.Integer, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("time", UtcDateTime, nullable=False),
        sa.Column("run", sa.String(128), nullable=False),
        sa.Column("group_key", sa.String(64), nullable=False),
        sa.Column("score", sa.Double, nullable=False),
        sa.Column("shadow_score", sa.Double, nullable=False),
        sa.Column("prompt", sa.Text, nullable=False),
        sa.Column("completion", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_shadow_pairs"),
    )
    op.create_index(
        "ix_shadow_pairs_model_shadow_version_version", "shadow_pairs", ["model", "shadow_version", "version"]
    )
    op.create_table(
        "outcomes",
        sa.Column("run", sa.String(128), nullable=False),
        sa.Column("model", sa.String(200), nullable=False),
        sa.Column("metric", sa.String(64), nullable=False),
        sa.Column("step", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("arm", sa.String(64), nullable=False),
        sa.Column("value", sa.Double, nullable=False),
        sa.Column("num_samples", sa.Integer, nullable=False),
        sa.Column("time", UtcDateTime, nullable=False),
        sa.PrimaryKeyConstraint("run", "model", "metric", "step", name="pk_outcomes"),
    )
    op.create_index("ix_outcomes_model_metric", "outcomes", ["model", "metric"])
    op.create_table(
        "components",
        sa.Column("model", sa.String(200), nullable=False),
        sa.Column("version", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("part_model", sa.String(200), nullable=False),
        sa.Column("part_version", sa.Integer, autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("model", "version", "part_model", "part_version", name="pk_components"),
        sa.ForeignKeyConstraint(
            ["model", "version"], ["versions.model", "versions.version"], name="fk_components_versions"
        ),
        sa.ForeignKeyConstraint(
            ["part_model", "part_version"], ["versions.model", "versions.version"], name="fk_components_parts"
        ),
    )
