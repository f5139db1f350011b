"""The fastest way of running a model that gives what the model itself gives, found by trying at load.

Random items are scored by the model's own forward, one at a time, and then by each way of `forward`, fastest first, in
fp32. So an architecture takes part in the packed forward because it was seen to agree, not because of its name.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from rm_server.backends.checkpoint import Model, position_limit
from rm_server.backends.device_memory import is_out_of_memory
from rm_server.backends.items import Batch, EncodedItem
from rm_server.backends.json_file import first_line
from rm_server.backends.shared_prefix import MIN_SAVED_TOKENS
from rm_server.backends.torch.attention import NotPackable
from rm_server.backends.torch.forward import Forward, OneByOneForward, PackedForward, PaddedForward, smallest_window
from rm_server.errors import UnsupportedArtifact

logger = logging.getLogger(__name__)

# Long enough to reach past small windows; larger windows are checked by whether the layers ask for them.
_LONGEST_ITEM = 640
_LENGTHS = (5, 33, 1, 18)
_NUM_SHARED = 48


def choose_forward(model: Model, device: torch.device, check: Batch) -> Forward:
    """The first of packed (in two ways), padded and one by one that agrees with the model's own forward on ``check``.

    ``model`` is in fp32 on ``device``; the result owns it. Want of memory is raised as torch raises it. Raises
    UnsupportedArtifact where its own forward fails, or depends on the items before.
    """
    if getattr(model.base_model, "attention_type", None) == "block_sparse":  # BigBird's
        raise UnsupportedArtifact(
            f"{type(model).__name__} with block-sparse attention cannot be served: after one short item it attends in "
            'full to all others, too, so that scores would depend on the order of items. "attention_type": '
            '"original_full" in its config.json is served, and gives long items the scores of full attention.'
        )
    expected = _own_logits(model, device, check)
    ways: dict[str, Callable[[Model, torch.device], PackedForward | PaddedForward]] = {
        "packed, its last layer only where it is read": PackedForward,
        "packed": partial(PackedForward, reads_only=False),
        "padded": PaddedForward,
    }
    for name, way in ways.items():
        forward: PackedForward | PaddedForward | None = None
        try:
            forward = way(model, device)
            came = forward.logits(check)
            reason = _disagreement(expected, came) or _missing_windows(model, forward)
        except (NotPackable, RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError) as error:
            if is_out_of_memory(error):
                raise  # It says nothing about this way, and may be over the next time.
            reason = f"{type(error).__name__}: {error}"
        if not reason:
            assert forward is not None
            return forward
        level = logging.INFO if way is PackedForward else logging.WARNING  # a little slower, no more
        logger.log(level, "%s is not served %s: %s", type(model).__name__, name, reason)
        if forward is not None:
            forward.undo()
    return OneByOneForward(model, device)


def _own_logits(model: Model, device: torch.device, check: Batch) -> torch.Tensor:
    try:
        return OneByOneForward(model, device).logits(check)
    except Exception as error:  # the model's own code may raise anything
        if is_out_of_memory(error):
            raise
        raise UnsupportedArtifact(
            f"{type(model).__name__} cannot be served: its own forward fails on ordinary tokens: {first_line(error)}"
        ) from error


def check_batch(model: Model, max_tokens: int) -> Batch:
    """Random items of several lengths, none above ``max_tokens``: some share a prefix, one exceeds a small window.

    They hold no special tokens, from which some models' own forward would take an item's end.
    """
    config = model.config.get_text_config()
    longest = min(max_tokens, position_limit(model.config, model.base_model) or max_tokens, _LONGEST_ITEM)
    lengths = [min(length, longest) for length in _LENGTHS]
    window = getattr(config, "sliding_window", None)
    longest_sharing = longest
    if isinstance(window, int):
        lengths.append(min(2 * window + 9, longest))
        longest_sharing = max(1, min(window, longest))
    special = {
        value
        for name in ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")
        if isinstance(value := getattr(config, name, None), int)
    }
    ordinary = np.array([index for index in range(min(config.vocab_size, 4096)) if index not in special], np.int32)
    random = np.random.default_rng(0)
    items = [random.choice(ordinary, length).astype(np.int32) for length in lengths]
    prefix = random.choice(ordinary, min(_NUM_SHARED, longest_sharing - 1)).astype(np.int32)
    # So many that it pays to share a prefix which is short for want of room.
    for index in range(1 + -(-MIN_SAVED_TOKENS // max(len(prefix), 1))):
        rest = random.choice(ordinary, min((3, 7)[index % 2], longest_sharing - len(prefix))).astype(np.int32)
        items.append(np.concatenate([prefix, rest]))
    return Batch.of([EncodedItem(ids=ids, num_tokens=len(ids)) for ids in items])


def _disagreement(expected: torch.Tensor, came: torch.Tensor) -> str:
    """Says how two sets of logits differ by more than rounding in fp32; empty where they do not."""
    if came.shape != expected.shape:
        return f"it gives logits of shape {tuple(came.shape)} in place of {tuple(expected.shape)}"
    # Rounding is a few millionths of the spread of scores; what a wrong neighbour or position does is far more.
    tolerance = 1e-3 * expected.std(dim=0) + 1e-6 * expected.abs().amax(dim=0) + 1e-7
    excess = ((came - expected).abs() / tolerance).nan_to_num(nan=float("inf"))
    both_nan = came.isnan() & expected.isnan()
    worst = float(excess.masked_fill(both_nan, 0.0).max())
    return "" if worst <= 1 else f"its logits are up to {float((came - expected).abs().max()):.2g} off"


def _missing_windows(model: Model, forward: Forward) -> str:
    """A window longer than the check's items does not show in the logits: every such layer must have asked for it."""
    if not isinstance(forward, PackedForward) or smallest_window(model.config) is None:
        return ""
    layer_types = getattr(model.config.get_text_config(), "layer_types", None)
    attending = forward.last
    assert attending is not None
    expected = layer_types.count("sliding_attention") if layer_types else attending.num_calls
    if attending.num_windowed == expected:
        return ""
    return f"{attending.num_windowed} of its layers ask for a window, {expected} have one"
