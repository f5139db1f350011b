"""Preference pairs, and their division by prompt: no prompt is ever both in training and held out."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rm_server.backends.items import Content, is_messages
from rm_server.training.conversations import split_conversations, split_dialogues, without_prompt
from rm_server.training.data_files import BadData, Row, read_rows
from rm_server.training.rows import content_of, key_of, length_of, name_of

logger = logging.getLogger(__name__)

_TEXT_FIELDS = ("prompt", "chosen", "rejected", "group", "subset")


@dataclass(frozen=True, slots=True)
class Preference:
    """Two completions of one prompt, and which of them people chose.

    ``group``: pairs that must not be torn apart by a split have the same one; all pairs of a prompt have.
    ``subset``: what part of the data it is from, where the file says so. ``place``: ``file:line``.
    """

    prompt: Content
    chosen: Content
    rejected: Content
    group: str
    subset: str | None = None
    place: str = ""

    @property
    def lengths(self) -> tuple[int, int]:
        """Characters of the chosen and of the rejected completion (numbers of tokens, for token ids)."""
        return length_of(self.chosen), length_of(self.rejected)


@dataclass(frozen=True, slots=True)
class Split:
    """Which groups are for training and which are held out; ``unused``: neither trained on nor held out."""

    train: frozenset[str]
    held_out: frozenset[str]
    unused: frozenset[str] = frozenset()

    def to_json(self) -> str:
        """The text of a split file: sorted, newline at the end."""
        parts = {"train": sorted(self.train), "held_out": sorted(self.held_out)}
        if self.unused:
            parts["unused"] = sorted(self.unused)
        return json.dumps(parts, indent=1) + "\n"


def read_preferences(path: Path) -> list[Preference]:
    """Reads ``{prompt, chosen, rejected}`` rows, with ``group`` and ``subset`` where there are any.

    Rows may leave ``prompt`` out when ``chosen`` and ``rejected`` are whole conversations: what both begin with is the
    prompt then. They are chat messages, or texts as in hh-rlhf. Conversations of messages may have a ``prompt``, too,
    as UltraFeedback's have: it is one of their turns, or all messages that they begin with. Without ``group``, pairs of
    the same prompt are a group; with it, groups that share a prompt are made one. Pairs whose completions are the same
    are left out, with a warning: there is nothing to learn from them.

    Raises BadData for a file that cannot be read, a row that is no pair, or a file without pairs.
    """
    rows = [_preference_of(row, place) for place, row in read_rows(path, _TEXT_FIELDS)]
    _warn_of_repeated_prompts(rows, path)
    pairs = [pair for pair in rows if pair.chosen != pair.rejected]
    if not pairs:
        raise BadData(f"{path} has no pairs of different completions.")
    if len(pairs) < len(rows):
        logger.warning("%s: left out %d pairs whose completions are the same.", path, len(rows) - len(pairs))
    return _join_groups(pairs)


def _preference_of(row: Row, place: str) -> Preference:
    chosen, rejected = content_of(row, "chosen", place), content_of(row, "rejected", place)
    if row.get("prompt") is None and is_messages(chosen) and is_messages(rejected):
        prompt, chosen, rejected = split_conversations(chosen, rejected, place)
    elif row.get("prompt") is None and isinstance(chosen, str) and isinstance(rejected, str):
        prompt, chosen, rejected = split_dialogues(chosen, rejected, place)
    else:
        prompt, chosen, rejected = without_prompt(content_of(row, "prompt", place), chosen, rejected, place)
    group = name_of(row, "group", place)
    return Preference(
        prompt=prompt,
        chosen=chosen,
        rejected=rejected,
        group=key_of(prompt)[:16] if group is None else group,
        subset=name_of(row, "subset", place),
        place=place,
    )


def _warn_of_repeated_prompts(pairs: Sequence[Preference], path: Path) -> None:
    """Texts that begin with their prompt may be meant so, such as code that is gone on with; that all do is odd."""
    texts = [(pair.prompt, pair.chosen, pair.rejected) for pair in pairs if isinstance(pair.prompt, str)]
    if texts and all(
        isinstance(completion, str) and completion.startswith(prompt)
        for prompt, *completions in texts
        for completion in completions
    ):
        logger.warning(
            "%s: every completion begins with its prompt, so the prompt is read twice. If that is not meant, put only "
            "the answers into `chosen` and `rejected`.",
            path,
        )


def _join_groups(pairs: Sequence[Preference]) -> list[Preference]:
    """Gives groups that share a prompt one name, the smallest of theirs (union-find)."""
    parent: dict[str, str] = {}

    def root_of(name: str) -> str:
        while parent.setdefault(name, name) != name:
            parent[name] = name = parent[parent[name]]
        return name

    group_of_prompt: dict[str, str] = {}
    for pair in pairs:
        first = group_of_prompt.setdefault(key_of(pair.prompt), pair.group)
        one, other = sorted((root_of(first), root_of(pair.group)))
        parent[other] = one
    return [replace(pair, group=root_of(pair.group)) for pair in pairs]


def split_by_group(groups: Iterable[str], held_out_share: float, seed: int) -> Split:
    """Holds out a share of the groups, at least one when the share is above 0; the same for the same seed.

    A group's place in the order depends on its name and the seed alone, so a larger share holds out the same groups
    and more. Raises BadData when nothing is left to train on.
    """
    in_order = _shuffled(groups, f"split {seed}")
    num_held_out = max(1, round(held_out_share * len(in_order))) if held_out_share > 0 else 0
    if num_held_out >= len(in_order):
        raise BadData(
            f"{len(in_order)} prompts cannot be divided: {num_held_out} held out leave none to train on. "
            "Give more data, or a smaller held-out share."
        )
    return Split(frozenset(in_order[num_held_out:]), frozenset(in_order[:num_held_out]))


def subset_of_groups(groups: Iterable[str], share: float, seed: int) -> frozenset[str]:
    """A share of the groups, at least one; smaller shares are parts of larger ones of the same seed."""
    in_order = _shuffled(groups, f"subset {seed}")
    return frozenset(in_order[: max(1, round(share * len(in_order)))])


def _shuffled(groups: Iterable[str], salt: str) -> list[str]:
    """Ordered by a hash: unlike a shuffled list's, an entry's place does not depend on the others'."""
    return sorted(set(groups), key=lambda group: hashlib.sha256(f"{salt} {group}".encode()).digest())


def read_split(path: Path) -> dict[str, frozenset[str]]:
    """Reads a split file: a JSON object of part → list of groups, with ``train`` and ``held_out``; others may be there.

    Raises BadData when it is no such file, or when a group is in both.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadData(f"{path} cannot be read as a split: {error}") from error
    if not isinstance(content, dict):
        raise BadData(f"{path} is not a JSON object of part → list of groups.")
    parts = {name: frozenset(map(str, members)) for name, members in content.items() if isinstance(members, list)}
    if missing := {"train", "held_out"} - set(parts):
        raise BadData(f"{path} lacks the list {' and '.join(sorted(missing))}.")
    if both := sorted(parts["train"] & parts["held_out"]):
        raise BadData(f"{path} has {len(both)} groups both in train and in held_out, for example {both[0]!r}.")
    return parts


def select(pairs: Sequence[Preference], groups: Collection[str]) -> list[Preference]:
    """The pairs of these groups, in their order."""
    return [pair for pair in pairs if pair.group in groups]


def check_covered(pairs: Iterable[Preference], parts: Mapping[str, Collection[str]], path: Path) -> None:
    """Raises BadData when a pair's group is in no part of the split: it would be left out without a word."""
    known = frozenset[str]().union(*parts.values())
    for pair in pairs:
        if pair.group not in known:
            raise BadData(
                f"{pair.place}: the group {pair.group!r} is in no part of {path}, which names {len(known)} groups. "
                "Is it the split of other data?"
            )
