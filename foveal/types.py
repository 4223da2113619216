"""The records that cross folders, and the legend of the shape letters.

Letters, used as suffixes of names throughout the code (``logprob_BT``):

    P prompts            G completions per prompt     B rows, P * G
    T tokens of a row    L longest row                N packed tokens
    D hidden width       V vocabulary                 F reward functions
    H query heads        K key/value heads            C head width
    I images             M image tokens (after the projector)
    S cache slots

A prompt and its G completions are the unit everywhere; rows are cut from groups only inside a
training pass. Nothing here imports torch: pixel tensors travel as opaque values.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor

StopReason = Literal["stop", "length"]

PAGE = 64
"""Tokens whose keys and values one page of the KV cache holds."""


@dataclass(frozen=True, slots=True)
class ImageInput:
    """One picture as the model's image processor left it.

    Two pictures with the same ``digest`` have the same pixels at the same grid, so the vision
    tower needs to see only one of them.
    """

    digest: str
    """Hash of the picture, the image processor's settings, and the grid."""
    pixel_values: Tensor
    """Qwen: ``[patches, patch_dim]``. Gemma: ``[3, height, width]``. float32, on the CPU."""
    grid_thw: tuple[int, int, int] | None
    """Patches along time, height and width; None for families with one fixed size."""
    num_tokens: int
    """M: how many placeholder tokens stand for this picture in the prompt."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One row of the data set, tokenised once. Placeholders are already expanded in ``ids``."""

    index: int
    """Row number in the data set that it came from; of rows without numbers (streams, tasks,
    mixtures) the number of the draw."""
    ids: tuple[int, ...]
    """Token ids, ``T_prompt`` of them, each picture already expanded to its placeholders."""
    images: tuple[ImageInput, ...]
    """I pictures, in the order of their placeholders."""
    messages: list[dict[str, Any]]
    """The conversation as given, with PIL pictures in it: what reward functions see as prompt."""
    columns: dict[str, Any] = field(default_factory=dict)
    """Every other column of the row, handed to reward functions under its own name."""

    def __post_init__(self) -> None:
        assert self.ids, f"prompt {self.index} has no tokens"


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled answer. ``ids`` ends with the stop token if ``stop_reason`` is "stop"."""

    ids: tuple[int, ...]
    text: str
    """Decoded without special tokens."""
    stop_reason: StopReason
    """"stop": the policy ended it. "length": it was cut at the token budget (truncated)."""
    rollout_logprob: tuple[float, ...] | None = None
    """Log-probability of each token as the sampler saw it, under the trainer's definition:
    softmax(logits / temperature) over the whole vocabulary, before any truncation."""
    layer_inputs: Any = field(default=None, compare=False, repr=False)
    """What its tokens put into each layer in the rollout (``foveal.models.layer_inputs``), where
    the engine was asked to keep it: it lies in GPU memory until it is let go."""

    def __post_init__(self) -> None:
        assert self.ids, "a completion holds at least one token"
        logprob = self.rollout_logprob
        assert logprob is None or len(logprob) == len(self.ids), "one log-probability a token"

    @property
    def truncated(self) -> bool:
        return self.stop_reason == "length"


@dataclass(frozen=True, slots=True)
class Group:
    """A prompt and its G completions: the unit of sampling, of advantages and of training."""

    prompt: Prompt
    completions: tuple[Completion, ...]

    def __post_init__(self) -> None:
        assert self.completions, f"prompt {self.prompt.index} has no completions"


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How tokens are drawn. ``temperature=0`` is greedy."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """0 keeps the whole vocabulary."""
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stop_token_ids: tuple[int, ...] = ()
    """Beside the model's own end-of-sequence tokens."""
    stop: tuple[str, ...] = ()
    """Texts that end a completion. The tokens up to the end of the first one are kept; the text
    is cut before it."""
    ignore_eos: bool = False
    """Go on past the model's end-of-sequence tokens: every completion has ``max_tokens``."""
    suppress_token_ids: tuple[int, ...] = ()
    """Beside the family's image and video placeholders, which are never sampled."""
    seed: int | None = None
    """None draws from the global random state."""

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens is {self.max_tokens}; it must be at least 1")
        if self.temperature < 0:
            raise ValueError(f"temperature is {self.temperature}; 0 is greedy, above 0 samples")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it must lie in (0, 1]")
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}; 0 keeps the whole vocabulary")
        if not 0 <= self.min_p < 1:
            raise ValueError(f"min_p is {self.min_p}; it must lie in [0, 1)")
        for place, text in enumerate(self.stop):
            if not isinstance(text, str) or not text:
                raise ValueError(
                    f"stop[{place}] is {text!r}; a stop string has at least one character"
                )
        if self.repetition_penalty <= 0:
            raise ValueError(f"repetition_penalty is {self.repetition_penalty}; 1 switches it off")
