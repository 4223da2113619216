"""The training pass that computes each prompt once, however many completions it has.

    for prompts, some at a time                         models.training_stack
        pictures, prompts                               one forward; its graph waits
        for their completions, in pieces                against its keys and values
            log p(token), loss                          train.plain_pass, rl.policy_loss
            backward                                    into the parameters, and to the cut
        what arrived at the cut, backward through the prompts and on into a trained tower

The cut is exact: completions depend on their prompt through its keys, values and last state only,
and gradients add. A factor that ``backward`` puts on a loss (a gradient scaler's, say) is in what
arrives at the cut already.

Completions whose weight in the gradient is exactly zero are passed forward only, where a whole
piece is such (a group with equal rewards is nothing else): their entropies, ratios and differences
to the sampler stay in the metrics, and the pieces stay those of :func:`score`, bit for bit.

``foveal.train.plain_pass`` is the specification.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from foveal.kernels import head_logprob
from foveal.kernels.transfer import to_device
from foveal.memory.planner import Piece, PromptPass
from foveal.models.adapted_layers import adapters_unchanged
from foveal.models.family import final_softcap, stock_model, vision_is_trained, vision_modules
from foveal.models.forward import CompletionLogprobs, FeatureCache, padded_logprobs
from foveal.models.precision import autocast
from foveal.models.training_stack import PromptBatch, TrainingStack
from foveal.rl import LossSpec, Normaliser, merge_stats
from foveal.rl.stats import Stat
from foveal.train.plain_pass import PassSettings, Row, loss_share
from foveal.types import Prompt


@adapters_unchanged()
def learn(
    model: nn.Module,
    rows: Sequence[Row],
    normaliser: Normaliser,
    settings: PassSettings,
    *,
    cache: FeatureCache,
    backward: Callable[[Tensor], None],
    entropy_threshold: Tensor | None = None,
) -> tuple[Tensor, dict[str, Stat]]:
    """Forward and backward for ``rows``; their gradient is added to the parameters.

    Args:
        model: the policy.
        rows: of one micro-step; rows of one prompt stand next to each other.
        normaliser: of the optimizer step that the rows belong to.
        settings: the loss, its temperature, and how much is passed at once.
        cache: features of pictures.
        backward: called with the share of each piece that has a gradient.
        entropy_threshold: tokens below it are left out (``top_entropy_quantile``).

    Returns:
        The rows' share of the step's loss, detached, and statistics to merge with others'.
    """
    stack = TrainingStack(model)
    shares, stats, skipped = [], [], False
    most = tokens_at_once(rows, settings)
    for batch in _batches(rows, most):
        pieces = [
            (piece, any(_has_gradient(row, settings.spec) for row in piece.rows))
            for piece in _pieces(batch, settings, most)
        ]
        skipped |= not all(learns for _, learns in pieces)
        with torch.set_grad_enabled(any(learns for _, learns in pieces)):
            cut = _Cut(_prompts(stack, [prompt for prompt, _ in batch], cache))
        for piece, learns in pieces:
            with torch.set_grad_enabled(learns):
                output = _completions(
                    stack, cut.state, piece, settings.temperature,
                    captured=stack.takes_layer_inputs,
                )  # fmt: skip
                share, found = loss_share(
                    piece.rows, output, normaliser, settings, entropy_threshold
                )
            if learns:
                backward(share)
                cut.collect()
            shares.append(share.detach())
            stats.append(found)
        cut.backward()
        del cut  # keys and values, before those of the next prompts
    if skipped:
        _fill_gradients(model, rows)
    return torch.stack(shares).sum(), merge_stats(*stats)


@adapters_unchanged()
def score(
    model: nn.Module, rows: Sequence[Row], settings: PassSettings, *, cache: FeatureCache
) -> list[tuple[Tensor, Tensor]]:
    """Log-probability and entropy of each row, ``[T]`` each, without gradient.

    Prompts and rows are laid out as in :func:`learn`, so that with unchanged weights both give
    the same bits: GSPO's clip range of 3e-4 leaves no room for rounding.
    """
    stack = TrainingStack(model)
    results: list[tuple[Tensor, Tensor]] = []
    most = tokens_at_once(rows, settings)
    with torch.no_grad():
        for batch in _batches(rows, most):
            # As in learning: a trained tower is called for each batch anew, with its pictures.
            own = FeatureCache() if vision_is_trained(model) else cache
            states = _prompts(stack, [prompt for prompt, _ in batch], own)
            for piece in _pieces(batch, settings, most):
                output = _completions(stack, states, piece, settings.temperature)
                for i, row in enumerate(piece.rows):
                    here = slice(len(row.completion.ids))
                    results.append((output.logprob_BT[i, here], output.entropy_BT[i, here]))
    return results


def tokens_at_once(rows: Sequence[Row], settings: PassSettings) -> int:
    """Completion tokens of one piece: unless the settings say, as many as a padded batch of
    ``rows_at_once`` rows would hold."""
    if settings.tokens_at_once is not None:
        return settings.tokens_at_once
    return settings.rows_at_once * max(len(row.completion.ids) for row in rows)


def layout(rows: Sequence[Row], settings: PassSettings) -> list[PromptPass]:
    """In what portions :func:`learn` passes rows, for ``foveal.memory.planner``."""
    most = tokens_at_once(rows, settings)
    return [
        PromptPass(
            tuple(len(prompt.ids) for prompt, _ in batch),
            tuple(
                Piece(tuple(
                    (len(group[0].prompt.ids), tuple(len(row.completion.ids) for row in group))
                    for _, group in piece.groups
                ))
                for piece in _pieces(batch, settings, most)
            ),
        )
        for batch in _batches(rows, most)
    ]  # fmt: skip


class _Cut:
    """Prompts' results as leaves of the completions' graphs, and the gradients they collect."""

    def __init__(self, state: PromptBatch) -> None:
        self._outputs = state.tensors
        self._leaves = [x.detach().requires_grad_(x.requires_grad) for x in state.tensors]
        self._grads: list[Tensor | None] = [None] * len(self._leaves)
        self.state = state.with_tensors(self._leaves)

    def collect(self) -> None:
        """Take over what the last backward pass left; sums are kept in float32 or better."""
        for i, leaf in enumerate(self._leaves):
            if leaf.grad is None:
                continue
            known, wide = self._grads[i], torch.promote_types(leaf.dtype, torch.float32)
            self._grads[i] = leaf.grad if known is None else known.to(wide).add_(leaf.grad)
            leaf.grad = None

    def backward(self) -> None:
        """Through the prompts, once; nothing happens where no gradient arrived."""
        arrived = [
            (output, grad.to(output.dtype))
            for output, grad in zip(self._outputs, self._grads, strict=True)
            if grad is not None
        ]
        if arrived:
            outputs, grads = zip(*arrived, strict=True)
            torch.autograd.backward(outputs, grads)


def _groups(rows: Sequence[Row]) -> Iterator[tuple[Prompt, list[Row]]]:
    """Neighbours with the same tokens and pictures."""

    def content(row: Row) -> tuple[tuple[int, ...], list[str]]:
        return row.prompt.ids, [image.digest for image in row.prompt.images]

    for _, group in itertools.groupby(rows, content):
        members = list(group)
        yield members[0].prompt, members


Batch = list[tuple[Prompt, list[Row]]]
"""Prompts that pass side by side, each with its rows."""


@dataclass(frozen=True, slots=True)
class _Piece:
    """Rows of one forward and backward."""

    groups: list[tuple[int, list[Row]]]
    """``(place of a prompt in its batch, rows of it)``."""

    @property
    def rows(self) -> list[Row]:
        return [row for _, group in self.groups for row in group]


def _batches(rows: Sequence[Row], most: int) -> Iterator[Batch]:
    """Prompts with their rows, as many at once as hold no more tokens than completions may."""
    batch: Batch = []
    tokens = 0
    for prompt, group in _groups(rows):
        if batch and tokens + len(prompt.ids) > most:
            yield batch
            batch, tokens = [], 0
        batch.append((prompt, group))
        tokens += len(prompt.ids)
    yield batch


def _pieces(batch: Batch, settings: PassSettings, most: int) -> Iterator[_Piece]:
    """Rows in order, as many at once as hold ``most`` tokens, at least one.

    A group from which nothing is learnt shares no piece with others: it need not go backward.
    """
    piece, tokens, learning = _Piece([]), 0, None
    for place, (_, group) in enumerate(batch):
        learns = any(_has_gradient(row, settings.spec) for row in group)
        for row in group:
            length = len(row.completion.ids)
            if piece.groups and (tokens + length > most or learns != learning):
                yield piece
                piece, tokens = _Piece([]), 0
            if not piece.groups or piece.groups[-1][0] != place:
                piece.groups.append((place, []))
            piece.groups[-1][1].append(row)
            tokens, learning = tokens + length, learns
    yield piece


def _has_gradient(row: Row, spec: LossSpec) -> bool:
    """Whether the loss can depend on a row: each of its terms is multiplied by one of these."""
    return row.num_tokens > 0 and bool(row.advantage or spec.beta or spec.entropy_coef)


def _prompts(stack: TrainingStack, prompts: Sequence[Prompt], cache: FeatureCache) -> PromptBatch:
    images = [image for prompt in prompts for image in prompt.images]
    with autocast(stack.model):
        return stack.prompt_forward(prompts, cache.get(stack.model, images))


def _completions(
    stack: TrainingStack,
    prompts: PromptBatch,
    piece: _Piece,
    temperature: float,
    *,
    captured: bool = False,
) -> CompletionLogprobs:
    """``captured``: with the layers' inputs of the rollout, where all rows have them."""
    groups = [(place, [row.completion.ids for row in rows]) for place, rows in piece.groups]
    completions = [ids for _, group in groups for ids in group]
    kept = [row.completion.layer_inputs for row in piece.rows] if captured else []
    target_N = torch.tensor([token for ids in completions for token in ids])
    with autocast(stack.model):
        logprob_N, entropy_N = head_logprob(
            stack.completion_forward(prompts, groups, None if not kept or None in kept else kept),
            stock_model(stack.model).get_output_embeddings().weight,
            to_device(target_N, stack.decoder.device),
            temperature=temperature,
            softcap=final_softcap(stack.model),
        )
    return padded_logprobs(logprob_N, entropy_N, [len(ids) for ids in completions])


def _fill_gradients(model: nn.Module, rows: Sequence[Row]) -> None:
    """Zeros for parameters that only skipped rows would have reached.

    An optimizer passes over a parameter without a gradient, but not over one whose gradient is 0:
    momentum and weight decay act on it.
    """
    tower = {id(p) for module in vision_modules(model) for p in module.parameters()}
    pictures = any(row.prompt.images for row in rows)
    for parameter in model.parameters():
        reached = pictures or id(parameter) not in tower
        if parameter.requires_grad and parameter.grad is None and reached:
            parameter.grad = torch.zeros_like(parameter)
