"""Generate as with vLLM: ``model.fast_generate(prompts, sampling_params)``.

    model, processor = FastVisionModel.from_pretrained("Qwen/Qwen2.5-VL-7B-Instruct")
    (answer,) = model.fast_generate([{"problem": "How many dogs?", "image": "park.jpg"}])
    answer.outputs[0].text

Whoever needs completions of a model gets them from ``backend_of``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from rich.progress import Progress
from torch import nn

from foveal.data import PromptBuilder, PromptReader, list_prompts
from foveal.models.family import family_of, stock_model
from foveal.models.state import state_of
from foveal.rollout import OnTokens, RolloutBackend, TextStream
from foveal.rollout.engine import engine_of
from foveal.rollout.requests import DEFAULT_MAX_TOKENS, sampling_from
from foveal.types import Completion, Group, Prompt, SamplingParams, StopReason

OnText = Callable[[int, int, str], None]
"""Place of the prompt, number of the sample, new text."""


@dataclass(frozen=True, slots=True)
class Output:
    """One completion, with the attributes of vLLM's ``CompletionOutput``."""

    index: int
    """Number of the sample, 0 to n - 1."""
    text: str
    """Without special tokens, cut before the first stop string."""
    token_ids: list[int]
    logprobs: list[float] | None
    """Of each token: softmax(logits / temperature) over the whole vocabulary, before top_k and
    its like. Nats."""
    finish_reason: StopReason
    """"stop", or "length" at the token budget."""

    @property
    def cumulative_logprob(self) -> float | None:
        return None if self.logprobs is None else sum(self.logprobs)


@dataclass(frozen=True, slots=True)
class Generation:
    """A prompt and its completions, with the attributes of vLLM's ``RequestOutput``."""

    prompt_token_ids: list[int]
    """Every picture expanded to its placeholders."""
    outputs: list[Output]


def backend_of(model: nn.Module, processor: Any) -> RolloutBackend:
    """Where completions of a model come from."""
    return engine_of(model, processor.tokenizer)


def bind_generation(model: nn.Module, processor: Any) -> None:
    """Set ``model.fast_generate`` on the stock model; an adapter's wrapper shows it too."""
    stock = stock_model(model)
    stock.fast_generate = partial(fast_generate, stock, processor)


def fast_generate(
    model: nn.Module,
    processor: Any,
    prompts: Any,
    sampling_params: Any = None,
    *,
    n: int | None = None,
    stream: OnText | None = None,
    use_tqdm: bool = False,
    lora_request: Any = None,
) -> list[Generation]:
    """Answer prompts with a model as it stands, adapter included.

    Args:
        model: from ``FastVisionModel``, or any supported transformers or PEFT model.
        processor: the model's.
        prompts: one prompt or a list. A prompt is

            - a text: a question, which becomes a user message. A text that holds a token of the
              chat template (``<|im_start|>``) is a finished prompt and is taken as it stands.
            - a list of messages, with pictures (PIL, path, URL ..) in their parts
            - ``{"prompt": text, "multi_modal_data": {"image": picture or list}}`` as for vLLM,
              the text a finished prompt with the family's placeholder for each picture
            - a row as data sets have them, such as ``{"problem": .., "image": ..}``
        sampling_params: ``foveal.SamplingParams``, a dict of its fields, or
            ``vllm.SamplingParams``. None samples at temperature 1 from the whole distribution;
            the checkpoint's generation_config is not read. Without a ``max_tokens``, completions
            have up to 512 tokens, or what the model's ``max_seq_length`` leaves.
        n: completions of each prompt; None is what ``sampling_params`` says, or else 1.
        stream: called with (prompt, sample, new text) as text is settled; the pieces of a sample
            join to its ``text``.
        use_tqdm: draw a bar of the tokens, whose end is the token budget.
        lora_request: None; the model answers with the adapter that it carries.

    Returns:
        One ``Generation`` for each prompt, in their order.

    Raises:
        TypeError, ValueError: for a prompt or a setting that cannot be used, naming it, before
            anything is generated.
    """
    if lora_request is not None:
        raise ValueError(
            "lora_request is not supported: the model answers with the adapter that it carries; "
            "put one on it with FastVisionModel.load_adapter"
        )
    built = _build(model, processor, list_prompts(prompts))
    if not built:
        return []
    sampling, count = _settings(model, built, sampling_params, n)
    backend = backend_of(model, processor)
    texts = None if stream is None else _Texts(processor.tokenizer, sampling.stop, stream)
    with _progress(use_tqdm, len(built) * count * sampling.max_tokens) as advance:
        groups = backend.generate(built, count, sampling, on_tokens=_both(texts, advance))
    if texts is not None:
        texts.finish()
    return [_generation(group) for group in groups]


def _build(model: nn.Module, processor: Any, prompts: Sequence[Any]) -> list[Prompt]:
    builder = PromptBuilder(
        processor,
        image_token_id=stock_model(model).config.image_token_id,
        answer_coordinates=family_of(model).FAMILY.answer_coordinates,
    )
    reader = PromptReader(builder)
    return [reader.read(prompt, index) for index, prompt in enumerate(prompts)]


def _settings(
    model: nn.Module, prompts: Sequence[Prompt], given: Any, n: int | None
) -> tuple[SamplingParams, int]:
    """Sampling settings and number of completions, checked against the model's bound."""
    place = max(range(len(prompts)), key=lambda i: len(prompts[i].ids))
    longest, bound = len(prompts[place].ids), state_of(model).max_seq_length
    if bound is not None and longest >= bound:
        raise ValueError(
            f"prompt {place} has {longest} tokens and the model's max_seq_length is {bound}; "
            "shorten it, or load the model with a larger one"
        )
    room = DEFAULT_MAX_TOKENS if bound is None else min(DEFAULT_MAX_TOKENS, bound - longest)
    sampling, asked = sampling_from(given, room)
    if bound is not None and longest + sampling.max_tokens > bound:
        raise ValueError(
            f"prompt {place} has {longest} tokens, and with max_tokens={sampling.max_tokens} it "
            f"is above the model's max_seq_length={bound}; lower max_tokens to {bound - longest}, "
            "or load the model with a larger one"
        )
    if n is not None and asked is not None and n != asked:
        raise ValueError(f"n is {n}, and {asked} in sampling_params; give it in one place")
    return sampling, n if n is not None else asked if asked is not None else 1


def _generation(group: Group) -> Generation:
    outputs = [_output(index, answer) for index, answer in enumerate(group.completions)]
    return Generation(list(group.prompt.ids), outputs)


def _output(index: int, answer: Completion) -> Output:
    logprobs = None if answer.rollout_logprob is None else list(answer.rollout_logprob)
    return Output(index, answer.text, list(answer.ids), logprobs, answer.stop_reason)


class _Texts:
    """Tokens as they arrive -> ``stream`` called with text, one ``TextStream`` a sample."""

    def __init__(self, tokenizer: Any, stop: tuple[str, ...], stream: OnText) -> None:
        self.new = partial(TextStream, tokenizer, stop)
        self.stream = stream
        self.samples: dict[tuple[int, int], TextStream] = {}

    def __call__(self, place: int, sample: int, ids: list[int]) -> None:
        key = (place, sample)
        if key not in self.samples:
            self.samples[key] = self.new()
        self._show(key, self.samples[key].push(ids))

    def finish(self) -> None:
        for key, text in self.samples.items():
            self._show(key, text.finish())

    def _show(self, key: tuple[int, int], text: str) -> None:
        if text:
            self.stream(*key, text)


def _both(first: OnTokens | None, second: OnTokens | None) -> OnTokens | None:
    if first is None or second is None:
        return first or second

    def on_tokens(place: int, sample: int, ids: list[int]) -> None:
        first(place, sample, ids)
        second(place, sample, ids)

    return on_tokens


@contextlib.contextmanager
def _progress(shown: bool, total: int) -> Iterator[OnTokens | None]:
    if not shown:
        yield None
        return
    with Progress() as bar:
        task = bar.add_task("tokens", total=total)
        yield lambda place, sample, ids: bar.advance(task, len(ids))
