"""What the training pass by groups will take on a GPU, and the fastest way of it that fits.

Predicted is what is allocated above weights, features and whatever else is there already. It is
the largest of four moments of ``foveal.train.group_pass``, for each batch of prompts that pass the
layers side by side and each piece of their completions:

    head              a piece is through the layers, its logits are computed chunk by chunk
    last layer        a piece's backward pass begins: everything kept, and one layer at work (where
                      layers differ, the one at which most is held)
    first layer       it ends: a piece's own is gone, the prompts' keys and values have gradients
    prompts           the prompts' backward pass begins, their completions are gone

Each is a sum of terms, most of it ``foveal.memory.layer_bytes.kept_tensors`` of all tokens and
layers. Measured on a card, three policies lie within 5% (tests/unit/test_memory_planner.py).

Not predicted: attention's own temporaries, which are smaller than a feed-forward block's, and
whatever else uses the card. :func:`free_bytes` leaves a margin for them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from foveal.kernels.head_logprob import LOGITS_PER_CHUNK
from foveal.memory.idle import idle_bytes
from foveal.memory.layer_bytes import (
    FLOAT32,
    ModelSizes,
    Policy,
    TrainedFactors,
    kept_tensors,
    token_bytes,
    working_tensors,
)

GIB = 1 << 30
MARGIN_BYTES = GIB
MARGIN_SHARE = 0.05
"""Of the card; the larger of the two is left free."""
ADAM_BYTES = 8
"""Of an optimizer's state, a parameter: two moments in float32, the most that is common."""
FASTEST_FIRST: tuple[Policy, ...] = (False, "selective", True, "offload")
"""On an H100, a 7B model with 32 completions of 1,024 tokens: 3.12, 3.29 and 3.86 s; "offload" is
"full" and copies over the bus. "captured" is never chosen: a rollout has to be asked for it."""
NAMES: dict[Policy, str] = {
    False: "none", "selective": "selective", True: "full", "offload": "offload",
    "captured": "captured",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Piece:
    """Completions that pass the layers together."""

    groups: tuple[tuple[int, tuple[int, ...]], ...]
    """Of each prompt its tokens, and the tokens of each of its completions."""

    @property
    def completions(self) -> tuple[int, ...]:
        """Tokens of each completion."""
        return tuple(itertools.chain.from_iterable(group for _, group in self.groups))

    @property
    def tokens(self) -> int:
        """Tokens whose log-probabilities are asked for."""
        return sum(self.completions)

    @property
    def fed(self) -> int:
        """Tokens that pass the layers: nothing follows a completion's last one."""
        return self.tokens - len(self.completions)


@dataclass(frozen=True, slots=True)
class PromptPass:
    """Prompts that pass the layers side by side, and the pieces that follow one by one."""

    prompts: tuple[int, ...]
    """Tokens of each prompt."""
    pieces: tuple[Piece, ...]

    @property
    def tokens(self) -> int:
        return sum(self.prompts)


Layout = Sequence[PromptPass]
"""A micro-step, or several."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """The highest moment of a layout."""

    moment: str
    terms: dict[str, int]
    """Bytes by name; they add up to the peak."""

    @property
    def peak_bytes(self) -> int:
        return sum(self.terms.values())


@dataclass(frozen=True, slots=True)
class Plan:
    """What is kept of each layer, and how much passes at once."""

    policy: Policy
    pass_tokens: int | None
    """The bound on completion tokens at once; None leaves it as it was asked for."""
    tokens_at_once: int
    """Completion tokens of the largest piece."""
    prediction: Prediction
    free_bytes: int
    """That the pass may take, less the margin."""
    within_margin: bool = False
    """The pass fits only if nothing else takes of the margin."""
    captured_bytes: int = 0
    """What the rollout has kept for the pass; it is there before and no part of the prediction."""

    @property
    def line(self) -> str:
        """One line for the user."""
        peak, free = self.prediction.peak_bytes / GIB, self.free_bytes / GIB
        line = (
            f"training: gradient checkpointing {NAMES[self.policy]}, "
            f"{self.tokens_at_once} completion tokens at once; predicted peak {peak:.2f} GiB, "
            f"free {free:.2f} GiB"
        )
        if self.pass_tokens is not None:
            line += f" (pieces were made smaller: pass_tokens={self.pass_tokens})"
        if self.captured_bytes:
            line += f", beside {self.captured_bytes / GIB:.2f} GiB of the rollout's layer inputs"
        return line + (" and a margin that this reaches into" if self.within_margin else "")


# --------------------------------------------------------------------------------- the moments


def predict(sizes: ModelSizes, layout: Layout, policy: Policy) -> Prediction:
    """The highest moment of a forward and backward pass over a layout.

    Args:
        sizes: of the model.
        layout: at least one pass with at least one piece.
        policy: what is kept of each layer.
    """
    moments = (moment for one in layout for moment in _moments(sizes, one, policy))
    return max(moments, key=lambda moment: moment.peak_bytes)


def _moments(s: ModelSizes, one: PromptPass, policy: Policy) -> Iterable[Prediction]:
    # Sums over a prompt's pieces are kept in float32; a single one is taken as it comes.
    several = len(one.pieces) > 1
    kv_elements = one.tokens * s.layers * s.kv
    sums = kv_elements * FLOAT32 if several else 0
    arriving = kv_elements * s.product_bytes
    base = {
        "gradients of parameters": s.missing_gradients,
        "adapters in the products' type": s.copied_parameters * s.product_bytes,
        **_kept_of_prompts(s, one, policy),
    }
    layers = _layers(s, policy)
    for piece in one.pieces:
        here = base | {"sums of keys' and values' gradients": sums}
        kept = _kept_of_piece(s, piece, policy)
        yield Prediction("head", here | {"kept of completions": kept[-1]} | _head(s, piece))
        work = [piece.fed * layer.work + _unpacked(s) for layer in layers]
        below, at_work = max(zip(kept, work, strict=True), key=lambda bytes: (sum(bytes), bytes))
        yield Prediction("last layer", here | {
            "kept of completions": below,
            "a layer at work": at_work,
        })  # fmt: skip
        yield Prediction("first layer", here | {
            "kept of completions": piece.fed * layers[0].kept,
            "a layer at work": work[0],
            "keys' and values' gradients arriving": arriving,
        })  # fmt: skip
    at_work = one.tokens * max(layer.work for layer in _layers(s, policy, prompt=True))
    yield Prediction("prompts", base | {
        "keys' and values' gradients": arriving + sums,
        "a layer at work": at_work + _unpacked(s),
    })  # fmt: skip


class _Layer(NamedTuple):
    """Bytes of a token in a layer."""

    kept: int
    work: int


def _layers(s: ModelSizes, policy: Policy, *, prompt: bool = False) -> list[_Layer]:
    forms: dict[TrainedFactors, _Layer] = {}
    for trained in map(s.trained_in, range(s.layers)):
        if trained not in forms:
            kept = kept_tensors(s, policy, prompt=prompt, trained=trained)
            work = working_tensors(s, policy, prompt=prompt, trained=trained)
            forms[trained] = _Layer(token_bytes(s, kept), token_bytes(s, work))
    return [forms[s.trained_in(layer)] for layer in range(s.layers)]


def _kept_of_prompts(s: ModelSizes, one: PromptPass, policy: Policy) -> dict[str, int]:
    kept = sum(layer.kept for layer in _layers(s, policy, prompt=True))
    # Completions attend to them under every policy.
    missing = 0 if "k" in kept_tensors(s, policy, prompt=True) else s.kv * s.product_bytes
    tower = s.tower_token_bytes
    if policy is not False:
        # Its layers keep their inputs, and one is computed again at a time.
        tower = 2 * tower // max(1, s.tower_layers)
    return {
        "kept of prompts": one.tokens * kept,
        "prompts' keys and values": one.tokens * s.layers * missing,
        "kept of a trained tower": one.tokens * tower,
    }


def _kept_of_piece(s: ModelSizes, piece: Piece, policy: Policy) -> list[int]:
    """Bytes in each layer and those below it."""
    kept = [piece.fed * layer.kept for layer in _layers(s, policy)]
    if policy is False or policy == "selective":
        tails = (_tails(s, piece, window) for window in s.windows)
        kept = [sum(both) for both in itertools.zip_longest(kept, tails, fillvalue=0)]
    return list(itertools.accumulate(kept))


def _tails(s: ModelSizes, piece: Piece, window: int) -> int:
    """Copies of the prompt's end that stand before each completion in a layer with a window."""
    if not window or all(T + max(group) - 1 <= window for T, group in piece.groups):
        return 0
    tokens = sum(len(group) * min(T, window - 1) for T, group in piece.groups)
    return tokens * s.kv * s.product_bytes


def _unpacked(s: ModelSizes) -> int:
    """The largest weight, which a quantised layer unpacks for each product."""
    return s.hidden * s.inner * s.product_bytes if s.called_linears else 0


def _head(s: ModelSizes, piece: Piece) -> dict[str, int]:
    chunk = min(piece.tokens, max(1, LOGITS_PER_CHUNK // s.vocabulary))
    # The product of the head in its own type, and float32 made from it.
    logit = FLOAT32 + (s.product_bytes if s.product_bytes < FLOAT32 else 0)
    if s.wide_logits:
        logit = 2 * FLOAT32
    return {
        "last norm": piece.fed * s.hidden * FLOAT32,
        "last states and their gradients": 2 * piece.tokens * s.hidden * s.product_bytes,
        "chunks of logits": chunk * s.vocabulary * logit,
    }


# ---------------------------------------------------------------------------------- the choice


def choose(
    sizes: ModelSizes,
    layout_at: Callable[[int | None], Layout],
    free: int,
    margin: int = 0,
    *,
    policies: Sequence[Policy] = FASTEST_FIRST,
) -> Plan:
    """The fastest policy that fits; smaller pieces only where none does.

    Args:
        sizes: of the model.
        layout_at: the layout under a bound on completion tokens at once, or (None) as asked for.
        free: bytes that can be had, margin included.
        margin: bytes of these that should stay free.
        policies: to choose from, the fastest first.

    Raises:
        ValueError: if not even a row at a time fits, with the numbers and what helps.
    """
    asked, room = layout_at(None), free - margin
    tried = []
    for bound in (None, *_smaller_bounds(asked)):
        layout = asked if bound is None else layout_at(bound)
        for policy in policies:
            plan = _plan(sizes, layout, policy, bound, room)
            if plan.prediction.peak_bytes + sizes.missing_states <= room:
                return plan
            tried.append(plan)
    least = min(tried, key=lambda plan: plan.prediction.peak_bytes)
    if least.prediction.peak_bytes + sizes.missing_states > free:
        raise ValueError(_too_little(least, sizes, free))
    return replace(least, within_margin=True)


def _plan(sizes: ModelSizes, layout: Layout, policy: Policy, bound: int | None, room: int) -> Plan:
    tokens = max(piece.tokens for one in layout for piece in one.pieces)
    return Plan(policy, bound, tokens, predict(sizes, layout, policy), room)


def _smaller_bounds(layout: Layout) -> list[int]:
    """Whole rows of the longest length, one row fewer at a time; at last each prompt alone too."""
    pieces = [piece for one in layout for piece in one.pieces]
    longest = max(max(piece.completions) for piece in pieces)
    rows = -(-max(piece.tokens for piece in pieces) // longest)
    return [*(count * longest for count in range(rows - 1, 0, -1)), 1]


def _too_little(plan: Plan, sizes: ModelSizes, free: int) -> str:
    terms = sorted(plan.prediction.terms.items(), key=lambda term: -term[1])[:3]
    largest = ", ".join(f"{name} {size / GIB:.2f}" for name, size in terms)
    need = (plan.prediction.peak_bytes + sizes.missing_states) / GIB
    return (
        f"training needs {need:.2f} GiB even with gradient checkpointing {NAMES[plan.policy]} and "
        f"{plan.tokens_at_once} completion tokens at once, but {free / GIB:.2f} GiB of the GPU are "
        f"free (largest: {largest}). Lower max_completion_length or max_prompt_length, load the "
        'model with load_in_4bit=True, or set gradient_checkpointing="offload" to try all the same'
    )


# -------------------------------------------------------------------------------- what is free


def free_bytes(device: torch.device) -> tuple[int, int]:
    """``(bytes that can be had, bytes of these that should stay free)`` on a GPU."""
    free, total = torch.cuda.mem_get_info(device)
    return free + idle_bytes(device), max(MARGIN_BYTES, int(MARGIN_SHARE * total))
