"""The layer loop of training: a prompt once, and completions against its keys and values.

    prompt_forward      one prompt, packed [T, D]     -> its keys and values by layer, last state
    completion_forward  completions of it, packed     -> the hidden state before each token

A completion depends on its prompt through these alone. So the prompt's graph may be cut there,
and one backward pass through it closes any number of completions (``foveal.train.group_pass``).
The layers are those of ``foveal.models.training_layer``, over the model's own parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.kernels import prefix_attention
from foveal.models.decoder import Decoder, Layer
from foveal.models.family import family_of, stock_model
from foveal.models.forward import Features, place_features
from foveal.models.state import Checkpointing, state_of
from foveal.models.training_layer import training_layer
from foveal.types import Prompt

Angles = dict[str, tuple[Tensor, Tensor]]
"""Cosines and sines ``[N, C]`` by kind of layer."""
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""``attend(number, q_NHC, k_NKC, v_NKC) -> out_NHC``."""


@dataclass(frozen=True, slots=True)
class PromptState:
    """What completions need of their prompt."""

    keys: tuple[Tensor, ...]
    """``[T, K, C]`` of each layer, rotated."""
    values: tuple[Tensor, ...]
    """``[T, K, C]`` of each layer."""
    last_1D: Tensor
    """Hidden state behind the last norm at the last token: it predicts every first token."""
    next_A1: Tensor
    """Rotary position of the first completion token along each axis."""

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All that has a gradient."""
        return (*self.keys, *self.values, self.last_1D)

    def with_tensors(self, tensors: Sequence[Tensor]) -> PromptState:
        """The same with others in the place of :attr:`tensors`."""
        layers = len(self.keys)
        return PromptState(
            tuple(tensors[:layers]), tuple(tensors[layers : 2 * layers]), tensors[-1], self.next_A1
        )


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

    def prompt_forward(self, prompt: Prompt, features: Sequence[Features]) -> PromptState:
        """A prompt of T tokens through all layers.

        Args:
            prompt: with pictures or without.
            features: of its pictures, in order.

        Raises:
            ValueError: if placeholders and features do not match in number.
        """
        decoder, family, T = self.decoder, family_of(self.model), len(prompt.ids)
        ids_T = torch.tensor(prompt.ids, device=decoder.device)
        image_T = ids_T == self.config.image_token_id
        position_AT = family.row_positions(self.config, prompt, T + 1).to(decoder.device)
        x_TD = self._embed(ids_T)
        deepstack: list[Tensor] = []
        if features:
            main, *deepstack = (torch.cat(level) for level in zip(*features, strict=True))
            x_TD = place_features(x_TD[None], image_T[None], [main])[0]
        attend = partial(self._attend_prompt, family.prompt_masks(self.config, image_T))
        angles = self._angles(position_AT[:, :T])
        keys, values = [], []
        at_M = image_T.nonzero()[:, 0] if deepstack else None
        for number in range(len(decoder.layers)):
            x_TD, k, v = self._layer(number, angles, attend, x_TD)
            keys.append(k)
            values.append(v)
            if number < len(deepstack) and at_M is not None:
                # Features of a tower's earlier depth join the stream behind a layer (Qwen3-VL).
                x_TD = x_TD.index_add(0, at_M, deepstack[number].to(x_TD.dtype))
        last_1D = decoder.norm(x_TD[-1:])
        return PromptState(tuple(keys), tuple(values), last_1D, position_AT[:, T:])

    def completion_forward(
        self, prompt: PromptState, completions: Sequence[Sequence[int]]
    ) -> Tensor:
        """Hidden states ``[N, D]`` that predict the N tokens of completions of one prompt.

        Nothing follows a completion's last token, so it is not passed through the layers.

        Args:
            prompt: what :meth:`prompt_forward` gave.
            completions: token ids, at least one each.
        """
        fed = [ids[:-1] for ids in completions]
        lengths = [len(ids) for ids in fed if ids]
        if not lengths:
            return prompt.last_1D.expand(len(completions), -1)
        device = self.decoder.device
        x_ND = self._embed(torch.tensor([token for ids in fed for token in ids], device=device))
        offset_N = torch.cat([torch.arange(n) for n in lengths]).to(device)
        angles = self._angles(prompt.next_A1 + offset_N)
        attend = partial(self._attend_completions, prompt, lengths)
        for number in range(len(self.decoder.layers)):
            x_ND, _, _ = self._layer(number, angles, attend, x_ND)
        own = self.decoder.norm(x_ND).split([len(ids) for ids in fed])
        return torch.cat([state for rest in own for state in (prompt.last_1D, rest)])

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

    def _attend_prompt(
        self, masks: dict[str, Tensor] | None, number: int, q: Tensor, k: Tensor, v: Tensor
    ) -> Tensor:
        layer = self.decoder.layers[number]
        mask = _prompt_mask(masks, layer, q)
        # Some kernels know no shared key heads, and without them scores are held in full.
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, scale=self.decoder.scale
        )
        return out[0].transpose(0, 1)

    def _attend_completions(
        self, prompt: PromptState, lengths: Sequence[int], number: int, q: Tensor, k: Tensor,
        v: Tensor,
    ) -> Tensor:  # fmt: skip
        return prefix_attention(
            q, k, v, prompt.keys[number], prompt.values[number], lengths,
            scale=self.decoder.scale, window=self.decoder.layers[number].window,
        )  # fmt: skip


def _prompt_mask(masks: dict[str, Tensor] | None, layer: Layer, q_THC: Tensor) -> Tensor | None:
    """Who sees whom in a prompt, ``[T, T]``; None for plain causal attention."""
    if masks is not None:
        return masks["sliding_attention" if layer.window else "full_attention"]
    T = q_THC.shape[0]
    if not 0 < layer.window < T:
        return None
    at = torch.arange(T, device=q_THC.device)
    distance = at[:, None] - at
    return (distance >= 0) & (distance < layer.window)


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
