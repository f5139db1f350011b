"""ScoringService's Explain: one item, looked into."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from rm_api.v1 import scoring_pb2

from rm_server.api.calls import Call
from rm_server.api.convert import TRANSFORMS, calibration, item_result, score_call
from rm_server.backends.explanation import Part
from rm_server.registry.manifest import TruncationRule
from rm_server.scoring.explaining import Explainer, Explanation

_PARTS: dict[Part, scoring_pb2.ExplainedToken.Part] = {
    "prompt": scoring_pb2.ExplainedToken.PART_PROMPT,
    "completion": scoring_pb2.ExplainedToken.PART_COMPLETION,
    "added": scoring_pb2.ExplainedToken.PART_ADDED,
}
_RULES: Mapping[TruncationRule, scoring_pb2.Truncation] = {
    "refuse": scoring_pb2.TRUNCATION_REFUSE,
    "keep_end": scoring_pb2.TRUNCATION_KEEP_END,
    "keep_start": scoring_pb2.TRUNCATION_KEEP_START,
}


class ExplainService:
    """Answers by the explainer."""

    def __init__(self, explainer: Explainer) -> None:
        self._explainer = explainer

    async def Explain(self, request: scoring_pb2.ExplainRequest, call: Call) -> scoring_pb2.ExplainResponse:
        """The text, the tokens, the parts, the score."""
        call.run = request.run
        asked = scoring_pb2.ScoreRequest(
            model=request.model,
            groups=[scoring_pb2.Group(prompt=request.prompt, completions=[request.completion])],
            run=request.run,
            options=request.options,
        )
        item = replace(score_call(asked, call.request_id), bypass_cache=True)
        explanation = await self._explainer.explain(item, call.deadline)
        call.key = (explanation.model, explanation.version)
        return _message(explanation)


def _message(explanation: Explanation) -> scoring_pb2.ExplainResponse:
    message = scoring_pb2.ExplainResponse(
        model=explanation.model,
        version=explanation.version,
        digest=explanation.digest,
        chosen_by=explanation.chosen_by,
        transform=TRANSFORMS[explanation.transform],
        calibration=calibration(explanation.calibration),
        result=item_result(explanation.answer),
        components=[_message(component) for component in explanation.components],
    )
    if (reading := explanation.reading) is not None:
        message.templated_text.extend(text for text in reading.texts if text)
        message.tokens.extend(
            scoring_pb2.ExplainedToken(id=token.id, text=token.text, part=_PARTS[token.part])
            for token in reading.tokens
        )
        message.num_tokens_before_truncation = reading.num_tokens
        message.truncation = _RULES[reading.truncation]
    return message
