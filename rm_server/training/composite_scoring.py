"""Scores many texts with a version of a home, without a server; a composite by each of its versions, then the sum."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rm_server.backends.composite import (
    OTHER_IDS,
    OWN_RULES,
    Composite,
    mean_the_same_by_ids,
    of_part,
    read_composite,
)
from rm_server.backends.interface import ComputeSettings, Encoder
from rm_server.backends.items import Batch, Content, EncodedItem, has_ids
from rm_server.backends.loading import load_encoder
from rm_server.backends.rules.backend import RulesEncoder, SeveralRulesBackend
from rm_server.errors import NonFiniteScore, RmError
from rm_server.registry.artifacts import ArtifactStore
from rm_server.registry.lora import folder_with_base
from rm_server.registry.manifest import Manifest, TruncationRule, read_manifest
from rm_server.training.offline_scoring import Scored, ScoreTexts, offline_scorer


def version_scorer(
    folder: Path,
    manifest: Manifest,
    artifacts: ArtifactStore,
    settings: ComputeSettings,
    *,
    shows_progress: bool = False,
) -> ScoreTexts:
    """`offline_scorer` for a version of any kind; the versions that a composite is made of are among ``artifacts``."""
    if manifest.kind == "composite":
        return _composite_scorer(folder, manifest, artifacts, settings, shows_progress=shows_progress)
    return offline_scorer(folder, manifest, settings, shows_progress=shows_progress)


def _composite_scorer(
    folder: Path, manifest: Manifest, artifacts: ArtifactStore, settings: ComputeSettings, *, shows_progress: bool
) -> ScoreTexts:
    """``folder``: with the pinned spec. Raises what `offline_scorer` raises of any part."""
    composite = read_composite(folder)
    parts = {key: folder_with_base(artifacts, part.digest) for key, part in composite.versions.items()}
    scorers = {
        key: offline_scorer(path, read_manifest(path), settings, shows_progress=shows_progress)
        for key, path in parts.items()
    }
    takes_ids = mean_the_same_by_ids(parts.values())

    def score(texts: Sequence[tuple[Content, Content]]) -> list[Scored]:
        if takes_ids:
            return score_readable(texts)
        scored = iter(score_readable([text for text in texts if not has_ids(text)]))
        return [Scored(OTHER_IDS) if has_ids(text) else next(scored) for text in texts]

    def score_readable(texts: Sequence[tuple[Content, Content]]) -> list[Scored]:
        of_versions = {key: scorer(texts) for key, scorer in scorers.items()}
        of_rules = [_rule_parts(composite, manifest, *text) for text in texts]
        return [
            _combined(composite, {key: scored[index] for key, scored in of_versions.items()}, of_rules[index])
            for index in range(len(texts))
        ]

    return score


class AllEncoders:
    """Reads what all parts of a composite can read; the item is one of them, whichever."""

    def __init__(self, folder: Path, manifest: Manifest, artifacts: ArtifactStore) -> None:
        composite = read_composite(folder)
        paths = [folder_with_base(artifacts, part.digest) for part in composite.versions.values()]
        self._takes_ids = mean_the_same_by_ids(paths)
        self._encoders: list[Encoder] = [load_encoder(path, read_manifest(path)) for path in paths]
        if composite.rules.rules:
            self._encoders.append(RulesEncoder(composite.rules, manifest))

    @property
    def parts(self) -> tuple[tuple[str, float], ...]:
        """It only tells what can be read."""
        return ()

    def encode(self, prompt: Content, completion: Content, truncation: TruncationRule | None = None) -> EncodedItem:
        """Raises what any of the parts raises; UnsupportedContent for ids that do not mean the same to all of them."""
        if not self._takes_ids and has_ids((prompt, completion)):
            raise OTHER_IDS
        return [encoder.encode(prompt, completion, truncation) for encoder in self._encoders][-1]

    def encode_usual(self, pairs: Sequence[tuple[Content, Content]]) -> Sequence[EncodedItem | None]:
        """Item by item."""
        return [None] * len(pairs)


def _rule_parts(
    composite: Composite, manifest: Manifest, prompt: Content, completion: Content
) -> list[float] | RmError:
    if not composite.rules.rules:
        return []
    try:
        item = RulesEncoder(composite.rules, manifest).encode(prompt, completion)
    except RmError as error:
        return error
    _, parts = SeveralRulesBackend(composite.rules, manifest).score_parts(Batch.of([item]))
    values: list[float] = parts[0].tolist()
    return values


def _combined(composite: Composite, scored: dict[tuple[str, int], Scored], of_rules: list[float] | RmError) -> Scored:
    raw = {}
    for key, one in scored.items():
        if isinstance(one.score, RmError):
            return Scored(of_part(composite.versions[key].title, one.score))
        raw[key] = one.score
    if isinstance(of_rules, RmError):
        return Scored(of_part(OWN_RULES, of_rules))
    total = composite.total(composite.values(raw, of_rules))
    if not np.isfinite(total):
        return Scored(NonFiniteScore(f"The weighted sum of the components is {total}."))
    return Scored(total, any(one.truncated for one in scored.values()))
