"""The catalog's tables. A change here needs a migration beside it (`migrations/versions`)."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Dialect,
    Double,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)


class UtcDateTime(TypeDecorator[datetime]):
    """A point in time, in UTC on both sides. SQLite keeps no time zone: there the zone is taken off and put back."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Refuses times without a zone: nobody could say what they mean."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value} has no time zone.")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """With its zone again."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


# One row. `revision` counts the changes, and locking the row puts writers in line. `oldest_schema`: the oldest schema
# whose programs can work on this one, so that servers one release apart share a catalog.
state = Table(
    "catalog_state",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("revision", Integer, nullable=False),
    Column("oldest_schema", String(32), nullable=False),
    # Counts the changes of what runs were given.
    Column("run_revision", BigInteger, nullable=False, server_default="0"),
)

# A model stays when its last version is deleted, because numbers are never given twice.
models = Table(
    "models",
    metadata,
    Column("name", String(200), primary_key=True),
    Column("next_version", Integer, nullable=False),
)

versions = Table(
    "versions",
    metadata,
    Column("model", String(200), primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("digest", String(64), nullable=False),
    Column("kind", String(64), nullable=False),
    Column("max_tokens", Integer, nullable=False),
    Column("create_time", UtcDateTime, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("comment", Text, nullable=False),
    # Whether a server shall have it loaded, and in which precision. Empty: the server's default.
    Column("wanted", Boolean, nullable=False),
    Column("wanted_precision", String(16), nullable=False),
    # All three or none.
    Column("calibration_digest", String(64)),
    Column("calibration_gain", Double),
    Column("calibration_bias", Double),
    # Golden examples and tolerances: versions of the same content share their files, and not these. NULL: as its files
    # say, of a version that came without, or in a former release.
    Column("golden_json", Text),
    ForeignKeyConstraint(["model"], ["models.name"]),
    UniqueConstraint("model", "digest"),
)

labels = Table(
    "labels",
    metadata,
    Column("model", String(200), primary_key=True),
    Column("label", String(200), primary_key=True),
    Column("version", Integer, nullable=False),
    ForeignKeyConstraint(["model", "version"], ["versions.model", "versions.version"]),
)

evaluations = Table(
    "evaluations",
    metadata,
    Column("model", String(200), primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("name", String(200), primary_key=True),
    Column("report_json", Text, nullable=False),
    Column("create_time", UtcDateTime, nullable=False),
    ForeignKeyConstraint(["model", "version"], ["versions.model", "versions.version"]),
)

# No foreign keys: it tells of versions that are gone, too.
history = Table(
    "history",
    metadata,
    # The catalog's revision that the change made.
    Column("revision", Integer, primary_key=True, autoincrement=False),
    Column("time", UtcDateTime, nullable=False),
    Column("actor", Text, nullable=False),
    Column("action", String(64), nullable=False),
    Column("model", String(200), nullable=False),
    Column("version", Integer, nullable=False),
    Column("label", String(200), nullable=False),
    Column("previous_version", Integer, nullable=False),
    Column("detail", Text, nullable=False),
    Column("comment", Text, nullable=False),
    Index(None, "model", "label"),
)

# A run's version of a model, for the bare name. Not in the history, and no new revision: runs come and go.
runs = Table(
    "runs",
    metadata,
    Column("run", String(128), primary_key=True),
    Column("model", String(200), primary_key=True),
    Column("version", Integer, nullable=False),
    Column("digest", String(64), nullable=False),
    # Of the split that chose the version. Empty: no split did.
    Column("arm", String(64), nullable=False),
    Column("lease_s", Double, nullable=False),
    Column("register_time", UtcDateTime, nullable=False),
    # Written now and then, not with every call: the lease may last longer than this says, never shorter.
    Column("last_seen", UtcDateTime, nullable=False),
    Column("lease_expires_at", UtcDateTime, nullable=False),
    Column("has_ended", Boolean, nullable=False),
    # The state's `run_revision` when the run was last given a version, or ended; signs of life do not change it.
    Column("revision", BigInteger, nullable=False),
    Index(None, "last_seen"),
    Index(None, "revision"),
    Index(None, "model", "version"),
    # Not by the time alone: SQLite would rather go through all runs in the order in which they are to be counted.
    Index(None, "has_ended", "lease_expires_at"),
)

# Raw scores of a run by one version, summed over servers. `squares`: sum of squared deviations from the mean.
# The rates are those of the moment `last_seen`, with exponentially less weight on what is longer ago.
run_statistics = Table(
    "run_statistics",
    metadata,
    Column("run", String(128), primary_key=True),
    Column("model", String(200), primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("num_items", BigInteger, nullable=False),
    Column("num_tokens", BigInteger, nullable=False),
    Column("score_mean", Double, nullable=False),
    Column("score_squares", Double, nullable=False),
    Column("items_per_s", Double, nullable=False),
    Column("tokens_per_s", Double, nullable=False),
    Column("last_seen", UtcDateTime, nullable=False),
    Index(None, "last_seen"),
)

splits = Table(
    "splits",
    metadata,
    Column("model", String(200), primary_key=True),
    Column("salt", String(200), nullable=False),
    Column("update_time", UtcDateTime, nullable=False),
    ForeignKeyConstraint(["model"], ["models.name"]),
)

split_arms = Table(
    "split_arms",
    metadata,
    Column("model", String(200), primary_key=True),
    Column("arm", String(64), primary_key=True),
    Column("position", Integer, nullable=False),
    Column("version", Integer, nullable=False),
    Column("weight", Double, nullable=False),
    # A list of [seconds since the epoch, weight], ascending in time.
    Column("ramp_json", Text, nullable=False),
    ForeignKeyConstraint(["model"], ["splits.model"]),
    ForeignKeyConstraint(["model", "version"], ["versions.model", "versions.version"]),
)

pins = Table(
    "pins",
    metadata,
    Column("model", String(200), primary_key=True),
    Column("run", String(128), primary_key=True),
    Column("version", Integer, nullable=False),
    ForeignKeyConstraint(["model", "version"], ["versions.model", "versions.version"]),
)

shadows = Table(
    "shadows",
    metadata,
    Column("model", String(200), primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("share", Double, nullable=False),
    Column("create_time", UtcDateTime, nullable=False),
    ForeignKeyConstraint(["model", "version"], ["versions.model", "versions.version"]),
)

# A bounded sample of items that a shadow scored, too. No foreign keys: the comparison outlives the shadow.
shadow_pairs = Table(
    "shadow_pairs",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("model", String(200), nullable=False),
    Column("shadow_version", Integer, nullable=False),
    Column("version", Integer, nullable=False),
    Column("time", UtcDateTime, nullable=False),
    Column("run", String(128), nullable=False),
    # Names the group (one prompt with its completions) within the call, so that flips of the best can be counted.
    Column("group_key", String(64), nullable=False),
    Column("score", Double, nullable=False),
    Column("shadow_score", Double, nullable=False),
    # Empty unless text logging is allowed.
    Column("prompt", Text, nullable=False),
    Column("completion", Text, nullable=False),
    Index(None, "model", "shadow_version", "version"),
)

outcomes = Table(
    "outcomes",
    metadata,
    Column("run", String(128), primary_key=True),
    Column("model", String(200), primary_key=True),
    Column("metric", String(64), primary_key=True),
    Column("step", BigInteger, primary_key=True, autoincrement=False),
    Column("version", Integer, nullable=False),
    Column("arm", String(64), nullable=False),
    Column("value", Double, nullable=False),
    Column("num_samples", Integer, nullable=False),
    Column("time", UtcDateTime, nullable=False),
    Index(None, "model", "metric"),
)

# What a composite version is made of, so that its parts are neither deleted nor unloaded under it.
components = Table(
    "components",
    metadata,
    Column("model", String(200), primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("part_model", String(200), primary_key=True),
    Column("part_version", Integer, primary_key=True, autoincrement=False),
    ForeignKeyConstraint(["model", "version"], ["versions.model", "versions.version"]),
    ForeignKeyConstraint(
        ["part_model", "part_version"], ["versions.model", "versions.version"], name="fk_components_parts"
    ),
)

# How `rm-server tune` found a version to be computed best on a kind of machine.
serving_profiles = Table(
    "serving_profiles",
    metadata,
    Column("model", String(200), primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("device", String(200), primary_key=True),
    Column("precision", String(16), nullable=False),
    Column("workers", Integer, nullable=False),
    Column("threads_per_worker", Integer, nullable=False),
    Column("max_batch_tokens", Integer, nullable=False),
    Column("tokens_per_s", Double, nullable=False),
    Column("create_time", UtcDateTime, nullable=False),
    ForeignKeyConstraint(["model", "version"], ["versions.model", "versions.version"]),
)
