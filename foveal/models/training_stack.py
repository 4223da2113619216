"""The layer loop of training: a prompt once, and completions against its keys and values.

    prompt_forward      prompts, packed [N, D]        -> keys and values by layer, last states
    completion_forward  their completions, packed      -> the hidden state before each token
    row_forward         prompts with one completion each, packed and without such a cut: the
                        quickest where nothing is shared (``foveal.train.sft_pass``)

A completion depends on its prompt through these alone. So the prompt's graph may be cut there,
and one backward pass through it closes any number of completions (``foveal.train.group_pass``).
The layers are those of ``foveal.models.training_layer``, over the model's own parameters.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.kernels import causal_attention, prefix_attention
from foveal.kernels.transfer import to_device
from foveal.models.captured_pass import kept_layers
from foveal.models.decoder import Decoder
from foveal.models.family import family_of, stock_model
from foveal.models.forward import Features
from foveal.models.layer_inputs import LayerInputs, PackedInputs
from foveal.models.state import Checkpointing, state_of
from foveal.models.training_layer import layer_again, training_layer
from foveal.types import Prompt

Angles = dict[str, tuple[Tensor, Tensor]]
"""Cosines and sines ``[N, C]`` by kind of layer."""
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""``attend(number, q_NHC, k_NKC, v_NKC) -> out_NHC``."""


@dataclass(frozen=True, slots=True)
class PromptBatch:
    """P prompts, N tokens in all, one after another."""

    lengths: tuple[int, ...]
    """Tokens of each prompt."""
    keys: tuple[Tensor, ...]
    """``[N, K, C]`` of each layer, rotated."""
    values: tuple[Tensor, ...]
    """``[N, K, C]`` of each layer."""
    last_PD: Tensor
    """Hidden states behind the last norm at the prompts' last tokens."""
    next_AP: Tensor
    """Rotary positions of the first completion tokens along each axis."""

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All that has a gradient."""
        return (*self.keys, *self.values, self.last_PD)

    def with_tensors(self, tensors: Sequence[Tensor]) -> PromptBatch:
        """The same with others in the place of :attr:`tensors`."""
        layers = len(self.keys)
        keys, values = tuple(tensors[:layers]), tuple(tensors[layers : 2 * layers])
        return replace(self, keys=keys, values=values, last_PD=tensors[-1])

    def of_prompts(self, x_NKC: Tensor, places: Sequence[int]) -> Tensor:
        """The rows of some prompts, in rising order, of a tensor over all tokens."""
        if len(places) == len(self.lengths):
            return x_NKC
        first, behind = places[0], places[-1] + 1
        if len(places) == behind - first:
            start = sum(self.lengths[:first])
            return x_NKC[start : start + sum(self.lengths[first:behind])]
        pieces = x_NKC.split(list(self.lengths))
        return torch.cat([pieces[place] for place in places])


@dataclass(frozen=True, slots=True)
class _Run:
    """What all layers made of rows of N tokens in all."""

    lengths: tuple[int, ...]
    x_ND: Tensor
    """The residual stream behind the last layer."""
    keys: list[Tensor]
    values: list[Tensor]
    next_AP: Tensor
    """Rotary position of the token after each row along each axis."""


class TrainingStack:
    """The decoder of a loaded model, for passes that share prompts.

    In training mode it keeps of each layer what ``set_checkpointing`` said before.

    Args:
        model: stock model or its PEFT wrapper.

    Raises:
        ValueError: for a model whose attention has dropout, or a cap on its scores.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.decoder = Decoder(model)
        self.config: Any = stock_model(model).config
        self._policy: Checkpointing | None = state_of(model).checkpointing
        _refuse(self.decoder, self.config)

    def prompt_forward(
        self, prompts: Sequence[Prompt], features: Sequence[Features]
    ) -> PromptBatch:
        """Prompts through all layers, side by side; each attends to itself alone.

        Args:
            prompts: at least one, with pictures or without.
            features: of all their pictures, in order.

        Raises:
            ValueError: if placeholders and features do not match in number.
        """
        run = self._through_layers(prompts, [()] * len(prompts), features)
        last_P = torch.tensor([*itertools.accumulate(run.lengths)]) - 1
        return PromptBatch(
            lengths=run.lengths,
            keys=tuple(run.keys),
            values=tuple(run.values),
            last_PD=self.decoder.norm(run.x_ND[to_device(last_P, self.decoder.device)]),
            next_AP=run.next_AP,
        )

    def row_forward(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[Sequence[int]],
        features: Sequence[Features],
    ) -> Tensor:
        """Hidden states ``[N, D]`` that predict the N completion tokens of rows, one after another.

        Args:
            prompts: at least one, with pictures or without.
            completions: token ids of each prompt's one completion, at least one each, without
                image placeholders.
            features: of all the prompts' pictures, in order.

        Raises:
            ValueError: if placeholders and features do not match in number.
        """
        # Nothing follows a completion's last token, so it is not passed through the layers.
        run = self._through_layers(prompts, [ids[:-1] for ids in completions], features)
        ends = itertools.accumulate(run.lengths)
        # A row's last T states predict its T completion tokens.
        at_N = [n for end, ids in zip(ends, completions, strict=True)
                for n in range(end - len(ids), end)]  # fmt: skip
        return self.decoder.norm(run.x_ND[to_device(torch.tensor(at_N), self.decoder.device)])

    def _through_layers(
        self,
        prompts: Sequence[Prompt],
        tails: Sequence[Sequence[int]],
        features: Sequence[Features],
    ) -> _Run:
        """Prompts, each continued by tokens of its own, through all layers side by side."""
        decoder, family, device = self.decoder, family_of(self.model), self.decoder.device
        rows = [(*prompt.ids, *tail) for prompt, tail in zip(prompts, tails, strict=True)]
        lengths = tuple(len(row) for row in rows)
        ids_N = torch.tensor([token for row in rows for token in row])
        # One position more than there are tokens: the next one's.
        positions = [
            family.row_positions(self.config, prompt, length + 1)
            for prompt, length in zip(prompts, lengths, strict=True)
        ]
        x_ND = self._embed(to_device(ids_N, device))
        # Where pictures are is known to the host; asking the device would mean waiting for it.
        image_N = ids_N == self.config.image_token_id
        at_M = to_device(image_N.nonzero()[:, 0], device)
        levels = _joined(features, len(at_M))
        if levels:
            x_ND = x_ND.index_copy(0, at_M, levels[0].to(x_ND.dtype))
        deepstack = levels[1:]
        pictured = to_device(image_N, device).split(lengths)
        masks = [family.prompt_masks(self.config, image_T) for image_T in pictured]
        attend = partial(self._attend_prompts, lengths, masks)
        position_AN = torch.cat([p[:, :-1] for p in positions], dim=1)
        angles = self._angles(to_device(position_AN, device))
        keys, values = [], []
        for number in range(len(decoder.layers)):
            x_ND, k, v = self._layer(number, angles, attend, x_ND)
            keys.append(k)
            values.append(v)
            if number < len(deepstack):
                # Features of a tower's earlier depth join the stream behind a layer (Qwen3-VL).
                x_ND = x_ND.index_add(0, at_M, deepstack[number].to(x_ND.dtype))
        next_AP = to_device(torch.cat([p[:, -1:] for p in positions], dim=1), device)
        return _Run(lengths, x_ND, keys, values, next_AP)

    @property
    def takes_layer_inputs(self) -> bool:
        """Whether ``set_checkpointing`` asked for what a rollout has kept."""
        return self._policy == "captured" and self.model.training

    def completion_forward(
        self,
        prompts: PromptBatch,
        groups: Sequence[tuple[int, Sequence[Sequence[int]]]],
        kept: Sequence[LayerInputs] | None = None,
    ) -> Tensor:
        """Hidden states ``[N, D]`` that predict the N tokens of completions, group by group.

        Nothing follows a completion's last token, so it is not passed through the layers.

        Args:
            prompts: what :meth:`prompt_forward` gave.
            groups: ``(place of a prompt, token ids of its completions)``, places rising,
                completions of at least one token each.
            kept: of each completion in turn what a rollout at the same weights put into the
                layers: then none is called until the backward pass. The prompts' tensors must be
                leaves, to which it adds gradients.
        """
        fed = [(place, ids[:-1]) for place, completions in groups for ids in completions]
        device = self.decoder.device
        last_PD = prompts.last_PD
        if not any(ids for _, ids in fed):
            return last_PD[to_device(torch.tensor([place for place, _ in fed]), device)]
        ids_N = torch.tensor([token for _, ids in fed for token in ids])
        x_ND = self._embed(to_device(ids_N, device))
        offset_N = torch.cat([torch.arange(len(ids)) for _, ids in fed])
        place_N = torch.tensor([place for place, ids in fed for _ in ids])
        start_AN = prompts.next_AP[:, to_device(place_N, device)]
        angles = self._angles(start_AN + to_device(offset_N, device))
        passed = [(place, len(ids)) for place, ids in fed if ids]
        attend = partial(self._attend_completions, prompts, passed)
        if kept is not None:
            x_ND = self._kept_layers(prompts, angles, attend, x_ND, kept)
        else:
            for number in range(len(self.decoder.layers)):
                x_ND, _, _ = self._layer(number, angles, attend, x_ND)
        own = self.decoder.norm(x_ND).split([len(ids) for _, ids in fed])
        return torch.cat([
            state
            for (place, _), rest in zip(fed, own, strict=True)
            for state in (last_PD[place : place + 1], rest)
        ])  # fmt: skip

    def _embed(self, ids_N: Tensor) -> Tensor:
        embed: Any = self.decoder.embed
        # A placeholder may lie outside the embedding; its row is overwritten by a feature anyway.
        return embed(ids_N.clamp(max=embed.num_embeddings - 1)).to(self.decoder.residual_dtype)

    def _angles(self, position_AN: Tensor) -> Angles:
        cos, sin = self.decoder.rotary_at(position_AN)
        return {kind: (cos[kind], sin[kind]) for kind in cos}

    def _layer(
        self, number: int, angles: Angles, attend: Attend, x_ND: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One layer: the stream behind it, its keys and values."""
        decoder, layer = self.decoder, self.decoder.layers[number]
        learning = self.model.training and torch.is_grad_enabled()
        policy = (self._policy or False) if learning else False
        return training_layer(
            decoder, layer, x_ND, angles[layer.rotary], partial(attend, number), policy
        )

    def _kept_layers(
        self, prompts: PromptBatch, angles: Angles, attend: Attend, x_ND: Tensor,
        kept: Sequence[LayerInputs],
    ) -> Tensor:  # fmt: skip
        """The stream behind the last layer as it was kept; layers are called on the way back."""
        decoder = self.decoder
        assert all(x.is_leaf for x in prompts.tensors), "gradients would run into the prompts"

        def again(number: int, x_ND: Tensor) -> Tensor:
            layer = decoder.layers[number]
            return layer_again(decoder, layer, x_ND, angles[layer.rotary], partial(attend, number))

        return kept_layers(x_ND, PackedInputs(kept, decoder.device), len(decoder.layers), again)

    def _attend_prompts(
        self, lengths: Sequence[int], masks: Sequence[dict[str, Tensor] | None], number: int,
        q: Tensor, k: Tensor, v: Tensor,
    ) -> Tensor:  # fmt: skip
        layer, scale = self.decoder.layers[number], self.decoder.scale
        kind = "sliding_attention" if layer.window else "full_attention"
        if masks[0] is None:
            return causal_attention(q, k, v, lengths, scale=scale, window=layer.window)
        pieces = zip(*(x.split(list(lengths)) for x in (q, k, v)), masks, strict=True)
        return torch.cat(
            [_masked_attention(*qkv, mask[kind], scale) for *qkv, mask in pieces]  # pyright: ignore
        )

    def _attend_completions(
        self, prompts: PromptBatch, passed: Sequence[tuple[int, int]], number: int, q: Tensor,
        k: Tensor, v: Tensor,
    ) -> Tensor:  # fmt: skip
        """``passed``: of each completion the place of its prompt, and its tokens."""
        counts = Counter(place for place, _ in passed)
        groups = [(prompts.lengths[place], count) for place, count in counts.items()]
        prompt_k, prompt_v = (
            prompts.of_prompts(x[number], [*counts]) for x in (prompts.keys, prompts.values)
        )
        return prefix_attention(
            q, k, v, prompt_k, prompt_v, [length for _, length in passed], groups,
            scale=self.decoder.scale, window=self.decoder.layers[number].window,
        )  # fmt: skip


def _joined(features: Sequence[Features], placeholders: int) -> list[Tensor]:
    """All pictures' features one after another, by depth of the tower."""
    levels = [torch.cat(level) for level in zip(*features, strict=True)]
    found = len(levels[0]) if levels else 0
    if found != placeholders:
        raise ValueError(
            f"the prompts hold {placeholders} image placeholders but their pictures give {found} "
            "features; build prompts with the model's own processor"
        )
    return levels


def _masked_attention(q: Tensor, k: Tensor, v: Tensor, mask_TT: Tensor, scale: float) -> Tensor:
    # Some kernels know no shared key heads, and without them scores are held in full.
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_TT, scale=scale)
    return out[0].transpose(0, 1)


def _refuse(decoder: Decoder, config: Any) -> None:
    dropout = getattr(config.get_text_config(), "attention_dropout", 0.0)
    if dropout:
        raise ValueError(
            f"attention_dropout of the model's config is {dropout}; completions share their prompt "
            "and must see the same keys. Set it to 0, or training_pass='plain'"
        )
    if decoder.score_softcap:
        raise ValueError(
            f"attn_logit_softcapping of the model's config is {decoder.score_softcap}, which "
            "attention inside a prompt does not apply here; use training_pass='plain'"
        )
