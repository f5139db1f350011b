"""A version becomes an ONNX version: exported, compared with the original, and registered beside it.

The graph is checked twice before anything is registered: in fp32 against transformers' own forward on random items of
ragged lengths (an architecture takes part because it was seen to agree), and on real texts through the whole path of a
server: tokenizer, padding, ONNX Runtime.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from rm_server.backends.interface import ComputeSettings
from rm_server.errors import ConstantOutput, GoldenMismatch, InvalidRequest, RmError, UnsupportedArtifact
from rm_server.registry.artifacts import ArtifactStore
from rm_server.registry.catalog import Catalog
from rm_server.registry.digest import digest_of, hash_file
from rm_server.registry.home import add_version
from rm_server.registry.layout import WEIGHTS, WEIGHTS_INDEX, files_beside, version_files
from rm_server.registry.manifest import GoldenExample, Manifest, Precision, read_manifest, write_manifest
from rm_server.registry.onnx_file import MODEL
from rm_server.registry.records import VersionRecord, version_name
from rm_server.registry.versions_by_name import find_version
from rm_server.training.offline_scoring import Scored, ScoreTexts, offline_scorer
from rm_server.training.preferences import Preference, read_preferences
from rm_server.training.reference_texts import BUILT_IN_TEXTS, Text, read_texts
from rm_server.training.score_change import AccuracyChange, ScoreChange, accuracy_change, score_change
from rm_server.training.statistics import FloatArray

EVALUATION_NAME = "export"
"""Under which the report is filed with the ONNX version."""

LARGEST_FP32_DIFFERENCE = 1e-3
"""Of the graph's logits from the model's own, relative to their spread; rounding is a few millionths of it."""

# A machine with other instructions rounds otherwise; the golden check must pass there, too.
_INT8_SLACK = 2.0


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was exported, and how its scores differ from the original's in fp32.

    ``source`` is the original's name, ``source_digest`` its digest. ``accuracy`` where preference data was given.
    """

    source: str
    source_digest: str
    digest: str
    precision: Precision
    opset: int
    size_bytes: int
    source_size_bytes: int
    scores: ScoreChange
    accuracy: AccuracyChange | None
    data: str | None
    data_sha256: str | None
    create_time: str

    def to_json(self) -> str:
        """As it is filed: indented, newline at the end."""
        return json.dumps(self.as_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def as_dict(self) -> dict[str, Any]:
        """For printing as JSON; ``digest`` and ``data`` as in the reports of `rm-server evaluate`."""
        content = asdict(self)
        content["data"] = {"path": content.pop("data"), "sha256": content.pop("data_sha256")} if self.data else None
        return content


@dataclass(frozen=True, slots=True)
class Export:
    """The ONNX version. ``created`` False: the model had that content already, and it is that version."""

    record: VersionRecord
    created: bool
    report: ExportReport


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """``int8``: dynamic quantization of the backbone. ``opset`` None: the exporter's own choice.

    ``data``: preference pairs, for the accuracy before and after. ``reference_data``: more texts to compare scores on.
    ``min_spearman``: below this rank correlation with the original on the compared texts nothing is written.
    """

    int8: bool = False
    opset: int | None = None
    data: Path | None = None
    reference_data: Path | None = None
    min_spearman: float = 0.9
    threads: int = 0
    shows_progress: bool = False

    @property
    def precision(self) -> Precision:
        """Of the version that comes out."""
        return "int8" if self.int8 else "fp32"


def export_folder(
    folder: Path, manifest: Manifest, out: Path, options: ExportOptions = ExportOptions(), *, name: str | None = None
) -> tuple[Manifest, ExportReport]:
    """Writes the ONNX version of ``folder`` into ``out``, which is made, or is empty.

    Its golden examples are the original's, with the original's scores in fp32, so that they go on saying what the
    version should give; the tolerance of int8 is that of fp32 and twice the largest difference that was seen on the
    compared texts.

    Raises InvalidRequest, UnsupportedArtifact (a kind or an architecture that does not export), GoldenMismatch (scores
    that are too far off), ConstantOutput, and what loading the original raises. ``out`` holds nothing then.
    """
    if manifest.kind != "sequence_classification":
        raise UnsupportedArtifact(
            f"A version of the kind {manifest.kind!r} is not exported; sequence_classification versions are."
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InvalidRequest(f"{out} is there already and is no empty folder; name a new one.")
    made_here = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    try:
        return _export(folder, manifest, out, options, name or folder.name)
    except BaseException:
        for path in out.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        if made_here:
            out.rmdir()
        raise


def export_version(
    catalog: Catalog, artifacts: ArtifactStore, name: str, options: ExportOptions, *, actor: str, comment: str = ""
) -> Export:
    """Exports ``model@3`` or ``model@label`` and registers the result as a new version of the same model.

    The calibration goes along: the scores are on the same scale. The report is filed with the new version.
    Raises what `export_folder`, `find_version` and `add_version` raise; nothing is registered then.
    """
    record = find_version(catalog.snapshot(), name)
    source = version_name(record.key)
    folder = artifacts.path(record.digest)
    with artifacts.scratch() as scratch:
        _, report = export_folder(
            folder, read_manifest(folder, record.golden_json), scratch / "onnx", options, name=source
        )
        exported, created = add_version(
            catalog,
            artifacts,
            record.model,
            scratch / "onnx",
            actor=actor,
            comment=comment or f"ONNX ({report.precision}) of {source}",
        )
    if record.calibration is not None and exported.calibration is None:
        catalog.set_calibration(record.model, exported.version, record.calibration, actor, f"as {source}")
        exported = replace(exported, calibration=record.calibration)
    catalog.file_evaluation(record.model, exported.version, EVALUATION_NAME, report.to_json(), actor)
    return Export(exported, created, report)


def _export(
    folder: Path, manifest: Manifest, out: Path, options: ExportOptions, name: str
) -> tuple[Manifest, ExportReport]:
    pairs = read_preferences(options.data) if options.data else []
    texts = _texts(manifest, pairs, options.reference_data)
    _write_graph(folder, manifest, out, options)
    _copy_reading(folder, out)
    exported = replace(manifest, kind="onnx", precision=options.precision, golden=())
    write_manifest(out, exported)

    settings = ComputeSettings(threads=options.threads, deterministic=True)
    before = _scored(offline_scorer(folder, manifest, settings, shows_progress=options.shows_progress), texts)
    after = _scored(offline_scorer(out, exported, settings, shows_progress=options.shows_progress), texts)
    change = _change(texts, before, after)
    _check_change(change, manifest, options)
    exported = replace(
        exported,
        golden=manifest.golden or _golden(before),
        tolerance={options.precision: _tolerance(change, manifest, options)},
    )
    write_manifest(out, exported)
    report = ExportReport(
        source=name,
        source_digest=digest_of(folder, manifest),
        digest=digest_of(out, exported),
        precision=options.precision,
        opset=_opset(out / MODEL),
        size_bytes=_size(out, exported),
        source_size_bytes=_size(folder, manifest),
        scores=change,
        accuracy=_accuracy(pairs, before, after),
        data=options.data.name if options.data else None,
        data_sha256=hash_file(options.data)[1] if options.data else None,
        create_time=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    return exported, report


def _write_graph(folder: Path, manifest: Manifest, out: Path, options: ExportOptions) -> None:
    """The graph in fp32, seen to agree with the model; then, where asked for, in int8."""
    import torch

    from rm_server.backends.checkpoint import load_model, read_config
    from rm_server.backends.loading import load_backend
    from rm_server.backends.onnx.graph import export_graph, quantize_graph, strip
    from rm_server.backends.torch.forward import OneByOneForward
    from rm_server.backends.torch.self_check import check_batch

    config = read_config(folder)
    model = load_model(folder, config)
    items = check_batch(model, manifest.max_tokens or int(1e9))
    expected = OneByOneForward(model, torch.device("cpu")).logits(items)[:, manifest.label_index].double().numpy()
    export_graph(model, out / MODEL, opset=options.opset)
    shutil.copy(folder / "config.json", out)
    plain = Manifest(kind="onnx", max_tokens=manifest.max_tokens, label_index=manifest.label_index)
    came = load_backend(out, plain, ComputeSettings(threads=options.threads)).score(items)
    worst = float(np.abs(came - expected).max())
    if not worst <= LARGEST_FP32_DIFFERENCE * float(expected.std()) + 1e-6 * float(np.abs(expected).max()) + 1e-7:
        raise UnsupportedArtifact(
            f"{type(model).__name__} is not exported: over items of different lengths the graph's scores are up to "
            f"{worst:.2g} off the model's own (which have a standard deviation of {expected.std():.2g})."
        )
    if options.int8:
        with tempfile.TemporaryDirectory(dir=out) as beside:
            quantized = Path(beside) / MODEL
            quantize_graph(out / MODEL, quantized)
            for path in out.glob(f"{MODEL}*"):
                path.unlink()
            strip(quantized, out / MODEL)
    else:
        strip(out / MODEL, out / MODEL)


def _copy_reading(folder: Path, out: Path) -> None:
    """Tokenizer and config, and what is known of its training: everything of the version but its weights."""
    for path in (*version_files(folder, "sequence_classification"), *map(Path, files_beside(folder))):
        if path.suffix != ".safetensors" and path.name not in (WEIGHTS, WEIGHTS_INDEX):
            (out / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / path, out / path)


def _texts(manifest: Manifest, pairs: Sequence[Preference], reference_data: Path | None) -> list[Text]:
    """The different texts that both are tried on: golden examples (or built-in texts), reference texts, pairs."""
    texts: list[Text] = [(example.prompt, example.completion) for example in manifest.golden] or list(BUILT_IN_TEXTS)
    texts += read_texts(reference_data) if reference_data else []
    texts += [(pair.prompt, completion) for pair in pairs for completion in (pair.chosen, pair.rejected)]
    return list(dict.fromkeys(texts))


def _scored(score: ScoreTexts, texts: Sequence[Text]) -> dict[Text, Scored]:
    return dict(zip(texts, score(texts), strict=True))


def _change(texts: Sequence[Text], before: dict[Text, Scored], after: dict[Text, Scored]) -> ScoreChange:
    one, other = [], []
    for text in texts:
        first, second = before[text].score, after[text].score
        if isinstance(first, RmError):
            continue  # the original cannot read it either
        if isinstance(second, RmError):
            raise second
        one.append(first)
        other.append(second)
    if not one:
        raise InvalidRequest("The version can read none of the texts, so nothing can be compared; give reference data.")
    return score_change(np.array(one), np.array(other))


def _check_change(change: ScoreChange, manifest: Manifest, options: ExportOptions) -> None:
    if not options.int8 and change.max_difference > manifest.tolerance.get("fp32", 0.0):
        raise GoldenMismatch(
            f"On {change.num_texts} texts the exported scores are up to {change.max_difference:.2g} off, and the "
            f"tolerance in fp32 is {manifest.tolerance.get('fp32', 0.0):g}. Nothing was written."
        )
    if change.spearman is None and change.score_std > 0:
        raise ConstantOutput(
            f"In {options.precision} all of {change.num_texts} texts get the same score, and the original's have a "
            f"standard deviation of {change.score_std:.2g}. Nothing was written."
        )
    if change.spearman is not None and change.spearman < options.min_spearman:
        raise GoldenMismatch(
            f"In {options.precision} the scores of {change.num_texts} texts keep their order too badly: Spearman "
            f"{change.spearman:.3f}, at least {options.min_spearman:g} is wanted (scores differ by up to "
            f"{change.max_difference:.2g}, their standard deviation is {change.score_std:.2g}). Nothing was written."
        )


def _tolerance(change: ScoreChange, manifest: Manifest, options: ExportOptions) -> float:
    fp32 = manifest.tolerance.get("fp32", 0.0)
    return fp32 + _INT8_SLACK * change.max_difference if options.int8 else fp32


def _golden(before: dict[Text, Scored]) -> tuple[GoldenExample, ...]:
    """From the original's scores of the built-in texts, where it came without golden examples."""
    return tuple(
        GoldenExample(prompt, completion, scored.score)
        for (prompt, completion), scored in before.items()
        if (prompt, completion) in BUILT_IN_TEXTS
        and isinstance(prompt, str)
        and isinstance(completion, str)
        and not isinstance(scored.score, RmError)
    )


def _accuracy(
    pairs: Sequence[Preference], before: dict[Text, Scored], after: dict[Text, Scored]
) -> AccuracyChange | None:
    """On the pairs whose four scores are all there; None without any."""
    kept = [pair for pair in pairs if _margin(pair, before) is not None and _margin(pair, after) is not None]
    if not kept:
        return None

    def margins(scored: dict[Text, Scored]) -> FloatArray:
        return np.array([_margin(pair, scored) for pair in kept], np.float64)

    return accuracy_change(margins(before), margins(after), np.array([pair.group for pair in kept]))


def _margin(pair: Preference, scored: dict[Text, Scored]) -> float | None:
    chosen, rejected = (scored[pair.prompt, completion].score for completion in (pair.chosen, pair.rejected))
    return None if isinstance(chosen, RmError) or isinstance(rejected, RmError) else chosen - rejected


def _opset(path: Path) -> int:
    import onnx

    imports = onnx.load(path, load_external_data=False).opset_import
    return int(next(entry.version for entry in imports if entry.domain in ("", "ai.onnx")))


def _size(folder: Path, manifest: Manifest) -> int:
    return sum((folder / path).stat().st_size for path in version_files(folder, manifest.kind))
