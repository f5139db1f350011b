"""Responses of a micro-batch on their way to the reward service: sent in chunks as they end, and put in order again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ppo_client.client.content import is_empty
from ppo_client.client.scores import Content
from ppo_client.ppo.errors import EmptyResponse
from ppo_client.ppo.policy import Samples
from ppo_client.ppo.prompts import Prompt
from ppo_client.ppo.scores.completions import completion_contents, response_ids, response_texts
from ppo_client.ppo.scores.reward_source import Given, PendingScores, RewardDesk


def ask(desk: RewardDesk, prompts: Sequence[Prompt], contents: Sequence[Content]) -> PendingGiven:
    """Asks for the scores of responses; those without text are not sent, and get the desk's `empty_score`.

    Raises EmptyResponse where that is None.
    """
    known: list[Given | None] = []
    for prompt, content in zip(prompts, contents, strict=True):
        if not is_empty(content):
            known.append(None)
        elif desk.empty_score is None:
            raise EmptyResponse(
                f"a response to {prompt.text!r:.80} has no text (EOS first, or special tokens alone), so there is "
                f"nothing to score: {desk.advice.empty}"
            )
        else:
            known.append(Given(desk.empty_score, (), ()))
    sent = [row for row, given in enumerate(known) if given is None]
    pending = desk.ask([prompts[row].content for row in sent], [contents[row] for row in sent]) if sent else None
    return PendingGiven(known, pending)


@dataclass(frozen=True, slots=True)
class PendingGiven:
    """What is known without asking, and what was asked for."""

    known: list[Given | None]
    """None: asked for"""
    pending: PendingScores | None

    def result(self) -> list[Given]:
        """By response. Raises what PendingScores.result does."""
        answers = iter(self.pending.result() if self.pending else ())
        return [next(answers) if given is None else given for given in self.known]

    def cancel(self) -> None:
        """The scores are not wanted any more."""
        if self.pending is not None:
            self.pending.cancel()


@dataclass(slots=True)
class Asking:
    """Takes rows as they end (`ended`), the others at last (`finish`), and brings what each row got (`result`)."""

    desk: RewardDesk
    prompts: Sequence[Prompt]
    tokenizer: Any | None
    continues_prompt: bool
    chunk_size: int
    _texts: dict[int, str] = field(default_factory=dict)
    _waiting: list[int] = field(default_factory=list)
    _under_way: list[tuple[list[int], PendingGiven]] = field(default_factory=list)

    @property
    def texts(self) -> list[str]:
        """By row, once all of them have ended."""
        return [self._texts[row] for row in range(len(self.prompts))]

    def ended(self, samples: Samples, rows: Sequence[int]) -> None:
        """These rows are written; they are sent as soon as there are enough for a chunk."""
        self._waiting += rows
        while len(self._waiting) >= self.chunk_size:
            self._send(samples, self._waiting[: self.chunk_size])
            self._waiting = self._waiting[self.chunk_size :]

    def finish(self, samples: Samples) -> None:
        """All rows are written; what has not been sent yet is sent."""
        if rest := [row for row in range(len(self.prompts)) if row not in self._texts]:
            self._send(samples, rest)
        self._waiting = []

    def result(self) -> list[Given]:
        """By row. Raises what PendingScores.result does."""
        found: dict[int, Given] = {}
        for rows, pending in self._under_way:
            found.update(zip(rows, pending.result(), strict=True))
        return [found[row] for row in range(len(self.prompts))]

    def cancel(self) -> None:
        """The scores are not wanted any more."""
        for _, pending in self._under_way:
            pending.cancel()

    def _send(self, samples: Samples, rows: list[int]) -> None:
        index = torch.tensor(rows, device=samples.has_eos.device)
        part = replace(samples, sequences=samples.sequences.select(index), has_eos=samples.has_eos[index])
        prompts = [self.prompts[row] for row in rows]
        texts = response_texts(part, self.tokenizer, continues_prompt=self.continues_prompt)
        self._texts.update(zip(rows, texts, strict=True))
        contents = completion_contents(prompts, response_ids(part), texts)
        self._under_way.append((rows, ask(self.desk, prompts, contents)))
