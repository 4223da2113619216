"""The supervised training pass: rows side by side without padding, loss on completions only.

    for rows, as many as fit the token budget
        pictures                                  one tower call
        prompts and completions, packed           models.training_stack.row_forward
        log p(token) of completion tokens only    kernels.head_logprob
        - sum / tokens of the optimizer step      backward: into the tower, too, if it is trained

Each row attends to itself alone and is computed as in the passes of reinforcement learning. The
shares of a step add up to the mean over its completion tokens, however its rows are split up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from foveal.kernels import head_logprob
from foveal.kernels.transfer import to_device
from foveal.models.family import final_softcap, stock_model
from foveal.models.forward import FeatureCache
from foveal.models.precision import autocast
from foveal.models.training_stack import TrainingStack
from foveal.rl import merge_stats
from foveal.rl.stats import Mean, Stat
from foveal.types import Prompt


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt and the tokens that are to follow it."""

    prompt: Prompt
    completion: tuple[int, ...]
    """Token ids, the end of the turn included."""

    @property
    def num_tokens(self) -> int:
        """Of prompt and completion together."""
        return len(self.prompt.ids) + len(self.completion)


def learn(
    model: nn.Module,
    examples: Sequence[Example],
    step_tokens: int,
    *,
    tokens_at_once: int | None,
    backward: Callable[[Tensor], None],
) -> tuple[Tensor, dict[str, Stat]]:
    """Forward and backward for ``examples``; their gradient is added to the parameters.

    Args:
        model: stock model or its PEFT wrapper.
        examples: of one micro-step.
        step_tokens: completion tokens of the whole optimizer step.
        tokens_at_once: bound on the tokens of one forward and backward; None sets none.
        backward: called with the share of each piece.

    Returns:
        The examples' share of the step's loss (nats), detached, and statistics to merge.
    """
    stack = TrainingStack(model)
    shares, stats = [], []
    for piece in pieces(examples, tokens_at_once):
        logprob_N, entropy_N = completion_tokens(stack, piece)
        share = -logprob_N.sum() / step_tokens
        backward(share)
        shares.append(share.detach())
        stats.append({"entropy": Mean(entropy_N.detach().sum(), _count(entropy_N))})
    return torch.stack(shares).sum(), merge_stats(*stats)


@torch.no_grad()
def total_loss(
    model: nn.Module, examples: Sequence[Example], *, tokens_at_once: int | None
) -> tuple[float, int]:
    """Minus the log-probability of all completions (nats), and how many tokens they have."""
    stack = TrainingStack(model)
    sums = [
        completion_tokens(stack, piece)[0].double().sum()
        for piece in pieces(examples, tokens_at_once)
    ]
    return -float(torch.stack(sums).sum()), sum(len(one.completion) for one in examples)


def completion_tokens(stack: TrainingStack, examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
    """Log-probability and entropy ``[N]``, float32, of the examples' completion tokens."""
    images = [image for one in examples for image in one.prompt.images]
    target_N = torch.tensor([token for one in examples for token in one.completion])
    with autocast(stack.model):
        return head_logprob(
            stack.row_forward(
                [one.prompt for one in examples],
                [one.completion for one in examples],
                FeatureCache().get(stack.model, images),
            ),
            stock_model(stack.model).get_output_embeddings().weight,
            to_device(target_N, stack.decoder.device),
            softcap=final_softcap(stack.model),
        )


def pieces(examples: Sequence[Example], tokens_at_once: int | None) -> Iterator[list[Example]]:
    """Examples in order, as many at once as the bound allows, at least one."""
    piece: list[Example] = []
    tokens = 0
    for example in examples:
        over = tokens_at_once is not None and tokens + example.num_tokens > tokens_at_once
        if piece and over:
            yield piece
            piece, tokens = [], 0
        piece.append(example)
        tokens += example.num_tokens
    yield piece


def _count(values_N: Tensor) -> Tensor:
    # Filled there: a number that is sent would wait for all work before it.
    return torch.full((), float(values_N.numel()), device=values_N.device)
