"""The log's lines on what this server takes in of the catalog, whoever changed it, and through which server."""

from __future__ import annotations

from collections.abc import Iterator

from rm_server.registry.records import Snapshot, Split, version_name


def change_lines(before: Snapshot, after: Snapshot) -> Iterator[str]:
    """A line for each label, split and shadow that differs, by model."""
    # The others, of which there may be thousands, are not sorted.
    for model, label in sorted({key for key, _ in before.labels.items() ^ after.labels.items()}):
        was, now = before.labels.get((model, label)), after.labels.get((model, label))
        yield f"the label {label} of {model} names {_version(now)} now; it named {_version(was)}"
    for model in sorted(before.splits.keys() | after.splits.keys()):
        split = after.splits.get(model)
        if split != before.splits.get(model):
            yield f"the runs of {model} are split {_arms(split)}"
    for key in sorted(before.shadows.keys() | after.shadows.keys()):
        shadow = after.shadows.get(key)
        if shadow != before.shadows.get(key):
            share = "no more" if shadow is None else f"{100 * shadow.share:.3g} % of its model's calls"
            yield f"{version_name(key)} shadows {share}"


def _version(number: int | None) -> str:
    return "nothing" if number is None else f"version {number}"


def _arms(split: Split | None) -> str:
    if split is None:
        return "no more"
    arms = (f"{arm.name}={arm.version} (weight {arm.weight:g}{', ramped' * bool(arm.ramp)})" for arm in split.arms)
    return f"now: {', '.join(arms)}"
