"""The plain forward pass: rows in, log-probability of every completion token out.

This is the specification that faster passes are checked against. Two things already differ from
the stock forward: a picture passes the vision tower once however many rows hold it, and the head
is applied to completion tokens only, a few at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from foveal.kernels import head_logprob
from foveal.models.family import (
    family_of,
    final_softcap,
    language_model,
    stock_model,
    vision_is_trained,
    vision_modules,
)
from foveal.models.precision import autocast
from foveal.models.rows import RowBatch, make_rows
from foveal.types import ImageInput, Prompt

Features = tuple[Tensor, ...]


class FeatureCache:
    """Features by picture, kept while the tower does not change.

    Without gradients entries live until :meth:`clear`, or until weights of the tower change or
    its adapter is switched on or off; writes to ``.data`` are not noticed. With gradients and a
    trained tower nothing is kept: each pass needs its own graph.
    """

    def __init__(self) -> None:
        self._features: dict[str, Features] = {}
        self._tower: object = None
        self.tower_calls = 0

    def clear(self) -> None:
        self._features.clear()

    def get(self, model: nn.Module, images: Sequence[ImageInput]) -> list[Features]:
        """Features of ``images``, in order; each distinct picture is encoded once."""
        distinct = {image.digest: image for image in images}
        if vision_is_trained(model) and torch.is_grad_enabled():
            encoded = self._encode(model, list(distinct.values()))
            known = dict(zip(distinct, encoded, strict=True))
            return [known[image.digest] for image in images]
        tower = _tower_state(model)
        if tower != self._tower:
            self.clear()
            self._tower = tower
        missing = [image for digest, image in distinct.items() if digest not in self._features]
        with torch.no_grad():
            for image, features in zip(missing, self._encode(model, missing), strict=True):
                self._features[image.digest] = features
        return [self._features[image.digest] for image in images]

    def _encode(self, model: nn.Module, images: list[ImageInput]) -> list[Features]:
        if not images:
            return []
        self.tower_calls += 1
        return family_of(model).encode_images(model, images)


def _tower_state(model: nn.Module) -> object:
    """Changes when torch writes to the tower's weights, and when an adapter in it is switched.

    PEFT takes the gradients from an adapter that is off, so ``vision_is_trained`` does not tell.
    """
    modules = [part for module in vision_modules(model) for part in module.modules()]
    switches = tuple(getattr(part, "disable_adapters", None) for part in modules)
    weights = [p for module in vision_modules(model) for p in module.parameters()]
    return switches, tuple((p.data_ptr(), p._version) for p in weights)


@dataclass(frozen=True, slots=True)
class CompletionLogprobs:
    """What a pass says about completions, padded on the right to the longest, ``[B, T]``."""

    logprob_BT: Tensor
    entropy_BT: Tensor
    mask_BT: Tensor
    """True at completion tokens."""


def hidden_states(
    model: nn.Module, batch: RowBatch, features: Sequence[Features], keys_values: Any = None
) -> Tensor:
    """Last hidden states ``[B, L, D]`` of rows whose pictures have the given features.

    Args:
        model: stock model or its PEFT wrapper.
        batch: rows, padded on the right.
        features: of the rows' pictures, in order.
        keys_values: an empty cache of transformers' kind that is handed each layer's keys and
            values, or None.

    Raises:
        ValueError: if placeholders and features do not match in number.
    """
    stock = stock_model(model)
    embed = stock.get_input_embeddings()
    # A placeholder may lie outside the embedding; its row is overwritten by a feature anyway.
    embeds_BLD = embed(batch.ids_BL.clamp(max=embed.num_embeddings - 1))
    if family_of(model).FAMILY.fp32_residual and embeds_BLD.dtype == torch.float16:
        embeds_BLD = embeds_BLD.float()
    if features:
        embeds_BLD = place_features(embeds_BLD, batch.image_BL, [main for main, *_ in features])
    inputs = family_of(model).decoder_inputs(model, batch, embeds_BLD, features)
    output = language_model(model)(
        inputs_embeds=embeds_BLD,
        use_cache=keys_values is not None,
        past_key_values=keys_values,
        return_dict=True,
        **inputs,
    )
    return output.last_hidden_state


def place_features(embeds_BLD: Tensor, image_BL: Tensor, features: list[Tensor]) -> Tensor:
    """Embeddings ``[B, L, D]`` with pictures' features in the place of their placeholders.

    Raises:
        ValueError: if placeholders and features do not match in number.
    """
    features_MD = torch.cat(features).to(embeds_BLD.dtype)
    placeholders = int(image_BL.sum())
    if placeholders != len(features_MD):
        raise ValueError(
            f"the prompts hold {placeholders} image placeholders but their pictures give "
            f"{len(features_MD)} features; build prompts with the model's own processor"
        )
    return embeds_BLD.masked_scatter(image_BL[:, :, None], features_MD)


def completion_logprobs(
    model: nn.Module,
    prompts: Sequence[Prompt],
    completions: Sequence[Sequence[int]],
    *,
    temperature: float,
    cache: FeatureCache | None = None,
) -> CompletionLogprobs:
    """Log-probability and entropy of every completion token, each completion its own row.

    The definition that sampler, trainer, reference and report share: softmax(logits /
    temperature) over the whole vocabulary, before top-k, top-p, min-p, penalties or suppression.

    Args:
        model: stock model or its PEFT wrapper.
        prompts: B prompts; the same one may occur in several rows.
        completions: B lists of at least one token id.
        temperature: of the logits, above 0.
        cache: features of pictures seen before; a fresh one if None.
    """
    stock = stock_model(model)
    batch = make_rows(
        family_of(model),
        stock.config,
        prompts,
        completions,
        image_token_id=stock.config.image_token_id,
    ).to(stock.device)
    rows_N, columns_N = batch.completion_index()
    with autocast(model):
        features = (cache or FeatureCache()).get(model, batch.images)
        hidden_BLD = hidden_states(model, batch, features)
        logprob_N, entropy_N = head_logprob(
            # The token at a column is predicted by the column before it.
            hidden_BLD[rows_N, columns_N - 1],
            stock.get_output_embeddings().weight,
            batch.ids_BL[rows_N, columns_N],
            temperature=temperature,
            softcap=final_softcap(model),
        )
    return padded_logprobs(logprob_N, entropy_N, batch.completion_lengths)


def padded_logprobs(
    logprob_N: Tensor, entropy_N: Tensor, lengths: Sequence[int]
) -> CompletionLogprobs:
    """Packed completions of the given lengths as rows."""
    ones = torch.ones_like(logprob_N, dtype=torch.bool)
    logprob_BT, entropy_BT, mask_BT = (
        pad_sequence(list(packed.split(list(lengths))), batch_first=True)
        for packed in (logprob_N, entropy_N, ones)
    )
    return CompletionLogprobs(logprob_BT, entropy_BT, mask_BT)
