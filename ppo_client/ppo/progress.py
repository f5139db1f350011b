"""What evaluations say about a run: which was best, and whether it is time to end. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ppo_client.ppo.config import EvaluationConfig


@dataclass(frozen=True, slots=True)
class Progress:
    """After the evaluations so far."""

    step: int = 0
    """Of the last evaluation; 0: there was none"""
    kl: float = 0.0
    """At the last evaluation, nats per episode"""
    best_step: int = 0
    best_value: float | None = None
    num_since_best: int = 0
    """Evaluations in a row without a new best"""
    measure: str = ""
    """By what `best_value` was found; empty: that is not known"""

    def after(self, step: int, kl: float, value: float, measure: str = "") -> Progress:
        """With one more evaluation, in which the metric to be maximised had `value`.

        `measure`: what values must have in common to be compared; by another one the best is sought anew.
        """
        is_other = bool(measure and self.measure and measure != self.measure)
        measure = measure or self.measure
        if self.best_value is None or is_other or value > self.best_value:
            return Progress(step, kl, step, value, 0, measure)
        return replace(self, step=step, kl=kl, num_since_best=self.num_since_best + 1, measure=measure)

    def reason_to_end(self, config: EvaluationConfig) -> str | None:
        """Why the run should end before its last step; None: it should not."""
        if config.max_kl is not None and self.kl > config.max_kl:
            return f"the KL from the reference is {self.kl:.2f} nats per episode, above evaluation.max_kl"
        if config.patience and self.num_since_best >= config.patience:
            return (
                f"{self.num_since_best} evaluations in a row were no better than that of step {self.best_step} "
                f"({config.best_by} {self.best_value:.4g}; evaluation.patience)"
            )
        return None


def is_due(config: EvaluationConfig, step: int, num_steps: int, last_step: int) -> bool:
    """Whether step `step` is to be evaluated. `last_step`: the one that was evaluated last."""
    if not config.prompts or step == 0 or last_step >= step:
        return False
    return step % config.every_steps == 0 or step == num_steps
