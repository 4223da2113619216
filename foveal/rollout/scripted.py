"""Completions written down beforehand: part of the product, for tests of rewards and training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from foveal.rollout.backend import OnTokens
from foveal.types import Completion, Group, Prompt, SamplingParams

Script = Callable[[Prompt, int], Sequence[str | Sequence[int]]]


class ScriptedBackend:
    """Answers each prompt with what ``script(prompt, n)`` returns.

    A text is tokenised and ended with the stop token; a list of token ids is taken as it stands
    and counts as truncated unless it ends with the stop token. Both are cut at ``max_tokens``,
    and at nothing else: the script says where a completion ends.
    """

    def __init__(self, script: Script, tokenizer: Any, eos_token_id: int | None = None) -> None:
        self.script = script
        self.tokenizer = tokenizer
        self.eos_token_id = tokenizer.eos_token_id if eos_token_id is None else eos_token_id

    def generate(
        self,
        prompts: Sequence[Prompt],
        n: int,
        sampling: SamplingParams,
        on_tokens: OnTokens | None = None,
    ) -> list[Group]:
        groups = [Group(prompt, self._answers(prompt, n, sampling)) for prompt in prompts]
        if on_tokens is not None:
            for place, group in enumerate(groups):
                for sample, completion in enumerate(group.completions):
                    on_tokens(place, sample, list(completion.ids))
        return groups

    def standby(self) -> None:
        """Nothing is kept between calls."""

    def _answers(self, prompt: Prompt, n: int, sampling: SamplingParams) -> tuple[Completion, ...]:
        lines = list(self.script(prompt, n))
        if len(lines) != n:
            raise ValueError(
                f"the script gave {len(lines)} completions for prompt {prompt.index}, "
                f"but {n} were asked for"
            )
        return tuple(self._completion(line, sampling.max_tokens) for line in lines)

    def _completion(self, line: str | Sequence[int], max_tokens: int) -> Completion:
        if isinstance(line, str):
            ids = [*self.tokenizer.encode(line, add_special_tokens=False), self.eos_token_id]
        else:
            ids = [int(i) for i in line]
        if not ids:
            raise ValueError("the script gave a completion without tokens; give at least one")
        ids = ids[:max_tokens]
        stopped = ids[-1] == self.eos_token_id
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        return Completion(tuple(ids), text, "stop" if stopped else "length")
