"""May a label move to a version? A pure decision by what is filed about it, with every reason in words.

Against it speaks only what is shown: a version that is worse beyond chance on the same held-out pairs, one about which
nothing is shown, or a shadow that clearly scores something else. Not shown to be worse is allowed, better is said.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from rm_server.errors import InvalidRequest, PromotionRefused
from rm_server.scoring.comparison.agreement import Agreement, Estimate
from rm_server.scoring.comparison.filed_evaluation import FiledEvaluation
from rm_server.scoring.comparison.paired_test import PairedComparison, compare

ALPHA = 0.05
"""A version that is no worse is refused so often at most, however many evaluations are compared (Bonferroni)."""

MIN_PROMPTS = 10
"""From fewer prompts hardly any test can refuse: with ten, a version that loses on each of them has p = 2 / 2^10, which
is below ``ALPHA`` for 25 evaluations at once."""

MIN_SHADOW_PAIRS = 500
MIN_SHADOW_GROUPS = 100
"""A shadow with fewer pairs, or groups, is only mentioned: a few calls of one run are not the traffic."""

MIN_SPEARMAN = 0.5
"""Below it, less than a quarter of the variance of one version's ranks is the other's: that is another reward rather
than a better one. The interval must lie below. It holds for completions of one prompt, too, which is what a policy
learns from. (How often the best of them is another one says less: of 64, it mostly is where the correlation is 0.8.)"""

STRONG_LENGTH_CORRELATION = 0.5


@dataclass(frozen=True, slots=True)
class Candidate:
    """A version, as far as promotion looks at it."""

    version: int
    digest: str
    evaluations: Sequence[FiledEvaluation] = ()
    is_calibrated: bool = False


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the decision is made by. ``present``: what the label names; None: it is new.

    ``shadow``: how ``new`` scored what ``present`` scored, too; None: it did not shadow it.
    """

    model: str
    label: str
    new: Candidate
    present: Candidate | None = None
    shadow: Agreement | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """The gate's word. Lines for people, each a sentence or two."""

    objections: tuple[str, ...]
    notes: tuple[str, ...]
    is_allowed: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "is_allowed", not self.objections)

    @property
    def findings(self) -> tuple[str, ...]:
        """Objections, marked as such, and then the rest."""
        return (*(f"Objection: {objection}" for objection in self.objections), *self.notes)


@dataclass(frozen=True, slots=True)
class _Finding:
    text: str
    is_objection: bool = False


def decide(evidence: Evidence) -> Decision:
    """May the label move?"""
    new, present = evidence.new, evidence.present
    if present is not None and present.version == new.version:
        return Decision((), (f"{evidence.model}@{evidence.label} names version {new.version} already.",))
    findings = list(_of_evaluations(evidence))
    if present is not None:
        findings += _of_shadow(evidence.shadow, present.version)
        if present.is_calibrated and not new.is_calibrated:
            findings.append(
                _Finding(
                    f"Version {present.version} has a calibration and version {new.version} has none: callers who ask "
                    "for calibrated scores by the label will be refused."
                )
            )
    return Decision(
        tuple(finding.text for finding in findings if finding.is_objection),
        tuple(finding.text for finding in findings if not finding.is_objection),
    )


def check_reason(is_forced: bool, reason: str) -> None:
    """Raises InvalidRequest: who overrides the gate has to say why."""
    if is_forced and not reason.strip():
        raise InvalidRequest("Forcing a promotion needs a reason; it is kept in the history.")


def refusal(evidence: Evidence, decision: Decision) -> PromotionRefused:
    """What is raised where nobody forces it."""
    objections = " ".join(f"({number}) {text}" for number, text in enumerate(decision.objections, 1))
    return PromotionRefused(
        f"{evidence.model}@{evidence.label} does not move to version {evidence.new.version}: {objections} "
        "To do it all the same, force it and say why."
    )


def spoken(decision: Decision) -> str:
    """The gate's word in the history."""
    return f"forced, although: {' '.join(decision.objections)}" if decision.objections else "the gate allowed it"


def _of_evaluations(evidence: Evidence) -> Iterator[_Finding]:
    new, present = evidence.new, evidence.present
    counted = []
    for evaluation in new.evaluations:
        if evaluation.digest != new.digest:
            yield _Finding(
                f"The evaluation {evaluation.name!r} does not count: it is of the digest "
                f"{evaluation.digest[:12] or 'nothing'}, and version {new.version} has {new.digest[:12]}."
            )
        elif evaluation.num_trained_prompts:
            yield _Finding(
                f"The evaluation {evaluation.name!r} does not count: version {new.version} was trained on "
                f"{evaluation.num_trained_prompts} of its prompts, by their names."
            )
        else:
            counted.append(evaluation)
    if not counted:
        yield _Finding(
            f"No evaluation of version {new.version} counts: evaluate it on held-out pairs with "
            f"`rm-server evaluate --home DIR --model {evidence.model}@{new.version} --data PAIRS --file`.",
            is_objection=True,
        )
        return
    for evaluation in counted:
        yield from _alone(evaluation)
    if present is None:
        if not any(_is_better_than_chance(evaluation) for evaluation in counted):
            yield _Finding(
                f"{evidence.model}@{evidence.label} would be new, and no evaluation shows that version {new.version} "
                "agrees with people more often than chance.",
                is_objection=True,
            )
        return
    yield from _compared(counted, new, present)


def _alone(evaluation: FiledEvaluation) -> Iterator[_Finding]:
    """What an evaluation says by itself."""
    name = repr(evaluation.name)
    if evaluation.is_constant:
        yield _Finding(f"On {name} both completions of every pair get the same score.", is_objection=True)
    elif evaluation.level == "bad":
        yield _Finding(f"The verdict of {name}: {evaluation.headline}", is_objection=True)
    elif evaluation.level:
        yield _Finding(f"The verdict of {name}: {evaluation.headline}")
    if about_length := _about_length(evaluation):
        yield _Finding(about_length)


def _about_length(evaluation: FiledEvaluation) -> str:
    beyond, parts = evaluation.beyond_length, []
    if beyond.coefficient is not None and beyond.interval is not None:
        low, high = beyond.interval
        parts.append(f"beyond length, a score counts {beyond.coefficient:.2f} [{low:.2f}, {high:.2f}] for the choice")
    elif beyond.t is not None and beyond.p_value is not None:
        why = "score and length together predict every choice, so that a" if beyond.is_separated else "a"
        side = "for" if beyond.t > 0 else "against"
        parts.append(
            f"{why} coefficient beyond length cannot be given; a test has the score speak {side} the choice, "
            f"p = {beyond.p_value:.2g}"
        )
    correlation = evaluation.length_correlation
    if correlation is not None and abs(correlation) > STRONG_LENGTH_CORRELATION:
        manner = "longer" if correlation > 0 else "shorter"
        parts.append(f"scores rise with {manner} texts (correlation {correlation:.2f})")
    return f"On {evaluation.name!r}: {'; '.join(parts)}." if parts else ""


def _is_better_than_chance(evaluation: FiledEvaluation) -> bool:
    return evaluation.accuracy_interval is not None and evaluation.accuracy_interval[0] > 0.5


def _compared(counted: Sequence[FiledEvaluation], new: Candidate, present: Candidate) -> Iterator[_Finding]:
    """The new version's evaluations, each with what is known of the present version on the same pairs."""
    known: dict[str, float] = {}
    for evaluation in present.evaluations:
        if evaluation.digest == present.digest:
            known.update(evaluation.margins)
            if evaluation.num_trained_prompts:
                yield _Finding(
                    f"The present version {present.version} was trained on {evaluation.num_trained_prompts} prompts of "
                    f"its evaluation {evaluation.name!r}: there it looks better than it is."
                )
    comparisons = []
    for evaluation in counted:
        comparison = compare(evaluation.margins, known)
        if comparison is not None and comparison.num_prompts >= MIN_PROMPTS:
            comparisons.append((evaluation.name, comparison))
        elif comparison is not None:
            yield _Finding(
                f"On {evaluation.name!r} both versions were evaluated on {comparison.num_prompts} prompts only; "
                f"{MIN_PROMPTS} are the least that can show anything."
            )
    if not comparisons:
        yield _Finding(
            f"Versions {new.version} and {present.version} have not been evaluated on enough of the same pairs "
            f"({MIN_PROMPTS} prompts at least), so nothing shows that the new one is not worse. File evaluations of "
            "both on the same held-out data.",
            is_objection=True,
        )
    for name, comparison in comparisons:
        yield _worse_or_not(name, comparison, ALPHA / len(comparisons))


def _worse_or_not(name: str, comparison: PairedComparison, alpha: float) -> _Finding:
    is_shown = comparison.p_value < alpha
    is_worse = comparison.share < comparison.present_share
    if not is_shown:
        verdict = "no difference beyond chance"
    elif is_worse:
        verdict = "worse beyond chance"
    else:
        verdict = "better beyond chance"
    return _Finding(
        f"On {name!r}, {comparison.num_pairs} pairs of {comparison.num_prompts} prompts: {verdict}. It agrees with "
        f"people in {100 * comparison.share:.1f} %, the present version in {100 * comparison.present_share:.1f} %; "
        f"{comparison.num_won} pairs won, {comparison.num_lost} lost, p = {comparison.p_value:.2g}.",
        is_objection=is_shown and is_worse,
    )


def _of_shadow(shadow: Agreement | None, present: int) -> Iterator[_Finding]:
    if shadow is None:
        yield _Finding(f"It has not shadowed version {present}: how it scores live traffic is not known.")
        return
    flips, spearman, within = shadow.flips, shadow.spearman, shadow.within_groups
    parts = [f"As a shadow of version {present}, {shadow.num_pairs} pairs of {shadow.num_groups} groups"]
    if spearman is not None:
        parts.append(f"rank correlation {spearman.value:.2f}")
    if within is not None:
        parts.append(f"{within.value:.2f} of completions of one prompt")
    if flips is not None:
        parts.append(f"the best of a group is another one in {100 * flips.share.value:.0f} % of {flips.num_groups}")
    if shadow.shift_std is not None:
        parts.append(f"scores shift by {shadow.shift_std:+.2f} standard deviations")
    said = "; ".join(parts)
    if shadow.num_pairs < MIN_SHADOW_PAIRS or shadow.num_groups < MIN_SHADOW_GROUPS:
        yield _Finding(f"{said}. Too few to object to: {MIN_SHADOW_PAIRS} pairs of {MIN_SHADOW_GROUPS} groups are not.")
        return
    objections = []
    if shadow.shadow_std is None:
        objections.append("it gives every text of live traffic the same score")
    if _is_low(spearman):
        objections.append(f"it ranks live traffic by something else: a correlation of {MIN_SPEARMAN} is the least")
    elif _is_low(within):
        objections.append(
            f"it ranks completions of one prompt by something else: a correlation of {MIN_SPEARMAN} is the least"
        )
    yield _Finding(f"{said}{': ' + ', and '.join(objections) if objections else ''}.", is_objection=bool(objections))


def _is_low(correlation: Estimate | None) -> bool:
    return correlation is not None and correlation.interval is not None and correlation.interval[1] < MIN_SPEARMAN
