"""From logits to tokens, by the settings of one rollout.

A draw depends on its row's seed and on the token's index within the completion, and on nothing
else of the batch: a completion is the same whatever it was sampled beside and in whichever slot.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foveal.kernels.draw import draw
from foveal.kernels.philox import philox_uniform
from foveal.types import SamplingParams

AHEAD = 64
"""Tokens for which random numbers are computed at a time."""


class Sampler:
    """Draws one token a row. Holds nothing of the rows but random numbers computed ahead.

    Args:
        sampling: temperature, truncations, penalty and suppressed tokens.
        never_ids: beside ``sampling.suppress_token_ids``: the family's image and video
            placeholders.
        vocab_size: V, the width of the logits.
        device: where the logits are.

    Raises:
        ValueError: for a suppressed id outside the vocabulary, or if no token is left.
    """

    def __init__(
        self,
        sampling: SamplingParams,
        never_ids: tuple[int, ...],
        vocab_size: int,
        device: torch.device | str,
    ) -> None:
        self.sampling = sampling
        self.vocab_size = vocab_size
        self.needs_seen = sampling.repetition_penalty != 1.0
        """Whether calls need ``seen_BV``; see :func:`seen_rows` and :func:`mark_seen`."""
        never = sorted({*never_ids, *sampling.suppress_token_ids})
        self._ahead: dict[int, tuple[int, Any]] = {}
        self.suppress_V = _mask(never, vocab_size, device) if never else None

    def uniforms(self, seeds: Sequence[int], firsts: Sequence[int], steps: int) -> Tensor:
        """Random numbers ``[steps, B]`` of the next tokens, on the CPU.

        They are computed some way ahead, for all rows that need it in one go, while the device is
        busy with something else.

        Args:
            seeds: of the B rows, from :func:`foveal.kernels.philox.row_seed`.
            firsts: index of each row's next token within its completion, from 0.
            steps: how many tokens each row is going to draw, at most ``AHEAD``.
        """
        uniform_SB = np.empty((steps, len(seeds)), dtype=np.float32)
        wanted = list(zip(seeds, firsts, strict=True))
        known = self._ahead
        missing = [
            (seed, first) for seed, first in wanted
            if seed not in known or not known[seed][0] <= first <= known[seed][0] + AHEAD - steps
        ]  # fmt: skip
        if missing:
            seed_BA = torch.tensor([s for s, _ in missing])[:, None].expand(-1, AHEAD)
            step_BA = torch.tensor([f for _, f in missing])[:, None] + torch.arange(AHEAD)
            flat = philox_uniform(seed_BA.flatten(), step_BA.flatten()).view(-1, AHEAD)
            known.update((s, (f, row)) for (s, f), row in zip(missing, flat.numpy(), strict=True))
        for column, (seed, first) in enumerate(wanted):
            begin, numbers = known[seed]
            uniform_SB[:, column] = numbers[first - begin : first - begin + steps]
        return torch.from_numpy(uniform_SB)

    def __call__(
        self,
        logits_BV: Tensor,
        uniform_B: Tensor | None,
        seen_BV: Tensor | None = None,
        out_token_B: Tensor | None = None,
        out_logprob_B: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Tokens int64 ``[B]`` and their log-probabilities float32 ``[B]``.

        The log-probability is the trainer's, see :func:`foveal.kernels.draw.draw`. ``seen_BV``
        is read, not changed. Nothing waits for the device.

        Args:
            logits_BV: final logits, ``[B, V]``.
            uniform_B: a row of :meth:`uniforms`, on the logits' device; not looked at if greedy.
            seen_BV: bool ``[B, V]`` if ``needs_seen``.
            out_token_B, out_logprob_B: written into if given.
        """
        sampling = self.sampling
        if logits_BV.shape[-1] != self.vocab_size:
            raise ValueError(
                f"logits have {logits_BV.shape[-1]} words, the sampler was built for "
                f"{self.vocab_size}; build it with the width of the head"
            )
        return draw(
            logits_BV,
            uniform_B if sampling.temperature > 0 else None,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            min_p=sampling.min_p,
            repetition_penalty=sampling.repetition_penalty,
            seen_BV=seen_BV,
            suppress_V=self.suppress_V,
            out_token_B=out_token_B,
            out_logprob_B=out_logprob_B,
        )


def seen_rows(
    ids_rows: Sequence[Sequence[int]], vocab_size: int, device: torch.device | str
) -> Tensor:
    """Bool ``[B, V]``: which tokens stand in each row (its prompt, and what was sampled so far).

    Ids past the vocabulary, which an embedding wider than the head may have, are left out: they
    have no logit to penalise.
    """
    seen_BV = torch.zeros(len(ids_rows), vocab_size, dtype=torch.bool)
    for row, ids in enumerate(ids_rows):
        ids_T = torch.tensor(list(ids), dtype=torch.int64)
        seen_BV[row, ids_T[ids_T < vocab_size]] = True
    return seen_BV.to(device)


def mark_seen(seen_BV: Tensor, token_B: Tensor) -> None:
    """Add each row's new token to ``seen_BV``, in place."""
    seen_BV.scatter_(1, token_B[:, None], True)


def _mask(never: list[int], vocab_size: int, device: torch.device | str) -> Tensor:
    outside = [i for i in never if not 0 <= i < vocab_size]
    if outside:
        raise ValueError(
            f"suppressed token ids {outside} lie outside the vocabulary of {vocab_size}; "
            "take them out, or take vocab_size from the model's head"
        )
    if len(never) == vocab_size:
        raise ValueError(f"all {vocab_size} tokens are suppressed; leave at least one to draw")
    suppress_V = torch.zeros(vocab_size, dtype=torch.bool)
    suppress_V[never] = True
    return suppress_V.to(device)
