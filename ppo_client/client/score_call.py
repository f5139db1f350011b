"""One call as requests: equal prompts travel once, and what is too large for one message is split. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict

from rm_api.v1 import scoring_pb2

from ppo_client.client.content import Item
from ppo_client.client.errors import InvalidRequest

TruncationRule = Literal["refuse", "keep_end", "keep_start"]

_TRUNCATION: dict[str | None, scoring_pb2.Truncation] = {
    None: scoring_pb2.TRUNCATION_UNSPECIFIED,
    "refuse": scoring_pb2.TRUNCATION_REFUSE,
    "keep_end": scoring_pb2.TRUNCATION_KEEP_END,
    "keep_start": scoring_pb2.TRUNCATION_KEEP_START,
}


class ScoreOptions(TypedDict, total=False):
    """How to score; all may be left out.

    ``run``: the training run that asks, instead of the client's. ``calibrated``: on the model's common scale instead
    of raw. ``truncation``: of items that are too long, instead of the version's own rule: ``refuse``, ``keep_end``,
    ``keep_start``. ``timeout_s``: for the whole call, retries included, instead of the client's. ``priority``: -10 to
    10, larger goes first among the waiting items of one version. ``expected_digest``: VersionChanged unless the
    version has it. ``bypass_cache``: neither reads nor fills the server's result cache (which never changes a score).
    ``rendered``: each prompt with its completion is one text that was rendered for the model before, by its chat
    template say: the model's BOS comes once, whether the text begins with it or not, and nothing renders it again.
    """

    run: str | None
    calibrated: bool
    truncation: TruncationRule | None
    timeout_s: float | None
    priority: int
    expected_digest: str | None
    bypass_cache: bool
    rendered: bool


def check_options(options: Mapping[str, object]) -> None:
    """Raises TypeError, as Python does for a keyword that a function has not, and names the nearest option."""
    for name in options:
        if name not in ScoreOptions.__annotations__:
            near = difflib.get_close_matches(name, ScoreOptions.__annotations__, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise TypeError(f"score() has no option {name!r}; it has {', '.join(ScoreOptions.__annotations__)}.{hint}")


@dataclass(frozen=True, slots=True)
class ScoreCall:
    """What all requests of one call have in common."""

    model: str
    run: str = ""
    calibrated: bool = False
    truncation: TruncationRule | None = None
    priority: int = 0
    expected_digest: str | None = None
    bypass_cache: bool = False
    rendered: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.model, str) or not self.model:
            raise InvalidRequest(f"model must be a selector, `name`, `name@3` or `name@label`; got {self.model!r}")
        for name in ("run", "expected_digest"):
            if not isinstance(text := getattr(self, name) or "", str):
                raise InvalidRequest(f"{name} must be text, got {text!r}")
        if self.truncation not in _TRUNCATION:
            raise InvalidRequest(
                f"truncation must be None (the version's own rule), 'refuse', 'keep_end' or 'keep_start'; got "
                f"{self.truncation!r}"
            )
        if not isinstance(self.priority, int) or not -10 <= self.priority <= 10:
            raise InvalidRequest(f"priority must be an integer from -10 to 10, got {self.priority!r}")

    def options(self) -> scoring_pb2.ScoreOptions:
        """What the message for any items says of how they are scored."""
        return scoring_pb2.ScoreOptions(
            calibrated=self.calibrated,
            truncation=_TRUNCATION[self.truncation],
            bypass_cache=self.bypass_cache,
            expected_digest=self.expected_digest or "",
            priority=self.priority,
            rendered=self.rendered,
        )

    def request(self, items: Sequence[Item], request_id: str) -> scoring_pb2.ScoreRequest:
        """The message for these items; neighbours with the same prompt become one group."""
        request = scoring_pb2.ScoreRequest(
            model=self.model, run=self.run, request_id=request_id, options=self.options()
        )
        previous: scoring_pb2.Content | None = None
        for item in items:
            if item.prompt is not previous:
                group = request.groups.add(prompt=item.prompt)
                previous = item.prompt
            group.completions.append(item.completion)
        return request


def split(items: Sequence[Item], *, max_items: int, max_bytes: int) -> Iterator[list[Item]]:
    """Cuts the items into runs of at most ``max_items``, whose messages have at most ``max_bytes``, roughly.

    An item that is larger than that alone goes alone: the server says what it thinks of it. No items, no runs.
    """
    part: list[Item] = []
    num_bytes = 0
    for item in items:
        cost = item.num_bytes
        if not part or item.prompt is not part[-1].prompt:
            cost += item.prompt.ByteSize() + 8
        if part and (len(part) >= max_items or num_bytes + cost > max_bytes):
            yield part
            part, num_bytes = [], 0
            cost = item.num_bytes + item.prompt.ByteSize() + 8
        part.append(item)
        num_bytes += cost
    if part:
        yield part
