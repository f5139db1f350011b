"""The operator's actions on a home, with no server asked: the same methods and rows as api/admin.py."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rm_server.commands.home_outcomes import HomeOutcomes
from rm_server.commands.home_runs import HomeRuns
from rm_server.registry.names import check_label
from rm_server.registry.shadows import remove_shadow, set_shadow
from rm_server.scoring.comparison.promotion import check_reason, decide, refusal, spoken
from rm_server.scoring.comparison.promotion_evidence import read_evidence
from rm_server.scoring.comparison.shadow_report import read_report

if TYPE_CHECKING:
    from rm_server.registry.catalog import Catalog
    from rm_server.registry.records import HistoryRecord, Shadow, Snapshot, VersionRecord

Row = dict[str, Any]


class HomeAdmin(HomeRuns, HomeOutcomes):
    """Changes the catalog itself. A server that runs on it follows within a second or two; others when they start."""

    def __init__(self, catalog: Catalog, actor: str) -> None:
        self._catalog = catalog
        self._actor = actor

    def models(self, model: str = "") -> list[Row]:
        """All models, or one, with their versions."""
        snapshot = self._catalog.snapshot()
        snapshot.require_known(model)
        return [_model(snapshot, name) for name in snapshot.models() if model in ("", name)]

    def delete(self, model: str, version: int, *, comment: str = "") -> None:
        """Takes a version out of the catalog; its files stay until `rm-server gc`, or a server's next deletion."""
        self._catalog.delete_version(model, version, self._actor, comment)

    def set_label(
        self, model: str, label: str, version: int, *, load: bool, unload_previous: bool, comment: str = ""
    ) -> int | None:
        """Moves a label, and says that the version shall be loaded: servers move the label when they have done so."""
        check_label(label)
        self._want(model, version, comment)
        previous = self._catalog.set_label(model, label, version, self._actor, comment)
        if unload_previous and previous not in (None, version):
            self._unwant(model, previous, comment)
        return previous

    def remove_label(self, model: str, label: str, *, comment: str = "") -> int:
        """Takes a label away; what it named."""
        return self._catalog.remove_label(model, label, self._actor, comment)

    def rollback(self, model: str, label: str, *, comment: str = "") -> tuple[int, int]:
        """Lets a label name what it named before: (version until now, version from now on)."""
        return self._catalog.rollback(model, label, self._actor, comment)

    def promote(self, model: str, version: int, label: str, *, force: bool, dry_run: bool, comment: str = "") -> Row:
        """Asks the gate, and moves the label as `set_label` does."""
        check_label(label)
        check_reason(force, comment)
        evidence = read_evidence(self._catalog, model, version, label)
        decision = decide(evidence)
        present = None if evidence.present is None else evidence.present.version
        if not dry_run:
            if not (decision.is_allowed or force):
                raise refusal(evidence, decision)
            self._want(model, version, comment)
            self._catalog.promote(model, label, version, self._actor, comment, expected=present, why=spoken(decision))
        return {
            "model": model,
            "label": label,
            "version": version,
            "previous_version": present,
            "allowed": decision.is_allowed,
            "promoted": not dry_run and present != version,
            "findings": list(decision.findings),
        }

    def history(self, model: str = "", limit: int = 0) -> list[Row]:
        """The last changes, newest first."""
        return [_change(record) for record in self._catalog.history(model or None, limit or 100)]

    def set_shadow(self, model: str, version: int, share: float, *, load: bool, comment: str = "") -> Row:
        """Lets a version shadow; servers load it for that, whether ``load`` says so or not."""
        return _shadow(set_shadow(self._catalog, model, version, share, self._actor, comment))

    def shadows(self, model: str = "") -> list[Row]:
        """The shadows of a model, or all."""
        snapshot = self._catalog.snapshot()
        snapshot.require_known(model)
        return [_shadow(shadow) for shadow in snapshot.shadows.values() if model in ("", shadow.model)]

    def remove_shadow(self, model: str, version: int, *, comment: str = "") -> None:
        """Ends a shadow."""
        remove_shadow(self._catalog, model, version, self._actor, comment)

    def shadow_report(self, model: str, version: int, against: int | None = None) -> Row:
        """By the pairs that servers have written: the last seconds may be missing."""
        return read_report(self._catalog, model, version, against)

    def _want(self, model: str, version: int, comment: str) -> None:
        if (model, version) not in self._catalog.snapshot().wanted:  # else its precision would be forgotten
            self._catalog.set_wanted(model, version, True, self._actor, comment)

    def _unwant(self, model: str, version: int | None, comment: str) -> None:
        if version is not None and version not in self._catalog.snapshot().labels_of(model).values():
            self._catalog.set_wanted(model, version, False, self._actor, comment)


def _model(snapshot: Snapshot, name: str) -> Row:
    return {
        "model": name,
        "labels": snapshot.labels_of(name),
        "versions": [_version(snapshot, snapshot.versions[name, version]) for version in snapshot.versions_of(name)],
    }


def _version(snapshot: Snapshot, record: VersionRecord) -> Row:
    calibration = record.calibration
    labels = snapshot.labels_of(record.model)
    return {
        "model": record.model,
        "version": record.version,
        "digest": record.digest,
        "kind": record.kind,
        "state": "wanted" if record.key in snapshot.wanted else "registered",
        "error": None,
        "labels": [label for label, version in labels.items() if version == record.version],
        "create_time": _time(record.create_time.isoformat()),
        "created_by": record.created_by,
        "comment": record.comment,
        "memory_bytes": 0,
        "max_tokens": record.max_tokens,
        "parts": [f"{part}@{number}" for part, number in snapshot.parts.get(record.key, ())],
        "precision": None,
        "calibration": {"digest": calibration.digest, "gain": calibration.gain, "bias": calibration.bias}
        if calibration
        else None,
    }


def _change(record: HistoryRecord) -> Row:
    return {
        "time": _time(record.time.isoformat()),
        "actor": record.actor,
        "action": record.action,
        "model": record.model,
        "version": record.version or None,
        "detail": record.detail,
        "comment": record.comment,
    }


def _shadow(shadow: Shadow) -> Row:
    return {
        "model": shadow.model,
        "version": shadow.version,
        "share": shadow.share,
        "create_time": _time(shadow.create_time.isoformat()),
    }


def _time(text: str) -> str:
    return text.replace("+00:00", "Z")
