"""What can go wrong in a training run, each with its own name.

PPOError
├── ConfigError            the settings make no sense, or not together
├── DataError              a prompts file or an example cannot be used
├── CheckpointError        nothing to resume, or what is there cannot be read, or a new one not be written
├── RunStopped             the run was asked to stop, and did not wait for what it was waiting for
├── GenerationMismatch     what writes the responses has other log-probabilities than the policy
├── NonFiniteKL            policy and reference are infinitely far apart at a token, or one of them is NaN there
├── NonFiniteUpdate        a gradient that is not finite; the parameters were left as they were
└── RewardError            a score that could not be had or trusted
    ├── FailedItems        some responses have no score, and asking again cannot help
    ├── EmptyResponse      a response without text, and no setting says what it is worth
    ├── InvalidScores      the reply has the wrong count, or a value that is not a finite number
    ├── RewardServiceAway  the service could not be reached for as long as the run is willing to wait
    └── VersionChanged     another version answered than the run was told to learn from
"""

from __future__ import annotations


class PPOError(Exception):
    """Base of all errors of the trainer; its text says what came, what was expected and what to do."""


class ConfigError(PPOError):
    """The settings make no sense, or not together."""


class DataError(PPOError):
    """A prompts file or an example cannot be used."""


class CheckpointError(PPOError):
    """There is nothing to resume, or what is there cannot be read, or a new one cannot be written."""


class RunStopped(PPOError):
    """The run was asked to stop while it waited for scores; what it had learnt until then is saved."""


class GenerationMismatch(PPOError):
    """What writes the responses is not the policy that learns, by the log-probabilities of the same tokens."""


class NonFiniteKL(PPOError):
    """The KL from the reference is not finite, so no reward can be made of it."""


class NonFiniteUpdate(PPOError):
    """A gradient is not finite; the optimizer step was not made.

    `num_optimizer_steps`: those of the same update that were made before it.
    """

    def __init__(self, message: str, num_optimizer_steps: int = 0) -> None:
        super().__init__(message)
        self.num_optimizer_steps = num_optimizer_steps


class RewardError(PPOError):
    """A score could not be had or cannot be trusted; no number takes its place."""


class FailedItems(RewardError):
    """The service has no score for some responses, though it has for others; `reward.on_failed_item` may drop them."""


class EmptyResponse(RewardError):
    """A response has no text, so nothing could be scored, and `reward.empty_score` is absent."""


class InvalidScores(RewardError):
    """The reply has the wrong number of scores, or one that is not a finite number."""


class RewardServiceAway(RewardError):
    """The reward service stayed out of reach for longer than `reward.patience_s`."""


class VersionChanged(RewardError):
    """Another version answered than the one the run learns from, and the run was told to stop then."""
