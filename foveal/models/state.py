"""What is known about a loaded model, kept with the model, and the lines that the user is told."""

from __future__ import annotations

import contextlib
import difflib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from foveal.models.family import stock_model

if TYPE_CHECKING:
    import torch
    from torch import nn

Quantisation = Literal["4bit", "8bit"]
Checkpointing = bool | Literal["offload", "selective", "captured", "auto"]


@dataclass(slots=True, kw_only=True)
class ModelState:
    """Attached to the stock model as ``model.foveal``; an adapter's wrapper shows it too."""

    family: str
    """Model type, such as ``qwen2_5_vl``."""
    model_name: str | None = None
    """Folder or hub id of the base weights; None for a model that was never loaded."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    max_seq_length: int | None = None
    """Most tokens of prompt and completion together; None for no bound of the user's."""
    dtype: torch.dtype | None = None
    """Of the weights that are not quantised."""
    quantisation: Quantisation | None = None
    """How the base weights of the language model are packed."""
    checkpointing: Checkpointing | None = None
    """Gradient checkpointing; None where nobody has chosen yet."""
    checkpointing_by_default: bool = False
    """It is no choice made for the model, and gives way to what a run asks for."""
    fast_inference: bool = False
    """vLLM rollouts were asked for."""
    gpu_memory_utilization: float | None = None
    """Part of the GPU that rollouts may take, in (0, 1]."""
    engine: Any = None
    """The rollout engine made for the model (``foveal.rollout.engine.engine_of``); a copy of the
    model makes its own."""
    changes: list[str] = field(default_factory=list)
    """What was changed on this instance, one ``topic: line`` each."""

    def record(self, topic: str, line: str | None) -> None:
        """Put ``topic: line`` in place of what ``changes`` said of the topic; None takes it out."""
        self.changes = [change for change in self.changes if not change.startswith(f"{topic}: ")]
        if line is not None:
            self.changes.append(f"{topic}: {line}")


def state_of(model: nn.Module) -> ModelState:
    """The state of a model, adapted or not; a stock model that has none yet is given one."""
    stock = stock_model(model)
    if not isinstance(getattr(stock, "foveal", None), ModelState):
        stock.foveal = ModelState(
            family=stock.config.model_type,
            model_name=getattr(stock, "name_or_path", None) or None,
            dtype=stock.dtype,
            quantisation=_quantisation(stock),
        )
    return stock.foveal


def _quantisation(stock: nn.Module) -> Quantisation | None:
    if getattr(stock, "is_loaded_in_4bit", False):
        return "4bit"
    return "8bit" if getattr(stock, "is_loaded_in_8bit", False) else None


def say(line: str) -> None:
    """Print one line for the user, as it is: square brackets are no markup, long lines stay."""
    from rich import get_console

    get_console().print(line, markup=False, highlight=False, soft_wrap=True)


def refuse_unknown(function: Callable[..., Any], unknown: dict[str, Any]) -> None:
    """Raise for the first of the unknown keyword arguments, with the nearest known one."""
    for name in unknown:
        known = [
            parameter.name
            for parameter in inspect.signature(function).parameters.values()
            if parameter.kind is not inspect.Parameter.VAR_KEYWORD
        ]
        nearest = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"it takes {', '.join(known)}"
        raise TypeError(f"{function.__name__}() has no argument {name!r}; {hint}")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hush transformers' log and progress bars inside the block, and no longer."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    if bars:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
