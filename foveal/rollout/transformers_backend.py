"""Rollouts through transformers' ``generate``: slow, stock, and the reference for faster ones.

Two things are not left to ``generate``. Sampling settings are all stated, because a checkpoint's
generation_config would otherwise add its own (Qwen2.5-VL's asks for a repetition penalty). And
the log-probability is taken from the raw logits, before penalties, suppression and truncation:
that is the trainer's definition (``foveal.models.forward.completion_logprobs``).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from foveal.kernels.philox import row_seed
from foveal.models.family import placeholder_ids, stock_model
from foveal.models.precision import autocast
from foveal.rollout.backend import OnTokens
from foveal.rollout.requests import check_count
from foveal.rollout.stopping import StopRule
from foveal.types import Completion, Group, Prompt, SamplingParams


class TransformersBackend:
    """Samples from ``model`` as it stands: adapters unmerged, no second copy of the weights.

    Args:
        model: stock model or its PEFT wrapper.
        tokenizer: decodes completions and names the padding token.
        max_rows: rows of one ``generate`` call; all at once if None.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, max_rows: int | None = None) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.max_rows = max_rows
        self.stop_ids = stop_token_ids(stock_model(model).generation_config, tokenizer)

    def generate(
        self,
        prompts: Sequence[Prompt],
        n: int,
        sampling: SamplingParams,
        on_tokens: OnTokens | None = None,
    ) -> list[Group]:
        """See :class:`foveal.rollout.backend.RolloutBackend`.

        Raises:
            ValueError: for several greedy completions of one prompt, which would all be equal.
        """
        check_count(n, sampling)
        rows = self.max_rows or max(1, n * len(prompts))
        per_call = max(1, rows // n)
        groups: list[Group] = []
        seed = sampling.seed
        if seed is not None and prompts:
            # One seed serves many calls, and each must draw anew: as with the engine, the rows'
            # numbers tell them apart.
            seed = row_seed(seed, prompts[0].index, 0)
        with _inference(self.model), _seeded(seed, stock_model(self.model).device):
            for start in range(0, len(prompts), per_call):
                part, show = prompts[start : start + per_call], _shifted(on_tokens, start, 0)
                groups += self._groups(part, n, rows, sampling, show)
        return groups

    def standby(self) -> None:
        """Nothing is kept between calls."""

    def _groups(
        self,
        prompts: Sequence[Prompt],
        n: int,
        rows: int,
        sampling: SamplingParams,
        on_tokens: OnTokens | None,
    ) -> list[Group]:
        """Groups of ``n``, a part of each at a time where one alone has more than ``rows``."""
        parts = [
            self._generate_call(
                prompts, min(rows, n - done), sampling, _shifted(on_tokens, 0, done)
            )
            for done in range(0, n, min(rows, n))
        ]
        return [
            Group(groups[0].prompt, tuple(c for group in groups for c in group.completions))
            for groups in zip(*parts, strict=True)
        ]

    def _generate_call(
        self,
        prompts: Sequence[Prompt],
        n: int,
        sampling: SamplingParams,
        on_tokens: OnTokens | None,
    ) -> list[Group]:
        from transformers import LogitsProcessorList, StoppingCriteriaList

        stock = stock_model(self.model)
        recorder = LogprobRecorder(sampling.temperature)
        rule = StopRule(self.tokenizer, self.stop_ids, sampling)
        watch = RowWatch(rule, len(prompts), n, on_tokens)
        output_BL = stock.generate(
            **left_padded_inputs(stock, prompts, self._pad_id()),
            generation_config=self._config(n, sampling, sorted(rule.stop_ids)),
            logits_processor=LogitsProcessorList(
                [recorder, *self._processors(sampling, stock.device)]
            ),
            stopping_criteria=StoppingCriteriaList([watch]),
        )
        logprob_BT = recorder.finish(output_BL[:, -1]).tolist()
        completions = [
            Completion(*rule.finish(ids, ended), tuple(logprobs[: len(ids)]))
            for ids, ended, logprobs in zip(watch.ids, watch.ended, logprob_BT, strict=True)
        ]
        return [
            Group(prompt, tuple(completions[i * n : (i + 1) * n]))
            for i, prompt in enumerate(prompts)
        ]

    def _config(self, n: int, sampling: SamplingParams, stops: list[int]) -> Any:
        from transformers import GenerationConfig

        greedy = sampling.temperature == 0
        draw = {} if greedy else self._draw_settings(sampling)
        return GenerationConfig(
            max_new_tokens=sampling.max_tokens,
            num_return_sequences=n,
            do_sample=not greedy,
            repetition_penalty=1.0,
            eos_token_id=stops or None,
            pad_token_id=self._pad_id(),
            use_cache=True,
            **draw,
        )

    @staticmethod
    def _draw_settings(sampling: SamplingParams) -> dict[str, Any]:
        return {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "min_p": sampling.min_p or None,
        }

    def _processors(self, sampling: SamplingParams, device: torch.device) -> list[Any]:
        from transformers import RepetitionPenaltyLogitsProcessor, SuppressTokensLogitsProcessor

        never = sorted({*placeholder_ids(self.model), *sampling.suppress_token_ids})
        processors: list[Any] = [SuppressTokensLogitsProcessor(never, device=str(device))]
        if sampling.repetition_penalty != 1.0:
            processors.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
        return processors

    def _pad_id(self) -> int:
        pad = self.tokenizer.pad_token_id
        return self.stop_ids[0] if pad is None else int(pad)


class LogprobRecorder:
    """A logits processor that changes nothing and notes the log-probability of what was drawn.

    It stands first in the list, so it sees the model's own logits. The token drawn from one call
    is known at the next one, so only one step of ``[B, V]`` is held at a time.
    """

    def __init__(self, temperature: float) -> None:
        self.temperature = temperature or 1.0
        self._drawn_from_BV: Tensor | None = None
        self._columns: list[Tensor] = []

    def __call__(self, ids_BL: Tensor, logits_BV: Tensor) -> Tensor:
        if self._drawn_from_BV is not None:
            self._note(ids_BL[:, -1])
        self._drawn_from_BV = torch.log_softmax(logits_BV.float() / self.temperature, dim=-1)
        return logits_BV

    def finish(self, last_ids_B: Tensor) -> Tensor:
        """Log-probabilities ``[B, T]``, given the token that was drawn last."""
        self._note(last_ids_B)
        return torch.stack(self._columns, dim=1)

    def _note(self, ids_B: Tensor) -> None:
        assert self._drawn_from_BV is not None
        self._columns.append(self._drawn_from_BV.gather(-1, ids_B[:, None])[:, 0])


class RowWatch:
    """A stopping criterion that keeps the ids of each row up to its end.

    Rows are those of ``generate``: ``n`` of the first prompt, then ``n`` of the second.
    """

    def __init__(self, rule: StopRule, prompts: int, n: int, on_tokens: OnTokens | None) -> None:
        self.rule = rule
        self.n = n
        self.on_tokens = on_tokens
        self.ids: list[list[int]] = [[] for _ in range(prompts * n)]
        self.ended = [False] * (prompts * n)

    def __call__(self, ids_BL: Tensor, scores: Any, **_: Any) -> Tensor:
        for row, token in enumerate(ids_BL[:, -1].tolist()):
            if self.ended[row]:
                continue
            self.ids[row].append(token)
            self.ended[row] = self.rule.ends(self.ids[row])
            if self.on_tokens is not None:
                self.on_tokens(row // self.n, row % self.n, [token])
        return torch.tensor(self.ended, device=ids_BL.device)


def _shifted(on_tokens: OnTokens | None, place: int, sample: int) -> OnTokens | None:
    """For a part of the prompts and samples that begins at ``place`` and ``sample``."""
    if on_tokens is None:
        return None
    show = on_tokens
    return lambda p, s, ids: show(place + p, sample + s, ids)


def stop_token_ids(generation_config: Any, tokenizer: Any) -> list[int]:
    """Every id that ends a turn: all of the generation config's and the tokenizer's own."""
    named = getattr(generation_config, "eos_token_id", None)
    ids = set(named) if isinstance(named, (list, tuple)) else {named}
    ids.add(tokenizer.eos_token_id)
    return sorted(int(i) for i in ids if i is not None)


def left_padded_inputs(stock: Any, prompts: Sequence[Prompt], pad_id: int) -> dict[str, Tensor]:
    """Inputs of the stock model for a batch of prompts, one row each, padded on the left."""
    longest = max(len(prompt.ids) for prompt in prompts)
    ids_PL = torch.full((len(prompts), longest), pad_id)
    mask_PL = torch.zeros_like(ids_PL)
    for row, prompt in enumerate(prompts):
        ids_PL[row, longest - len(prompt.ids) :] = torch.tensor(prompt.ids)
        mask_PL[row, longest - len(prompt.ids) :] = 1
    # Which tokens are pictures: M-RoPE (Qwen) and the two-way mask (Gemma) are made from it.
    types_PL = ((ids_PL == stock.config.image_token_id) & (mask_PL == 1)).int()
    types_name = "token_type_ids" if stock.config.model_type == "gemma3" else "mm_token_type_ids"
    inputs = {"input_ids": ids_PL, "attention_mask": mask_PL, types_name: types_PL}
    images = [image for prompt in prompts for image in prompt.images]
    if images:
        join = torch.cat if images[0].grid_thw is not None else torch.stack
        inputs["pixel_values"] = join([image.pixel_values for image in images])
        if images[0].grid_thw is not None:
            inputs["image_grid_thw"] = torch.tensor([image.grid_thw for image in images])
    return {name: value.to(stock.device) for name, value in inputs.items()}


@contextlib.contextmanager
def _inference(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients in the trainer's precision; the mode is put back."""
    from transformers import GenerationConfig

    stock, training = stock_model(model), model.training
    # generate takes what a call leaves open (min_p, bad words) from here, the checkpoint's own.
    defaults, stock.generation_config = stock.generation_config, GenerationConfig()
    model.eval()
    try:
        with torch.no_grad(), autocast(model):
            yield
    finally:
        model.train(training)
        stock.generation_config = defaults


@contextlib.contextmanager
def _seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    """Draw from ``seed`` and leave the global random state as it was."""
    if seed is None:
        yield
        return
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
