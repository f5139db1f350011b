"""What commands ask a server about one item; mixed into Admin."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rm_api.v1 import errors_pb2, scoring_pb2

Row = dict[str, Any]


class ExplainActions:
    """Needs what Admin has: the stubs, and the way to call them."""

    _scoring: Any
    _call: Callable[..., Any]

    def explain(
        self,
        selector: str,
        prompt: str,
        completion: str,
        *,
        run: str = "",
        truncation: str = "",
        calibrated: bool = False,
    ) -> Row:
        """How a version reads and scores one item: ``score``, or ``error`` in its place.

        ``truncation`` empty: the version's own rule.
        """
        options = scoring_pb2.ScoreOptions(
            calibrated=calibrated, truncation=f"TRUNCATION_{truncation.upper() or 'UNSPECIFIED'}"
        )
        request = scoring_pb2.ExplainRequest(
            model=selector,
            prompt=scoring_pb2.Content(text=prompt),
            completion=scoring_pb2.Content(text=completion),
            run=run,
            options=options,
        )
        return _row(self._call(self._scoring.Explain, request, is_limited=False))


def _row(message: scoring_pb2.ExplainResponse) -> Row:
    result, part = message.result, scoring_pb2.ExplainedToken.Part
    is_scored = result.WhichOneof("outcome") == "score"
    calibration = message.calibration
    return {
        "model": message.model,
        "version": message.version or None,
        "digest": message.digest,
        "chosen_by": message.chosen_by,
        "templated_text": list(message.templated_text),
        "tokens": [
            {"id": token.id, "text": token.text, "part": part.Name(token.part).removeprefix("PART_").lower()}
            for token in message.tokens
        ],
        "num_tokens_before_truncation": message.num_tokens_before_truncation,
        "num_tokens": result.num_tokens,
        "truncated": result.truncated,
        "truncation": _word(scoring_pb2.Truncation.Name(message.truncation), "TRUNCATION_"),
        "transform": _word(scoring_pb2.Transform.Name(message.transform), "TRANSFORM_"),
        "calibration": {"digest": calibration.digest, "gain": calibration.gain, "bias": calibration.bias}
        if message.HasField("calibration")
        else None,
        **({"score": result.score.value} if is_scored else {"error": _error(result.error)}),
        "parts": [
            {"name": each.name, "value": each.value, "weight": each.weight, "version": each.version or None}
            for each in result.score.components
        ],
        "components": [_row(component) for component in message.components],
    }


def _error(error: errors_pb2.Error) -> Row:
    reason = _word(errors_pb2.ErrorReason.Name(error.reason), "ERROR_REASON_")
    return {"reason": reason, "message": error.message}


def _word(name: str, prefix: str) -> str:
    return name.removeprefix(prefix).lower()
