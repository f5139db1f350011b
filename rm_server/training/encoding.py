"""Pairs become token ids through the encoder that serves the version later, so that both read alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from datasets import Dataset
from tqdm import tqdm

from rm_server.backends.interface import Encoder
from rm_server.backends.items import Content, EncodedItem
from rm_server.errors import ItemTooLong, RmError
from rm_server.registry.manifest import TruncationRule
from rm_server.training.data_files import BadData
from rm_server.training.preferences import Preference
from rm_server.training.rows import key_of

_ADVICE: Mapping[TruncationRule, str] = {
    "refuse": "Give --truncation keep_start or keep_end, or a larger --max-tokens.",
    "keep_start": "Their prompts alone exceed the limit: give --truncation keep_end, or a larger --max-tokens.",
    "keep_end": "Give a larger --max-tokens.",
}
"""What helps where texts are too long even though they may be cut so."""


@dataclass(frozen=True, slots=True)
class EncodedPairs:
    """Training data as the trainer takes it.

    ``dataset`` has ``chosen_ids`` and ``rejected_ids`` and, where segments differ, ``chosen_type_ids`` and
    ``rejected_type_ids``. ``lengths``: each pair's longer text, in tokens. ``num_texts``: different ones.
    ``last_ids``: the ids that a text ends with.
    """

    dataset: Dataset
    lengths: tuple[int, ...]
    num_texts: int
    num_truncated: int
    last_ids: frozenset[int]


def encode_pairs(
    encoder: Encoder, pairs: Sequence[Preference], *, truncation: TruncationRule, shows_progress: bool
) -> EncodedPairs:
    """Encodes each different text once; ``truncation`` is the rule that the encoder has.

    Raises BadData that names the place of a text that cannot be encoded.
    """
    items: dict[str, EncodedItem] = {}
    sides: dict[str, list[EncodedItem]] = {"chosen": [], "rejected": []}
    too_long: list[str] = []
    for pair in tqdm(pairs, desc="tokens", unit="pair", disable=not shows_progress, leave=False):
        for side, completion in (("chosen", pair.chosen), ("rejected", pair.rejected)):
            try:
                sides[side].append(_encode(encoder, items, pair.prompt, completion))
            except ItemTooLong as error:
                too_long.append(f"{pair.place} ({side}): {error.message}")
            except RmError as error:
                raise BadData(f"{pair.place}: `{side}` cannot be encoded: {error.message}") from error
    if too_long:
        raise BadData(
            f"{len(too_long)} of {2 * len(pairs)} texts are too long, the first: {too_long[0]} {_ADVICE[truncation]}"
        )
    return EncodedPairs(
        dataset=Dataset.from_dict(_columns(sides)),
        lengths=tuple(
            max(chosen.num_tokens, rejected.num_tokens) for chosen, rejected in zip(*sides.values(), strict=True)
        ),
        num_texts=len(items),
        num_truncated=sum(item.truncated for item in items.values()),
        last_ids=frozenset(int(item.ids[-1]) for item in items.values()),
    )


def _encode(encoder: Encoder, items: dict[str, EncodedItem], prompt: Content, completion: Content) -> EncodedItem:
    key = key_of(prompt) + key_of(completion)
    if key not in items:
        items[key] = encoder.encode(prompt, completion)
    return items[key]


def _columns(sides: dict[str, list[EncodedItem]]) -> dict[str, list[list[int]]]:
    columns = {f"{side}_ids": [item.ids.tolist() for item in items] for side, items in sides.items()}
    if any(item.type_ids is not None for items in sides.values() for item in items):
        for side, items in sides.items():
            columns[f"{side}_type_ids"] = [
                [0] * item.num_tokens if item.type_ids is None else item.type_ids.tolist() for item in items
            ]
    return columns
