"""Which version answers a run's calls, and what to do when another one does."""

from __future__ import annotations

import logging
from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal, TypeAlias

from ppo_client.client.errors import VersionChanged
from ppo_client.client.scores import Scores

OnVersionChange: TypeAlias = Literal["auto", "stop", "follow", "recalibrate"]
"""``stop``: VersionChanged when a name (bare, or with a label) is answered by another version than before, or when
calibrated scores (of a number, too) have another calibration. ``follow``: goes on. ``recalibrate``: goes on, and asks
for calibrated scores from the start, so that all versions are on the model's common scale; those that have no
calibration are refused (NotCalibrated). ``auto``: stops for the bare name of a run, whose version is the run's own, and
follows labels, numbers and calls without a run. What is followed is said in the log."""

_MAX_KNOWN = 10_000

_log = logging.getLogger("ppo_client")


@dataclass(frozen=True, slots=True)
class _Answered:
    name: str
    digest: str
    calibration: str | None = None
    """Digest of what the last calibrated scores of this version went through; None: there were none yet"""


class KnownVersions:
    """What answered last, by run and selector. Lives on the client's event loop."""

    def __init__(self, on_change: OnVersionChange) -> None:
        self._on_change = on_change
        self._known: OrderedDict[tuple[str, str], _Answered] = OrderedDict()

    @property
    def are_recalibrated(self) -> bool:
        """Whether calibrated scores are asked for, whatever a call says."""
        return self._on_change == "recalibrate"

    def expected_digest(self, model: str, run: str) -> str | None:
        """What a call must be answered by; None: by anything. The server then refuses before it computes."""
        known = self._known.get((model, run))
        return known.digest if known is not None and self._stops(model, run) else None

    def given(self, model: str, run: str, version: int, digest: str) -> None:
        """The run was given this version (by `register_run`): no other is expected from now on."""
        self._note(model, run, _Answered(f"{model}@{version}", digest))

    def ended(self, model: str, run: str) -> None:
        """The run ended (on all models where ``model`` is empty): by the bare name it asks anew."""
        for key in [key for key in self._known if key[1] == run and model in ("", key[0])]:
            del self._known[key]

    def answered(self, model: str, run: str, scores: Scores) -> None:
        """A call was answered. Raises VersionChanged where another version may not answer."""
        calibration = scores.calibration.digest if scores.calibration is not None else None
        now = _Answered(f"{scores.model}@{scores.version}", scores.digest, calibration)
        before = self._known.get((model, run))
        if before is not None and before.digest == now.digest and before.calibration is not None:
            if calibration is None:
                now = before  # raw scores, which the same caller may want beside calibrated ones
            elif before.calibration != calibration:
                self._calibrated_anew(model, run, before, now)
        if before is not None and before.digest != now.digest:
            if self._stops(model, run):
                raise VersionChanged(
                    f"{model!r} was answered by {now.name} (digest {now.digest:.12}), before by {before.name} "
                    f"({before.digest:.12}). {_ways_on(before)}"
                )
            _log.warning("%s is answered by %s now, before by %s", model, now.name, before.name)
        self._note(model, run, now)

    def refused(self, model: str, run: str, refusal: VersionChanged) -> None:
        """The server would have answered with another version than `expected_digest`: tells what its caller can do."""
        if (before := self._known.get((model, run))) is not None:
            refusal.message += f" Before, {before.name} answered. {_ways_on(before)}"

    def _calibrated_anew(self, model: str, run: str, before: _Answered, now: _Answered) -> None:
        maps = f"{now.calibration:.12} now, before {before.calibration:.12}"
        what = f"the scores of {now.name} have the calibration {maps}"
        if self._on_change == "stop" or self._stops(model, run):
            raise VersionChanged(
                f"{what}: they are on another scale. To go on with it, register the run with move=True or make the "
                "client with on_version_change='follow'"
            )
        _log.warning("%s", what)

    def _stops(self, model: str, run: str) -> bool:
        _, at, place = model.partition("@")
        if at and place.isdigit():
            return False  # always the same version; what must not be is caught by the digest in the reply
        if self._on_change == "auto":
            return bool(run) and not at
        return self._on_change == "stop"

    def _note(self, model: str, run: str, now: _Answered) -> None:
        self._known[model, run] = now
        self._known.move_to_end((model, run))
        if len(self._known) > _MAX_KNOWN:
            self._known.popitem(last=False)


def _ways_on(before: _Answered) -> str:
    return (
        "To go on with the new one, register the run with move=True or make the client with "
        f"on_version_change='follow'; to keep the old one, ask for {before.name}"
    )
