"""What a version read of one item and made of it, as plain values."""

from __future__ import annotations

from dataclasses import dataclass

from rm_api.v1 import scoring_pb2

from ppo_client.client.error_map import from_item
from ppo_client.client.errors import InvalidReply, RewardClientError
from ppo_client.client.scores import Calibration, Component
from ppo_client.client.wire import read_calibration, word


@dataclass(frozen=True, slots=True)
class Token:
    """One token. ``text``: as the tokenizer spells it. ``part``: ``prompt``, ``completion`` or ``added``."""

    id: int
    text: str
    part: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """One item, by one version. ``version`` 0: a rule of a composite's own.

    ``chosen_by``: why this version, in words. ``templated_text``: prompt and completion as the template joins them; two
    texts for versions that read a pair; empty where ids came. ``tokens``: what was computed on, after truncation; empty
    for versions that look at text. ``num_tokens_before_truncation``: for rules over text, characters. ``truncation``:
    the rule that was used. ``calibration``: the version's, used or not. ``parts``: what the score is the sum of, weight
    times value each. ``components``: of a composite, each by itself. ``error``: why there is no score.
    """

    model: str
    version: int
    digest: str
    chosen_by: str
    templated_text: tuple[str, ...]
    tokens: tuple[Token, ...]
    num_tokens_before_truncation: int
    num_tokens: int
    is_truncated: bool
    truncation: str
    transform: str
    calibration: Calibration | None
    parts: tuple[Component, ...]
    components: tuple[Explanation, ...]
    error: RewardClientError | None
    _score: float

    @property
    def score(self) -> float:
        """Raw, unless a calibrated one was asked for. Raises ``error`` where there is none."""
        if self.error is not None:
            raise self.error
        return self._score


def read_explanation(message: scoring_pb2.ExplainResponse) -> Explanation:
    """The contract's answer as ours."""
    result = message.result
    outcome = result.WhichOneof("outcome")
    if outcome is None:
        raise InvalidReply(f"{message.model}@{message.version} gave neither a score nor an error")
    part = scoring_pb2.ExplainedToken.Part
    return Explanation(
        model=message.model,
        version=message.version,
        digest=message.digest,
        chosen_by=message.chosen_by,
        templated_text=tuple(message.templated_text),
        tokens=tuple(Token(t.id, t.text, word(part, t.part, "PART_")) for t in message.tokens),
        num_tokens_before_truncation=message.num_tokens_before_truncation,
        num_tokens=result.num_tokens,
        is_truncated=result.truncated,
        truncation=word(scoring_pb2.Truncation, message.truncation, "TRUNCATION_"),
        transform=word(scoring_pb2.Transform, message.transform, "TRANSFORM_"),
        calibration=read_calibration(message),
        parts=tuple(
            Component(each.name, each.value, each.weight, each.version, each.digest) for each in result.score.components
        ),
        components=tuple(map(read_explanation, message.components)),
        error=from_item(result.error) if outcome == "error" else None,
        _score=result.score.value,
    )
