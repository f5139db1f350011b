"""Scoring between the contract's messages and the server's own types; nothing is decided here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from rm_api.v1 import scoring_pb2

from rm_server.api.error_map import error_message
from rm_server.backends.items import ChatMessage, Content, RenderedText
from rm_server.errors import InternalError, InvalidRequest, RequestTooLarge
from rm_server.registry.manifest import Transform, TruncationRule
from rm_server.registry.records import CalibrationRecord
from rm_server.scoring.evaluation import Component
from rm_server.scoring.scorer import ItemAnswer, ScoreAnswer, ScoreCall

Group: TypeAlias = tuple[Content, Sequence[Content]]

MAX_PRIORITY = 10

MAX_MESSAGES = 500_000
"""Chat messages of one call: taking them over stops the event loop for some 3 µs each."""

TRUNCATIONS: Mapping[int, TruncationRule | None] = {
    scoring_pb2.TRUNCATION_UNSPECIFIED: None,
    scoring_pb2.TRUNCATION_REFUSE: "refuse",
    scoring_pb2.TRUNCATION_KEEP_END: "keep_end",
    scoring_pb2.TRUNCATION_KEEP_START: "keep_start",
}
TRANSFORMS: Mapping[Transform, scoring_pb2.Transform] = {
    "raw_logit": scoring_pb2.TRANSFORM_RAW_LOGIT,
    "sigmoid": scoring_pb2.TRANSFORM_SIGMOID,
    "rule": scoring_pb2.TRANSFORM_RULE,
    "weighted_sum": scoring_pb2.TRANSFORM_WEIGHTED_SUM,
}


def num_completions(request: scoring_pb2.ScoreRequest) -> int:
    """Of all groups."""
    return sum(len(group.completions) for group in request.groups)


def score_call(request: scoring_pb2.ScoreRequest, request_id: str) -> ScoreCall:
    """A request as the scorer takes it. Raises InvalidRequest for options out of range, RequestTooLarge."""
    options = request.options
    if request.ByteSize() > MAX_MESSAGES:  # a message has a byte at least
        _check_messages(request)
    if options.truncation not in TRUNCATIONS:
        raise InvalidRequest(f"options.truncation is {options.truncation}; 0 to {max(TRUNCATIONS)} were expected.")
    if abs(options.priority) > MAX_PRIORITY:
        raise InvalidRequest(
            f"options.priority is {options.priority}; -{MAX_PRIORITY} to {MAX_PRIORITY} were expected."
        )
    return ScoreCall(
        selector=request.model,
        groups=tuple(map(_rendered_group if options.rendered else _group, request.groups)),
        run=request.run,
        request_id=request_id,
        calibrated=options.calibrated,
        truncation=TRUNCATIONS[options.truncation],
        bypass_cache=options.bypass_cache,
        expected_digest=options.expected_digest,
        priority=options.priority,
    )


def _group(group: scoring_pb2.Group) -> Group:
    return content(group.prompt), tuple(content(completion) for completion in group.completions)


def _rendered_group(group: scoring_pb2.Group) -> Group:
    prompt, *texts = (_rendered(part) for part in (group.prompt, *group.completions))
    if any(not text.startswith(prompt) for text in texts):
        raise InvalidRequest("options.rendered: a completion is a whole text, and one does not begin with its prompt.")
    return "", tuple(RenderedText(text, prompt) for text in texts)


def _rendered(message: scoring_pb2.Content) -> str:
    if (kind := message.WhichOneof("content")) not in ("text", None):
        raise InvalidRequest(f"options.rendered is for text, and {kind} came.")
    return message.text


def _check_messages(request: scoring_pb2.ScoreRequest) -> None:
    num_messages = sum(
        len(part.messages.messages) for group in request.groups for part in (group.prompt, *group.completions)
    )
    if num_messages > MAX_MESSAGES:
        raise RequestTooLarge(
            f"The call has {num_messages} chat messages; at most {MAX_MESSAGES} may come at once. "
            "Send them in several calls."
        )


def content(message: scoring_pb2.Content) -> Content:
    """Text, messages or ids; a content that is not set is empty text."""
    match message.WhichOneof("content"):
        case "messages":
            return tuple(ChatMessage(part.role, part.content) for part in message.messages.messages)
        case "token_ids":
            return tuple(message.token_ids.ids[:])  # a slice is copied at once, an iterator number by number
        case _:
            return message.text


def score_response(answer: ScoreAnswer) -> scoring_pb2.ScoreResponse:
    """The scorer's answer as a message."""
    return scoring_pb2.ScoreResponse(
        model=answer.model,
        version=answer.version,
        digest=answer.digest,
        label=answer.label or "",
        transform=TRANSFORMS[answer.transform],
        calibration=calibration(answer.calibration),
        results=[item_result(item) for item in answer.items],
        timings=scoring_pb2.Timings(
            tokenize_seconds=answer.timings.tokenize_s,
            queue_seconds=answer.timings.queue_s,
            compute_seconds=answer.timings.compute_s,
            total_seconds=answer.timings.total_s,
        ),
        arm=answer.arm or "",
    )


def calibration(record: CalibrationRecord | None) -> scoring_pb2.Calibration | None:
    """The map to the model's scale, or None, which leaves the field unset."""
    if record is None:
        return None
    return scoring_pb2.Calibration(digest=record.digest, gain=record.gain, bias=record.bias)


def item_result(item: ItemAnswer) -> scoring_pb2.ItemResult:
    if item.value is None:  # never a default number in its place
        error = item.error or InternalError("The item came back with neither a score nor an error.")
        return scoring_pb2.ItemResult(error=error_message(error), truncated=item.truncated, num_tokens=item.num_tokens)
    return scoring_pb2.ItemResult(
        score=scoring_pb2.Score(value=item.value, components=[_component(part) for part in item.components]),
        truncated=item.truncated,
        num_tokens=item.num_tokens,
    )


def _component(part: Component) -> scoring_pb2.Component:
    return scoring_pb2.Component(
        name=part.name, value=part.value, weight=part.weight, version=part.version, digest=part.digest
    )
