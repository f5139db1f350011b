"""Takes a folder into a home as a version: manifest, golden examples, digest, files, calibration, evaluations.

Everything is computed and checked before the first change, and every change can be repeated: a registration that was
killed is made whole by the same call.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from rm_server.backends.interface import ComputeSettings, Encoder
from rm_server.backends.loading import infer_manifest, load_encoder
from rm_server.backends.plain_folder import scoring_label
from rm_server.errors import InvalidRequest, RmError
from rm_server.registry.artifacts import ArtifactStore
from rm_server.registry.digest import digest_of, hash_file
from rm_server.registry.home import Home, add_version, as_version, open_home
from rm_server.registry.layout import SPLIT_FILE
from rm_server.registry.lora import folder_with_base
from rm_server.registry.manifest import FILE_NAME as MANIFEST_NAME
from rm_server.registry.manifest import Kind, Manifest, TruncationRule, read_manifest
from rm_server.registry.names import check_model_name
from rm_server.registry.records import CalibrationRecord, VersionRecord
from rm_server.registry.versions_by_name import find_version
from rm_server.training.adapter_base import named_base, with_base
from rm_server.training.calibration import Calibration, match_moments, standardise
from rm_server.training.composite_scoring import AllEncoders, version_scorer
from rm_server.training.golden import check_golden, choose_golden_texts, record_golden
from rm_server.training.offline_scoring import ScoreTexts
from rm_server.training.preferences import read_split
from rm_server.training.reference_texts import BUILT_IN_TEXTS, Text, read_texts
from rm_server.training.sources import check_source, version_source
from rm_server.training.statistics import FloatArray

logger = logging.getLogger(__name__)

EVALUATION_FILE = "evaluation.json"
"""Filed with the version without being named: `rm-server train` leaves it in the folder."""


@dataclass(frozen=True, slots=True)
class Reading:
    """How the version reads its input, where that shall differ from what the folder says. None: as it says.

    ``label_index``: which label's logit is the score, by index or by name.
    """

    template: str | None = None
    label_index: int | str | None = None
    max_tokens: int | None = None
    truncation: TruncationRule | None = None
    append_eos: bool | None = None
    trim_padding: bool | None = None

    @property
    def given(self) -> dict[str, Any]:
        """What shall differ, by the manifest's names."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, slots=True)
class Registration:
    """What became of a registration. ``created`` False: the model had this content already, and it is that version.

    ``label``: which of several scores, by index and name; empty where there are not several.
    """

    record: VersionRecord
    created: bool
    manifest: Manifest
    label: str
    calibration: Calibration | None
    evaluations: tuple[str, ...]


def register_folder(
    home: Home | Path,
    model: str,
    source: str,
    *,
    actor: str,
    comment: str = "",
    reading: Reading = Reading(),
    base: str | None = None,
    golden_data: Path | None = None,
    reference_data: Path | None = None,
    match: str | None = None,
    evaluations: Sequence[Path] = (),
    device: str = "cpu",
    shows_progress: bool = False,
) -> Registration:
    """Registers ``source`` (a folder, ``hf://org/name@revision`` or ``mlflow:…``) as the next version of ``model``.

    A plain Hugging Face folder gets its manifest inferred; the folder itself is not written to.

    ``base``: of an adapter whose folder says nothing of its base: a version of this home, or a source like ``source``,
    which becomes a version of ``<model>-base`` first; without it, what the adapter's config names on the hub.
    ``golden_data``: texts for golden examples; without it the folder's own are checked and kept, else built-in texts
    are scored, for a version that is new.
    ``reference_data``: texts on which the version's scores are calibrated to mean 0 and standard deviation
    1, or, with ``match`` (``model@3`` or ``model@label``), to mean and standard deviation of that version's scores, on
    its own scale, of the same texts. ``evaluations``: reports of `rm-server evaluate --json`. Files of texts are
    preference pairs or rows with ``completion``, see `read_texts`.

    Raises InvalidRequest (a name, a report of another version, data that cannot be used), BrokenVersion subclasses,
    OutOfMemory, StorageFull, CatalogUnavailable; nothing is registered then.
    """
    check_model_name(model)
    if match is not None and reference_data is None:
        raise InvalidRequest("To match another version's scale, give reference data: texts that both versions score.")
    check_source(source)  # before a home is made for it
    with ExitStack() as stack:
        catalog, artifacts = open_home(home)
        stack.callback(catalog.close)
        found = stack.enter_context(version_source(source, artifacts))
        if (found.folder / SPLIT_FILE).is_file():
            read_split(found.folder / SPLIT_FILE)  # it is kept, for evaluations
        whole = found.folder
        base = base or named_base(found.folder)
        if base is not None:
            whole = stack.enter_context(with_base(found.folder, base, catalog.snapshot(), artifacts))
        manifest = _manifest_of(whole, reading)
        _check_reading(manifest.kind, reading)
        if not manifest.reads_prompt:
            logger.warning("Prompts will not be read: the template %r has no {prompt}.", manifest.template)
        # A composite's file says by number and digest what it is made of, an adapter's what its base is.
        folder = stack.enter_context(as_version(catalog, artifacts, model, whole, manifest, actor=actor))
        settings = ComputeSettings(device=device, deterministic=True, keeps_file_type=True)
        score = version_scorer(folder, manifest, artifacts, settings, shows_progress=shows_progress)
        label = scoring_label(folder, manifest)
        brings_golden = golden_data is not None or bool(manifest.golden)
        manifest = _with_golden(manifest, golden_data, _encoder_of(folder, manifest, artifacts), score)
        reports = _read_reports(found.folder, evaluations, digest_of(folder, manifest))
        calibration = None
        if reference_data is not None:
            target = None if match is None else find_version(catalog.snapshot(), match)
            calibration = _calibrate(score, reference_data, target, artifacts, settings)
        record, created = add_version(
            catalog,
            artifacts,
            model,
            folder,
            actor=actor,
            comment=comment or f"from {found.origin or source}",
            origin=found.origin,
            manifest=manifest,
            corrects_golden=brings_golden,
        )
        manifest = read_manifest(artifacts.path(record.digest), record.golden_json)
        if calibration is not None:
            in_catalog = CalibrationRecord(calibration.digest, calibration.gain, calibration.bias)
            catalog.set_calibration(model, record.version, in_catalog, actor, calibration.source)
            record = replace(record, calibration=in_catalog)
        for name, report in reports.items():
            catalog.file_evaluation(model, record.version, name, report, actor)
        return Registration(record, created, manifest, label, calibration, tuple(reports))


def _encoder_of(folder: Path, manifest: Manifest, artifacts: ArtifactStore) -> Encoder:
    if manifest.kind == "composite":
        return AllEncoders(folder, manifest, artifacts)
    return load_encoder(folder, manifest)


def _check_reading(kind: Kind, reading: Reading) -> None:
    """Refuses what would be passed over: rules have no tokenizer, and a composite's versions read as they were made to.

    Raises InvalidRequest.
    """
    usable = {"rules": ("max_tokens", "truncation"), "composite": ()}.get(kind)
    if usable is None:
        return
    if useless := [f"--{name.replace('_', '-')}" for name in reading.given if name not in usable]:
        what = (
            "a version of rules has neither tokenizer nor head"
            if kind == "rules"
            else "each version that a composite is made of reads as it was registered: register that otherwise"
        )
        raise InvalidRequest(f"{', '.join(useless)}: {what}. Leave it out.")


def _manifest_of(folder: Path, reading: Reading) -> Manifest:
    if not (folder / MANIFEST_NAME).exists():
        return infer_manifest(folder, **reading.given)
    manifest = read_manifest(folder)
    if isinstance(reading.label_index, str):
        by_name = infer_manifest(folder, label_index=reading.label_index)
        reading = replace(reading, label_index=by_name.label_index)
    changed = replace(manifest, **reading.given)
    # Scores recorded with another reading say nothing about this one.
    return changed if changed.score_deciding() == manifest.score_deciding() else replace(changed, golden=())


def _with_golden(manifest: Manifest, golden_data: Path | None, encoder: Encoder, score: ScoreTexts) -> Manifest:
    if golden_data is None and manifest.golden:
        check_golden(manifest, score)
        return manifest
    texts = BUILT_IN_TEXTS if golden_data is None else read_texts(golden_data)
    chosen = choose_golden_texts(texts, encoder)
    if golden_data is not None and not chosen:
        raise InvalidRequest(f"No text of {golden_data} can be a golden example: the version cannot read any of them.")
    return record_golden(manifest, chosen, score)


def _calibrate(
    score: ScoreTexts,
    reference_data: Path,
    target: VersionRecord | None,
    artifacts: ArtifactStore,
    settings: ComputeSettings,
) -> Calibration:
    texts = read_texts(reference_data)
    source = f"{reference_data.name}, SHA-256 {hash_file(reference_data)[1]}"
    scores = _scores(texts, score)
    if target is None:
        return standardise(scores[np.isfinite(scores)], source)
    folder = folder_with_base(artifacts, target.digest)
    targets = _scores(texts, version_scorer(folder, read_manifest(folder), artifacts, settings))
    if target.calibration is not None:
        targets = target.calibration.apply(targets)
        source += f", calibration {target.calibration.digest}"
    both = np.isfinite(scores) & np.isfinite(targets)
    return match_moments(scores[both], targets[both], f"{source}, scale of {target.model}@{target.version}")


def _scores(texts: Sequence[Text], score: ScoreTexts) -> FloatArray:
    """NaN marks a text without a score (too long, say); it takes no part."""
    results = [scored.score for scored in score(texts)]
    errors = [result for result in results if isinstance(result, RmError)]
    if errors:
        logger.warning("%d of %d reference texts have no score, the first: %s", len(errors), len(texts), errors[0])
    return np.array([np.nan if isinstance(result, RmError) else result for result in results], np.float64)


def _read_reports(folder: Path, evaluations: Sequence[Path], digest: str) -> dict[str, str]:
    """Name → JSON of the reports given, or of the one that lies in the folder. Raises InvalidRequest."""
    lying_there = folder / EVALUATION_FILE
    if not evaluations and lying_there.is_file():
        report = _read_report(lying_there)
        if report.get("digest") == digest:
            return {_name_of(lying_there, report): json.dumps(report)}
        logger.warning(
            "%s is not filed with the version: it %s. `rm-server evaluate --home DIR --model MODEL@N --data PAIRS "
            "--file` evaluates the version as it is.",
            lying_there,
            # Of an adapter it was written before its base had a number.
            "is of another content, or of another reading" if report.get("digest") else "names no digest",
        )
        return {}
    reports = {}
    for path in evaluations:
        report = _read_report(path)
        if (report.get("digest") or digest) != digest:  # that of an adapter is not known before it is registered
            raise InvalidRequest(
                f"{path} evaluates the digest {report['digest']}, and this version has {digest}. Evaluate it again."
            )
        name = _name_of(path, report)
        if name in reports:
            raise InvalidRequest(f"Two of the evaluations are of {name!r}; one can be filed under a name.")
        reports[name] = json.dumps(report)
    return reports


def _read_report(path: Path) -> dict[str, Any]:
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"{path} cannot be read as an evaluation: {error}") from error
    if not isinstance(report, dict):
        raise InvalidRequest(f"{path} is no evaluation: a JSON object is expected.")
    return report


def _name_of(path: Path, report: dict[str, Any]) -> str:
    """What it was computed on, else the file's name."""
    data = report.get("data")
    name = data.get("path") if isinstance(data, dict) else None
    return Path(name if isinstance(name, str) and name else path.name).name.split(".")[0]
