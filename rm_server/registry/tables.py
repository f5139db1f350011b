"""The catalog's tables. A change here needs a migration beside it (`migrations/versions`)."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import (
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
