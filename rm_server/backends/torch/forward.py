"""From items to logits: the ways of running a sequence classifier, which differ in speed and not in the result."""

from __future__ import annotations

import inspect
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from rm_server.backends.checkpoint import Config, Model, position_offset
from rm_server.backends.footprint import MAX_FORWARD_TOKENS
from rm_server.backends.items import Batch
from rm_server.backends.shared_prefix import find_shared_prefixes, tokens_to_compute
from rm_server.backends.torch.attention import PACKED_ATTENTION, Attending, NotPackable, Reading, attending
from rm_server.backends.torch.copying import to_device
from rm_server.backends.torch.last_layer import find_last_layer, read_all, read_only
from rm_server.backends.torch.layout import FlatLayout, filled_size, filled_up, lay_out
from rm_server.backends.torch.owned_rows import shared_out
from rm_server.backends.torch.pooling import SplitModel
from rm_server.backends.torch.rope import FreshFrequencies, shared_forward_limit
from rm_server.backends.torch.short_encoder import lengthen, shorten

MAX_PADDED_TOKENS = 4096


class Forward(ABC):
    """A way to compute logits. A batch is cut into forwards; the logits come back in the batch's order."""

    name: str
    one_at_a_time = False
    """One item a forward: then nothing in a batch can touch the last bits of another's score."""

    def __init__(self, model: Model, device: torch.device) -> None:
        self.model = model
        self.device = device
        self.backbone: torch.nn.Module = model.base_model
        self._accepts = frozenset(inspect.signature(self.backbone.forward).parameters)
        rotary_limit = shared_forward_limit(model.config)
        self._fresh = FreshFrequencies(self.backbone) if rotary_limit is not None else None
        # Doge lets a text attend to so many tokens of its forward, which it chooses, and it may choose padding.
        num_chosen = getattr(model.config.get_text_config(), "keep_window_size", None)
        self._alone_above = min((limit for limit in (rotary_limit, num_chosen) if limit is not None), default=None)

    @property
    def changes_its_model(self) -> bool:
        """Whether two threads would disturb each other."""
        return self._fresh is not None

    @torch.inference_mode()
    def logits(self, batch: Batch) -> torch.Tensor:
        """Logits in fp32 on the CPU, shape (num_items, num_labels)."""
        parts: list[torch.Tensor] = []
        order: list[int] = []
        for members in self._partition(batch):
            if self._fresh is not None:
                self._fresh.restore()
            parts.append(self.forward(take(batch, members)).float())
            order.extend(members)
        found = (torch.cat(parts) if len(parts) > 1 else parts[0]).cpu()
        if order == list(range(len(order))):
            return found
        result = torch.empty_like(found)
        result[order] = found
        return result

    def _partition(self, batch: Batch) -> Iterator[Sequence[int]]:
        """The items of each forward. Those that a length-dependent model must see alone are alone."""
        lengths = batch.lengths
        limit = 0 if self.one_at_a_time else self._alone_above
        if limit is None:
            yield from self.group(range(len(lengths)), batch)
            return
        yield from ([index] for index in range(len(lengths)) if lengths[index] > limit)
        yield from self.group([index for index in range(len(lengths)) if lengths[index] <= limit], batch)

    @property
    def shares_up_to(self) -> int:
        """Neighbours that begin alike have their beginning computed once where neither has more tokens; 0: never."""
        return 0

    @abstractmethod
    def group(self, members: Sequence[int], batch: Batch) -> Iterator[Sequence[int]]:
        """Cuts items that may share a forward into forwards that are not too large."""

    @abstractmethod
    def forward(self, batch: Batch) -> torch.Tensor:
        """Logits of one forward on the model's device, shape (num_items, num_labels)."""

    def to_device(self, array: npt.NDArray[Any]) -> torch.Tensor:
        """The array as int64 on the model's device."""
        return to_device(np.ascontiguousarray(array, np.int64), self.device)

    def _run_backbone(self, **inputs: torch.Tensor | bool | None) -> torch.Tensor:
        """Hidden states of all tokens, given those of the inputs that this architecture knows."""
        inputs["use_cache"] = False
        known = {name: value for name, value in inputs.items() if value is not None and name in self._accepts}
        hidden: torch.Tensor = self.backbone(**known).last_hidden_state
        return hidden


class PackedForward(Forward):
    """All tokens of all items in one row, no padding; attention keeps the items apart (`attention`).

    ``reads_only``: on a CPU the last layer is computed only where the head reads it, see `last_layer`.
    Raises NotPackable where the architecture lets neither its attention nor its positions be given.
    """

    name = "packed"

    def __init__(self, model: Model, device: torch.device, *, reads_only: bool = True) -> None:
        super().__init__(model, device)
        if "position_ids" not in self._accepts:
            raise NotPackable(f"{type(self.backbone).__name__} takes no positions")
        self._own_attention: str = model.config._attn_implementation
        model.set_attn_implementation(PACKED_ATTENTION)
        if model.config._attn_implementation != PACKED_ATTENTION:
            raise NotPackable(f"{type(model).__name__} does not let its attention be replaced")
        self._split = SplitModel(model)
        can_share = self._split.position == "last"
        self._shares_up_to = (smallest_window(model.config) or sys.maxsize) if can_share else 0
        self._offset = position_offset(self.backbone)
        self.fills_up = False
        """Whether a forward's tokens are filled up; see `filled_up`."""
        self.last: Attending | None = None
        can_read = reads_only and device.type == "cpu" and self._split.position != "mean"
        self._last_layer = find_last_layer(self.backbone, model.config) if can_read else None
        self._is_short = shorten(self.backbone, self._last_layer)
        if self._last_layer is not None and not self._is_short:
            read_only(self._last_layer)

    @property
    def shares_up_to(self) -> int:
        return 0 if self.one_at_a_time else self._shares_up_to

    @property
    def reads_only(self) -> bool:
        """Whether the last layer is computed only where it is read."""
        return self._last_layer is not None

    def undo(self) -> None:
        """Gives the model back as it was."""
        if self._is_short:
            lengthen(self.backbone)
        elif self._last_layer is not None:
            read_all(self._last_layer)
        self._split.rejoin()
        self.model.set_attn_implementation(self._own_attention)

    def group(self, members: Sequence[int], batch: Batch) -> Iterator[Sequence[int]]:
        costs = batch.lengths[list(members)].tolist()
        if self.shares_up_to and sum(costs) > MAX_FORWARD_TOKENS:
            together = take(batch, members)
            costs = tokens_to_compute(together.ids, together.lengths, self.shares_up_to, together.owners)
        part: list[int] = []
        num_tokens = 0
        for index, cost in zip(members, costs, strict=True):
            if part and num_tokens + cost > MAX_FORWARD_TOKENS:
                yield part
                part, num_tokens = [], 0
            # The first of a forward finds nothing computed before it.
            num_tokens += cost if part else int(batch.lengths[index])
            part.append(index)
        if part:
            yield part

    def forward(self, batch: Batch) -> torch.Tensor:
        prefixes = (
            find_shared_prefixes(batch.ids, batch.lengths, self.shares_up_to, batch.owners) if self.shares_up_to else []
        )
        layout = lay_out(batch.ids, batch.lengths, batch.type_ids, prefixes)
        if self.fills_up:
            layout = filled_up(layout)
        ends = [end for _, end in layout.items]
        reading = self._reading(batch, layout)
        with attending(layout, reading) as self.last, shared_out(batch.owners, ends, layout.num_tokens):
            hidden = self._run_backbone(
                input_ids=self.to_device(layout.ids)[None],
                position_ids=self.to_device(layout.positions + self._offset)[None],
                token_type_ids=None if layout.type_ids is None else self.to_device(layout.type_ids)[None],
            )[0]
        if self._split.position == "mean":
            pooled = torch.stack([hidden[start:end].mean(dim=0, dtype=torch.float32) for start, end in layout.items])
        elif reading is not None:
            pooled = hidden[: batch.num_items]
        else:
            pooled = hidden[self.to_device(np.array(layout.read_tokens(self._split.position)))]
        with shared_out(batch.owners, range(1, batch.num_items + 1), batch.num_items):
            return self._split.head_logits(pooled.float())

    def _reading(self, batch: Batch, layout: FlatLayout) -> Reading | None:
        """What of the last layer is computed; None: all."""
        position = self._split.position
        if self._last_layer is None or position == "mean":
            return None
        tokens = np.array(layout.read_tokens(position))
        if self.fills_up:
            tokens = np.pad(tokens, (0, filled_size(len(tokens)) - len(tokens)), mode="edge")
        return Reading(self.to_device(tokens), position, batch.num_items, batch.owners)


class PaddedForward(Forward):
    """Items padded to the longest of a forward, as transformers runs them, and read by their lengths."""

    name = "padded"

    def __init__(self, model: Model, device: torch.device) -> None:
        super().__init__(model, device)
        config = model.config.get_text_config()
        # Older configs say -1 for none, and some name a token that the embedding has no row for.
        self._pad_id = config.pad_token_id if config.pad_token_id in range(config.vocab_size) else 0
        self._split = SplitModel(model)

    def undo(self) -> None:
        """Gives the model back as it was."""
        self._split.rejoin()

    def group(self, members: Sequence[int], batch: Batch) -> Iterator[Sequence[int]]:
        lengths = batch.lengths
        part: list[int] = []
        for index in sorted(members, key=lambda index: -int(lengths[index])):
            if part and int(lengths[part[0]]) * (len(part) + 1) > MAX_PADDED_TOKENS:
                yield part
                part = []
            part.append(index)
        if part:
            yield part

    def forward(self, batch: Batch) -> torch.Tensor:
        shape = (batch.num_items, int(batch.lengths.max()))
        present = np.arange(shape[1])[None, :] < batch.lengths[:, None]
        ids = np.full(shape, self._pad_id, np.int64)
        ids[present] = batch.ids
        type_ids = np.zeros(shape, np.int64)
        if batch.type_ids is not None:
            type_ids[present] = batch.type_ids
        mask = self.to_device(present)
        hidden = self._run_backbone(
            input_ids=self.to_device(ids),
            attention_mask=mask,
            token_type_ids=None if batch.type_ids is None else self.to_device(type_ids),
        )
        if self._split.position == "mean":
            weights = (mask / mask.sum(dim=1, keepdim=True)).unsqueeze(-1)
            pooled = (hidden.float() * weights).sum(dim=1)
        else:
            ends = np.zeros(shape[0]) if self._split.position == "first" else batch.lengths - 1
            pooled = hidden[self.to_device(np.arange(shape[0])), self.to_device(ends)]
        return self._split.head_logits(pooled.float())


class OneByOneForward(Forward):
    """The model's own forward on one item at a time: what all other ways are checked against."""

    name = "one by one"

    def group(self, members: Sequence[int], batch: Batch) -> Iterator[Sequence[int]]:
        yield from ([index] for index in members)

    def forward(self, batch: Batch) -> torch.Tensor:
        inputs = {"input_ids": self.to_device(batch.ids)[None]}
        if batch.type_ids is not None and "token_type_ids" in self._accepts:
            inputs["token_type_ids"] = self.to_device(batch.type_ids)[None]
        logits: torch.Tensor = self.model(**inputs).logits
        return logits


def take(batch: Batch, members: Sequence[int]) -> Batch:
    """Some items of a batch, in the order given."""
    if list(members) == list(range(batch.num_items)):
        return batch
    ends = np.cumsum(batch.lengths, dtype=np.int64)
    pieces = [np.arange(ends[index] - batch.lengths[index], ends[index]) for index in members]
    order = np.concatenate(pieces) if pieces else np.empty(0, np.int64)
    return Batch(
        ids=batch.ids[order],
        lengths=batch.lengths[list(members)],
        completion_starts=batch.completion_starts[list(members)],
        type_ids=None if batch.type_ids is None else batch.type_ids[order],
        texts=None if batch.texts is None else tuple(batch.texts[index] for index in members),
        owners=None if batch.owners is None else batch.owners[list(members)],
    )


def smallest_window(config: Config) -> int | None:
    """Items up to this length are seen whole by every layer; None where no layer has a window."""
    text_config = config.get_text_config()
    if "sliding_attention" not in (getattr(text_config, "layer_types", None) or ["sliding_attention"]):
        return None
    window = getattr(text_config, "sliding_window", None)
    return window if isinstance(window, int) else None
