"""Random numbers that are a pure function of (seed, step), so a draw can be repeated anywhere.

A generator with a state would tie a completion to the rows that it was sampled beside and to the
order in which they ended. Philox-4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random
numbers: as easy as 1, 2, 3", SC 2011) needs none: each row has its seed, each token its counter.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
"""Of the counter's words 0 and 2."""
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
"""Added to the key's words after each round."""
WORD = 0xFFFFFFFF
_WORD_64 = 0xFFFFFFFFFFFFFFFF


def philox_uniform(seed_B: Tensor, step_B: Tensor) -> Tensor:
    """One number in [0, 1) for each row: float32 ``[B]``, multiples of 2**-24.

    The key is the seed, the counter is ``(step low, step high, 0, 0)``, and the number is made of
    the first word's upper 24 bits. Same values on every device; no synchronisation with the host,
    so it may stand in a CUDA graph.

    Args:
        seed_B: int64 ``[B]``; see :func:`row_seed`.
        step_B: int64 ``[B]``, index of the token within the completion, from 0.
    """
    for name, value_B in (("seed_B", seed_B), ("step_B", step_B)):
        if value_B.dtype != torch.int64 or value_B.shape != seed_B.shape or value_B.ndim != 1:
            raise ValueError(
                f"{name} is {value_B.dtype} {list(value_B.shape)}; seeds and steps are int64 of "
                "one shape [B]"
            )
    if seed_B.is_cuda:
        from foveal.kernels.draw_triton import philox_uniform_triton

        return philox_uniform_triton(seed_B, step_B)
    return philox_uniform_reference(seed_B, step_B)


def philox_uniform_reference(seed_B: Tensor, step_B: Tensor) -> Tensor:
    """The specification of :func:`philox_uniform`, in torch integers."""
    zero_B = torch.zeros_like(step_B)
    counter = (step_B & WORD, (step_B >> 32) & WORD, zero_B, zero_B)
    word_B = philox_words(counter, (seed_B & WORD, (seed_B >> 32) & WORD))[0]
    return (word_B >> 8).float() * 2.0**-24


def philox_words(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox-4x32-10. Words are int64 tensors of one shape with values below 2**32."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        high0, low0 = _product(c0, MULTIPLIERS[0])
        high2, low2 = _product(c2, MULTIPLIERS[1])
        c0, c1, c2, c3 = high2 ^ c1 ^ k0, low2, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + KEY_STEPS[0]) & WORD, (k1 + KEY_STEPS[1]) & WORD
    return c0, c1, c2, c3


def _product(word: Tensor, multiplier: int) -> tuple[Tensor, Tensor]:
    """Upper and lower half of a 64-bit product. It may wrap to a negative int64, whose bits are
    the right ones; the mask removes the sign that the shift copies."""
    product = word * multiplier
    return (product >> 32) & WORD, product & WORD


def row_seed(seed: int, request: int, sample: int) -> int:
    """Seed of one completion: int64, from the run's seed, the request's and the sample's number.

    Each of the three is mixed in with splitmix64 (Steele, Lea and Flood, "Fast splittable
    pseudorandom number generators", OOPSLA 2014). For a fixed run and request, different samples
    never share a seed.
    """
    mixed = 0
    for part in (seed, request, sample):
        mixed = _splitmix64(mixed ^ (part & _WORD_64))
    return mixed - (1 << 64) if mixed >> 63 else mixed


def _splitmix64(state: int) -> int:
    z = (state + 0x9E3779B97F4A7C15) & _WORD_64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _WORD_64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _WORD_64
    return z ^ (z >> 31)
