"""A reply, checked: nothing that breaks the contract becomes a score. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rm_api.v1 import scoring_pb2

from ppo_client.client.content import Item
from ppo_client.client.error_map import from_item
from ppo_client.client.errors import (
    DeadlineExceeded,
    InvalidReply,
    ItemsFailed,
    ItemsUnavailable,
    RewardClientError,
    Unavailable,
)
from ppo_client.client.score_call import ScoreCall
from ppo_client.client.scores import Calibration, Component, Scores, Timings
from ppo_client.client.wire import read_calibration

_TRANSFORMS = {
    scoring_pb2.TRANSFORM_RAW_LOGIT: "raw_logit",
    scoring_pb2.TRANSFORM_SIGMOID: "sigmoid",
    scoring_pb2.TRANSFORM_RULE: "rule",
    scoring_pb2.TRANSFORM_WEIGHTED_SUM: "weighted_sum",
}


@dataclass(frozen=True, slots=True)
class Source:
    """What gave the scores of a reply; scores of different sources are never mixed."""

    model: str
    version: int
    digest: str
    transform: str
    calibration: Calibration | None

    def __str__(self) -> str:
        calibration = f", calibration {self.calibration.digest:.12}" if self.calibration else ""
        return f"{self.model}@{self.version} (digest {self.digest:.12}{calibration})"


class ScoredItem(NamedTuple):
    """One score with what belongs to it."""

    value: float
    is_truncated: bool
    num_tokens: int
    components: list[Component]


@dataclass(frozen=True, slots=True)
class Reply:
    """The outcomes of one request, by the items' places in the call."""

    source: Source
    label: str
    timings: Timings
    outcomes: Mapping[int, ScoredItem | RewardClientError]

    def temporary_failures(self) -> dict[int, RewardClientError]:
        """The items that have no score now and may get one."""
        return {index: item for index, item in self.outcomes.items() if isinstance(item, Unavailable)}


def read_reply(response: scoring_pb2.ScoreResponse, call: ScoreCall, items: Sequence[Item]) -> Reply:
    """The reply to ``call`` for ``items``. Raises InvalidReply."""
    source = _read_source(response, call)
    if len(response.results) != len(items):
        raise InvalidReply(f"{source} answered {len(response.results)} results for {len(items)} completions")
    outcomes = {
        item.place: _read_item(result, item.place, source) for item, result in zip(items, response.results, strict=True)
    }
    times = response.timings
    timings = Timings(times.tokenize_seconds, times.queue_seconds, times.compute_seconds, times.total_seconds)
    return Reply(source, response.label, timings, outcomes)


def _read_source(response: scoring_pb2.ScoreResponse, call: ScoreCall) -> Source:
    name, _, place = call.model.partition("@")
    if not response.digest or not response.version:
        raise InvalidReply(
            f"the reply for {call.model!r} names version {response.version} and digest {response.digest!r}; a score "
            "must say what gave it"
        )
    if response.model != name or (place.isdigit() and response.version != int(place)):
        raise InvalidReply(f"{call.model!r} was asked and {response.model}@{response.version} answered")
    if call.expected_digest and response.digest != call.expected_digest:
        raise InvalidReply(
            f"{response.model}@{response.version} answered with digest {response.digest}; {call.expected_digest} was "
            "expected, and the server should have refused"
        )
    if response.transform not in _TRANSFORMS:
        raise InvalidReply(
            f"{response.model}@{response.version} does not say what was done to the model's output (transform "
            f"{response.transform}); is the server newer than this client?"
        )
    calibration = read_calibration(response)
    if call.calibrated != (calibration is not None):
        asked, came = ("calibrated", "raw") if call.calibrated else ("raw", "calibrated")
        raise InvalidReply(f"{asked} scores were asked of {call.model!r} and {came} ones came")
    return Source(response.model, response.version, response.digest, _TRANSFORMS[response.transform], calibration)


def _read_item(result: scoring_pb2.ItemResult, index: int, source: Source) -> ScoredItem | RewardClientError:
    outcome = result.WhichOneof("outcome")
    if outcome == "error":
        return from_item(result.error)
    if outcome is None:
        raise InvalidReply(f"{source} gave completion {index} neither a score nor an error")
    value = result.score.value
    if not math.isfinite(value):
        raise InvalidReply(f"{source} gave completion {index} the score {value}; a finite number is expected")
    components = [
        Component(part.name, part.value, part.weight, part.version, part.digest) for part in result.score.components
    ]
    return ScoredItem(value, result.truncated, result.num_tokens, components)


def join(replies: Sequence[Reply], num_items: int) -> Scores:
    """The scores of a call, from the replies to all of its requests, which have one source.

    Raises ItemsFailed (ItemsUnavailable where all failures may pass) unless every item has a score.
    """
    source = replies[0].source
    outcomes: dict[int, ScoredItem | RewardClientError] = {}
    for reply in replies:
        outcomes.update(reply.outcomes)
    if outcomes.keys() != set(range(num_items)):
        raise InvalidReply(f"outcomes of {len(outcomes)} completions came for the {num_items} that were sent")
    scored = {index: item for index, item in outcomes.items() if isinstance(item, ScoredItem)}
    if len(scored) < num_items:
        failed = {index: item for index, item in outcomes.items() if isinstance(item, RewardClientError)}
        raise _items_failed(source, failed, scored)
    items = [scored[index] for index in range(num_items)]
    return Scores(
        values=[item.value for item in items],
        model=source.model,
        version=source.version,
        digest=source.digest,
        truncated=[item.is_truncated for item in items],
        num_tokens=[item.num_tokens for item in items],
        transform=source.transform,
        label=next((reply.label for reply in replies if reply.label), None),
        calibration=source.calibration,
        components=[item.components for item in items],
        timings=replies[0].timings if len(replies) == 1 else _longest([reply.timings for reply in replies]),
    )


def _items_failed(
    source: Source, failed: Mapping[int, RewardClientError], scored: Mapping[int, ScoredItem]
) -> ItemsFailed:
    is_temporary = all(isinstance(error, (Unavailable, DeadlineExceeded)) for error in failed.values())
    shown = " ".join(f"({index}) {type(failed[index]).__name__}: {failed[index]}" for index in sorted(failed)[:3])
    more = f" And {len(failed) - 3} more." if len(failed) > 3 else ""
    rest = " This error's `scores` has those of the others, by index." if scored else ""
    return (ItemsUnavailable if is_temporary else ItemsFailed)(
        f"{source} has no score for {len(failed)} of {len(failed) + len(scored)} completions: {shown}{more}{rest}",
        errors=dict(sorted(failed.items())),
        scores={index: item.value for index, item in sorted(scored.items())},
        truncated={index: item.is_truncated for index, item in sorted(scored.items())},
        model=source.model,
        version=source.version,
        digest=source.digest,
        calibration=source.calibration,
    )


def _longest(timings: Sequence[Timings]) -> Timings:
    rows = [(each.tokenize_s, each.queue_s, each.compute_s, each.total_s) for each in timings]
    return Timings(*(max(column) for column in zip(*rows, strict=True)))
