"""An evaluation: policy and reference write to the same prompts by the same random numbers, and both are judged.

Every random number is a function of the seed and the row (`seeds.py`), so that a run with evaluations learns the
same, bit by bit, as one without, and each evaluation meets the same dice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from ppo_client.client.scores import Content
from ppo_client.ppo.conditions import Conditions, digest_of, scale_of
from ppo_client.ppo.evaluation_facts import Pair, Written
from ppo_client.ppo.kl import check_finite
from ppo_client.ppo.models.reading import read_in_parts
from ppo_client.ppo.models.sequences import Prompts, Sequences
from ppo_client.ppo.policy import Policy, Reading, Samples
from ppo_client.ppo.prompts import Prompt
from ppo_client.ppo.scores.asking import PendingGiven, ask
from ppo_client.ppo.scores.completions import completion_contents, response_ids, response_texts
from ppo_client.ppo.scores.reward_source import Given, RewardDesk
from ppo_client.ppo.scores.versions import RewardVersion
from ppo_client.ppo.seeds import Purpose, uniforms


class Reference(Protocol):
    """A policy that stays as it is."""

    def __call__(self, sequences: Sequences) -> Reading:
        """As Policy.forward."""
        ...

    def sample(self, prompts: Prompts, uniforms: Tensor) -> Samples:
        """One response to each prompt."""
        ...


@dataclass(slots=True)
class _Text:
    """What was written to one prompt."""

    completion: str
    content: Content
    num_tokens: int
    has_eos: bool


@dataclass(slots=True)
class _Batch:
    rows: Sequence[int]
    ours: list[_Text]
    theirs: list[_Text]
    kl: list[float]
    scores: PendingGiven
    judgements: PendingGiven | None


@dataclass(slots=True)
class Evaluator:
    """Evaluates one policy, again and again; the reference writes once."""

    policy: Policy
    reference: Reference
    prompts: Sequence[Prompt]
    desk: RewardDesk
    judge: RewardDesk | None
    """The second opinion; None: the reward itself judges"""
    tokenizer: Any | None
    batch_size: int
    max_response_tokens: int
    seed: int
    device: torch.device
    log_probs_from_sampling: bool = True
    """False where they differ from a forward pass's, by rounding: the KL is then of two forward passes"""
    _theirs: dict[int, _Text] = field(default_factory=dict)

    def conditions(self) -> Conditions:
        """What another evaluation must have in common with this one to be set beside it."""
        return Conditions(
            prompts=digest_of(self.prompts),
            min_response_tokens=self.policy.rule.min_tokens,
            max_response_tokens=self.max_response_tokens,
            temperature=self.policy.rule.temperature,
            scores=scale_of(self.desk.parts),
            truncation=self.desk.truncation,
            empty_score=self.desk.empty_score,
            seed=self.seed,
        )

    @torch.no_grad()
    def pairs(self, rows: Sequence[int]) -> list[Pair]:
        """Of the prompts `rows`, but for those with a text that has no score, where the desk drops failed items.

        Texts are judged while the next are written. Raises NonFiniteKL, and what PendingScores.result does.
        """
        batches: list[_Batch] = []
        try:
            for first in range(0, len(rows), self.batch_size):
                batches.append(self._begin(rows[first : first + self.batch_size]))
            return [pair for batch in batches for pair in self._finish(batch)]
        except BaseException:
            for batch in batches:
                batch.scores.cancel()
                if batch.judgements is not None:
                    batch.judgements.cancel()
            raise

    def _begin(self, rows: Sequence[int]) -> _Batch:
        prompts = [self.prompts[row] for row in rows]
        collated = Prompts.collate([prompt.token_ids for prompt in prompts], self.policy.pad_id, self.device)
        numbers = uniforms(self.seed, Purpose.EVALUATION, 0, rows, self.max_response_tokens)
        samples = self.policy.sample(collated, numbers)
        if missing := [row for row in rows if row not in self._theirs]:
            # Alone or beside others, a row is sampled by its own numbers; the whole batch is simplest.
            texts = self._texts(prompts, self.reference.sample(collated, numbers))
            self._theirs.update({row: text for row, text in zip(rows, texts, strict=True) if row in missing})
        ours, theirs = self._texts(prompts, samples), [self._theirs[row] for row in rows]
        # In one call, so that one version judges both.
        contents = [text.content for text in (*ours, *theirs)]
        twice = [*prompts, *prompts]
        return _Batch(
            rows=rows,
            ours=ours,
            theirs=theirs,
            scores=ask(self.desk, twice, contents),
            judgements=ask(self.judge, twice, contents) if self.judge else None,
            kl=self._kl(samples),
        )

    def _texts(self, prompts: Sequence[Prompt], samples: Samples) -> list[_Text]:
        texts = response_texts(samples, self.tokenizer, continues_prompt=self.policy.continues_prompt)
        ids = response_ids(samples)
        contents = completion_contents(prompts, ids, texts)
        ended = samples.has_eos.tolist()
        return [
            _Text(text, content, len(tokens), has_eos)
            for text, content, tokens, has_eos in zip(texts, contents, ids, ended, strict=True)
        ]

    def _kl(self, samples: Samples) -> list[float]:
        policy, sequences, ours = self.policy, samples.sequences, samples.log_probs
        (theirs,) = read_in_parts(policy, sequences, lambda part: (self.reference(part).log_probs,))
        if not self.log_probs_from_sampling:
            (ours,) = read_in_parts(policy, sequences, lambda part: (policy(part).log_probs,))
        check_finite(ours, theirs, sequences.response_ids)
        found: list[float] = (ours - theirs).sum(1).tolist()
        return found

    def _finish(self, batch: _Batch) -> Iterator[Pair]:
        scores = batch.scores.result()
        judgements = scores if batch.judgements is None else batch.judgements.result()
        size = len(batch.rows)
        for index, row in enumerate(batch.rows):
            other = size + index
            ours = _written(batch.ours[index], scores[index], judgements[index])
            theirs = _written(batch.theirs[index], scores[other], judgements[other])
            if ours is None or theirs is None:
                continue  # an item failed, and the run goes on without such
            yield Pair(
                row=row,
                prompt=self.prompts[row].text,
                policy=ours,
                reference=theirs,
                kl=batch.kl[index],
                versions=_versions(scores[index], scores[other]),
                judges=_versions(judgements[index], judgements[other]),
            )


def _written(text: _Text, score: Given, judged: Given) -> Written | None:
    """None without a score."""
    if score.value is None or judged.value is None:
        return None
    return Written(text.completion, text.num_tokens, text.has_eos, score.value, judged.value)


def _versions(*given: Given) -> tuple[tuple[RewardVersion, ...], ...]:
    return tuple(one.versions for one in given if one.versions)
