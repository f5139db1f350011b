"""A failure that trainers cannot take for a reward."""

from __future__ import annotations


class RewardFailed(BaseException):
    """No reward could be had; the cause says why.

    Not an Exception on purpose: OpenRLHF's rollout and verl's rate-limited reward manager catch every Exception of a
    reward function; the one goes on without a reward, the other with 0.0. Both would train on nothing. This one passes
    through them, and through Ray, and ends the job.
    """
