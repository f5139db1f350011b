"""Which models, versions and labels exist. A change is one transaction: the change, its history, the new revision."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from types import MappingProxyType

from sqlalchemy import Connection, and_, delete, insert, select, update

from rm_server.errors import InvalidRequest, VersionChanged, VersionInUse, VersionNotFound
from rm_server.registry import queries
from rm_server.registry.change import Change
from rm_server.registry.database import Database
from rm_server.registry.in_use import uses_of
from rm_server.registry.label_trail import PROMOTE, ROLLBACK, SET_LABEL, label_trail, rollback_target
from rm_server.registry.names import MAX_NAME_LENGTH, check_digest, check_label, check_model_name
from rm_server.registry.parts import insert_parts, parts_by_composite
from rm_server.registry.records import (
    CalibrationRecord,
    EvaluationRecord,
    HistoryRecord,
    Snapshot,
    VersionKey,
    VersionRecord,
)
from rm_server.registry.tables import (
    components,
    evaluations,
    history,
    labels,
    models,
    serving_profiles,
    shadow_pairs,
    versions,
)


class Catalog:
    """The catalog behind a database URL of SQLAlchemy. Synchronous; any number of threads and processes at once.

    ``actor`` is who makes a change, ``comment`` why; both are kept in the history. A call that changes nothing (a label
    that is there already) leaves no trace. Every method raises CatalogUnavailable when the database cannot be used, and
    those that write raise StorageFull when its disk is full.
    """

    def __init__(self, url: str, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.database = Database(url)
        self._clock = clock

    def close(self) -> None:
        """Gives the database's connections back."""
        self.database.close()

    @contextmanager
    def changing(self, actor: str, comment: str) -> Iterator[Change]:
        """The transaction of one change. For this package's own modules."""
        with self.database.writing() as connection:
            yield Change(connection, self._clock(), actor, comment)

    # --- reading ---

    def revision(self) -> int:
        """How many changes there have been: cheap to ask, and a reason to read a new snapshot when it differs."""
        with self.database.reading() as connection:
            return queries.revision(connection)

    def snapshot(self) -> Snapshot:
        """Everything that routing needs, at one revision."""
        with self.database.reading() as connection:
            rows = connection.execute(select(versions).order_by(versions.c.model, versions.c.version)).all()
            return Snapshot(
                revision=queries.revision(connection),
                versions=MappingProxyType({(row.model, row.version): queries.version_record(row) for row in rows}),
                labels=MappingProxyType(
                    {(row.model, row.label): row.version for row in connection.execute(select(labels))}
                ),
                wanted=frozenset((row.model, row.version) for row in rows if row.wanted),
                wanted_precision=MappingProxyType(
                    {(row.model, row.version): row.wanted_precision for row in rows if row.wanted_precision}
                ),
                splits=MappingProxyType(queries.splits_by_model(connection)),
                pins=MappingProxyType(queries.pinned_versions(connection)),
                shadows=MappingProxyType(queries.shadows(connection)),
                parts=MappingProxyType(parts_by_composite(connection)),
                profiles=MappingProxyType(queries.serving_profiles_by_version(connection)),
            )

    def evaluations(self, model: str, version: int) -> tuple[EvaluationRecord, ...]:
        """What has been filed with a version, by name. Raises ModelNotFound or VersionNotFound."""
        with self.database.reading() as connection:
            queries.require_version(connection, model, version)
            rows = connection.execute(
                select(evaluations)
                .where(evaluations.c.model == model, evaluations.c.version == version)
                .order_by(evaluations.c.name)
            )
            return tuple(EvaluationRecord(row.name, row.report_json, row.create_time) for row in rows)

    def history(self, model: str | None = None, limit: int = 100) -> tuple[HistoryRecord, ...]:
        """The last changes of a model, or of all, newest first. Raises ModelNotFound."""
        query = select(history).order_by(history.c.revision.desc()).limit(limit)
        with self.database.reading() as connection:
            if model is not None:
                queries.require_model(connection, model)
                query = query.where(history.c.model == model)
            return tuple(queries.history_record(row) for row in connection.execute(query))

    # --- versions ---

    def register(
        self,
        model: str,
        digest: str,
        kind: str,
        max_tokens: int,
        actor: str,
        comment: str = "",
        *,
        origin: str = "",
        parts: Mapping[VersionKey, str] = MappingProxyType({}),
        golden_json: str | None = None,
        corrects_golden: bool = True,
    ) -> tuple[VersionRecord, bool]:
        """Makes an artifact the model's next version; (record, True). The model is made when it is new.

        ``origin``: where the files come from, a commit of a hub for example; kept in the history. ``parts``: what a
        composite is made of, with digests; ModelNotFound, VersionNotFound or DigestMismatch where that is not there.
        A digest that the model has already is that version: (record, False), and nothing changes but its golden
        examples, if ``corrects_golden``. ``golden_json``: as of `Manifest.golden_json`; None: as they were.
        """
        check_model_name(model)
        check_digest(digest)
        with self.changing(actor, comment) as change:
            query = select(versions).where(versions.c.model == model)
            known = change.connection.execute(query.where(versions.c.digest == digest)).one_or_none()
            if known is not None:
                record = queries.version_record(known)
                if corrects_golden and golden_json not in (None, record.golden_json):
                    _update_version(change.connection, *record.key, golden_json=golden_json)
                    num_examples = len(json.loads(golden_json)["golden"])
                    change.record("set_golden", *record.key, f"{num_examples} golden examples")
                    record = replace(record, golden_json=golden_json)
                return record, False
            version = _take_next_version(change.connection, model)
            change.connection.execute(
                insert(versions).values(
                    model=model,
                    version=version,
                    digest=digest,
                    kind=kind,
                    max_tokens=max_tokens,
                    create_time=change.time,
                    created_by=actor,
                    comment=comment,
                    wanted=False,
                    wanted_precision="",
                    golden_json=golden_json,
                )
            )
            insert_parts(change.connection, (model, version), parts)
            detail = f"{kind}, digest {digest}" + (f", from {origin}" if origin else "")
            change.record("register", model, version, detail)
            return queries.version_record(queries.require_version(change.connection, model, version)), True

    def delete_version(self, model: str, version: int, actor: str, comment: str = "") -> VersionRecord:
        """Takes a version and its evaluations out; its number is never used again. The files stay until a sweep.

        Raises VersionInUse while a label, split, composite, lease or server needs it; ModelNotFound, VersionNotFound.
        """
        with self.changing(actor, comment) as change:
            row = queries.require_version(change.connection, model, version)
            if uses := uses_of(change.connection, model, version, change.time):
                raise VersionInUse(f"{model}@{version} " + "; ".join(uses) + ".")
            for table in (evaluations, components, serving_profiles, versions):
                change.connection.execute(delete(table).where(table.c.model == model, table.c.version == version))
            compared = (shadow_pairs.c.model == model, shadow_pairs.c.shadow_version == version)
            change.connection.execute(delete(shadow_pairs).where(*compared))
            change.record("delete", model, version, f"digest {row.digest}")
            return queries.version_record(row)

    def set_wanted(
        self,
        model: str,
        version: int,
        wanted: bool,
        actor: str,
        comment: str = "",
        *,
        precision: str = "",
        why: str = "",
    ) -> None:
        """Says whether servers shall have a version loaded, and in which precision (empty: their default).

        ``why``: what the history says beside the precision. Raises ModelNotFound or VersionNotFound.
        """
        precision = precision if wanted else ""
        with self.changing(actor, comment) as change:
            row = queries.require_version(change.connection, model, version)
            if (row.wanted, row.wanted_precision) == (wanted, precision):
                return
            _update_version(change.connection, model, version, wanted=wanted, wanted_precision=precision)
            change.record("load" if wanted else "unload", model, version, precision or why)

    # --- labels ---

    def set_label(self, model: str, label: str, version: int, actor: str, comment: str = "") -> int | None:
        """Lets a label name a version. Returns what it named before, or None. Raises ModelNotFound, VersionNotFound."""
        check_label(label)
        with self.changing(actor, comment) as change:
            queries.require_version(change.connection, model, version)
            previous = queries.label_version(change.connection, model, label)
            if previous != version:
                _move_label(change, SET_LABEL, model, label, version, previous)
            return previous

    def promote(
        self, model: str, label: str, version: int, actor: str, comment: str = "", *, expected: int | None, why: str
    ) -> int | None:
        """As `set_label`, after the gate spoke about ``expected``, which the label must still name (None: nothing).

        ``why``: what the gate said, for the history. Raises VersionChanged, too.
        """
        check_label(label)
        with self.changing(actor, comment) as change:
            queries.require_version(change.connection, model, version)
            previous = queries.label_version(change.connection, model, label)
            if previous != expected:
                raise VersionChanged(f"{model}@{label} was moved meanwhile, to {previous or 'nothing'}. Promote again.")
            if previous != version:
                _move_label(change, PROMOTE, model, label, version, previous, why)
            return previous

    def remove_label(self, model: str, label: str, actor: str, comment: str = "") -> int:
        """Takes a label away. Returns what it named. Raises ModelNotFound, LabelNotFound."""
        with self.changing(actor, comment) as change:
            previous = queries.require_label(change.connection, model, label)
            change.connection.execute(delete(labels).where(labels.c.model == model, labels.c.label == label))
            detail = f"{label}: {previous} → none"
            change.record("remove_label", model, 0, detail, label=label, previous_version=previous)
            return previous

    def rollback_versions(self, model: str, label: str) -> tuple[int, int]:
        """What a label names, and what `rollback` would let it name. Raises as that does."""
        with self.database.reading() as connection:
            return _rollback_versions(connection, model, label)

    def rollback(
        self, model: str, label: str, actor: str, comment: str = "", *, expected: int | None = None
    ) -> tuple[int, int]:
        """Lets a label name what it named before; (version until now, version from now on). Again: further back.

        ``expected``: the version that it must go back to, as `rollback_versions` said. Raises ModelNotFound,
        LabelNotFound, VersionNotFound when there is no earlier version any more, VersionChanged when it is not
        ``expected``.
        """
        with self.changing(actor, comment) as change:
            present, target = _rollback_versions(change.connection, model, label)
            if expected not in (None, target):
                raise VersionChanged(f"{model}@{label} was moved meanwhile: it would go back to {target}. Ask again.")
            _move_label(change, ROLLBACK, model, label, target, present)
            return present, target

    # --- what is filed with a version ---

    def file_evaluation(
        self, model: str, version: int, name: str, report_json: str, actor: str, comment: str = ""
    ) -> None:
        """Files a report (a JSON object) with a version; one of the same name is replaced.

        Raises ModelNotFound, VersionNotFound, InvalidRequest.
        """
        _check_report(name, report_json)
        with self.changing(actor, comment) as change:
            queries.require_version(change.connection, model, version)
            key = and_(evaluations.c.model == model, evaluations.c.version == version, evaluations.c.name == name)
            change.connection.execute(delete(evaluations).where(key))
            change.connection.execute(
                insert(evaluations).values(
                    model=model, version=version, name=name, report_json=report_json, create_time=change.time
                )
            )
            change.record("file_evaluation", model, version, name)

    def set_calibration(
        self, model: str, version: int, calibration: CalibrationRecord, actor: str, comment: str = ""
    ) -> None:
        """Gives a version its map to the model's scale, in place of the one it has.

        Raises ModelNotFound, VersionNotFound, InvalidRequest.
        """
        check_digest(calibration.digest)
        if not (math.isfinite(calibration.gain) and calibration.gain != 0 and math.isfinite(calibration.bias)):
            raise InvalidRequest(
                f"A calibration needs a finite gain other than 0 and a finite bias, not {calibration}."
            )
        with self.changing(actor, comment) as change:
            if (
                queries.version_record(queries.require_version(change.connection, model, version)).calibration
                == calibration
            ):
                return
            _update_version(
                change.connection,
                model,
                version,
                calibration_digest=calibration.digest,
                calibration_gain=calibration.gain,
                calibration_bias=calibration.bias,
            )
            detail = f"gain {calibration.gain!r}, bias {calibration.bias!r}, digest {calibration.digest}"
            change.record("set_calibration", model, version, detail)


def _rollback_versions(connection: Connection, model: str, label: str) -> tuple[int, int]:
    present = queries.require_label(connection, model, label)
    changes = connection.execute(
        select(history.c.action, history.c.version)
        .where(history.c.model == model, history.c.label == label)
        .order_by(history.c.revision)
    ).all()
    trail = label_trail((row.action, row.version) for row in changes)
    target = rollback_target(trail, present, queries.version_numbers(connection, model))
    if target is None:
        raise VersionNotFound(f"{model}@{label} names {present}, and no earlier version of it is left.")
    return present, target


def _move_label(
    change: Change, action: str, model: str, label: str, version: int, previous: int | None, why: str = ""
) -> None:
    if previous is None:
        change.connection.execute(insert(labels).values(model=model, label=label, version=version))
    else:
        key = and_(labels.c.model == model, labels.c.label == label)
        change.connection.execute(update(labels).where(key).values(version=version))
    detail = f"{label}: {previous or 'none'} → {version}" + (f"; {why}" if why else "")
    change.record(action, model, version, detail, label=label, previous_version=previous or 0)


def _take_next_version(connection: Connection, model: str) -> int:
    """The model's next number; the model is made when it is new."""
    number: int | None = connection.scalar(select(models.c.next_version).where(models.c.name == model))
    if number is None:
        connection.execute(insert(models).values(name=model, next_version=2))
        return 1
    connection.execute(update(models).where(models.c.name == model).values(next_version=number + 1))
    return number


def _update_version(connection: Connection, model: str, version: int, **values: object) -> None:
    key = and_(versions.c.model == model, versions.c.version == version)
    connection.execute(update(versions).where(key).values(**values))


def _check_report(name: str, report_json: str) -> None:
    try:
        is_object = isinstance(json.loads(report_json), dict)
    except ValueError:
        is_object = False
    if not is_object:
        raise InvalidRequest(f"The evaluation {name!r} is no JSON object; `rm-server evaluate --json` prints one.")
    if not 0 < len(name) <= MAX_NAME_LENGTH:
        raise InvalidRequest(f"An evaluation needs a name of 1 to {MAX_NAME_LENGTH} characters, not {name!r}.")
