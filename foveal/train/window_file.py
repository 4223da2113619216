"""A window on disk: what a checkpoint needs when it is made while a rollout is still in use.

Prompts are stored as row numbers and made again from the data set or, where rows have no numbers,
whole: tokens and pixels. Everything that was drawn or computed is stored as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from foveal.rewards.call import RewardTable
from foveal.rl import Advantages
from foveal.train.plain_pass import Row
from foveal.train.window import Window
from foveal.types import Completion, Group, ImageInput, Prompt

FILE = "rollout.pt"
_ADVANTAGE_FIELDS = ("advantage_PG", "reward_PG", "mean_P", "std_P", "zero_std_P")
_IMAGE_FIELDS = ("digest", "pixel_values", "grid_thw", "num_tokens")
_ROW_FIELDS = ("advantage", "counts", "old_logprob", "ref_logprob", "entropy")


def save_window(window: Window, folder: Path, with_prompts: bool = False) -> None:
    """Write ``window`` into a checkpoint folder; ``with_prompts``: so that no row is read again."""
    rewards = window.rewards
    content: dict[str, Any] = {
        "window_id": window.window_id,
        "prompts": [group.prompt.index for group in window.groups],
        "completions": [[_fields(c) for c in group.completions] for group in window.groups],
        "rewards": {"rewards_BF": rewards.rewards_BF, "metrics": rewards.metrics},
        "advantages": {name: getattr(window.advantages, name) for name in _ADVANTAGE_FIELDS},
        "rows": [{name: getattr(row, name) for name in _ROW_FIELDS} for row in window.rows],
        "entropy_threshold": window.entropy_threshold,
    }
    if with_prompts:
        content["whole_prompts"] = [_stored(group.prompt) for group in window.groups]
    torch.save(content, folder / FILE)


def _fields(completion: Completion) -> dict[str, Any]:
    # Layer inputs take gigabytes, and are used up before a checkpoint is made.
    return asdict(replace(completion, layer_inputs=None))


def _stored(prompt: Prompt) -> dict[str, Any]:
    images = [{name: getattr(image, name) for name in _IMAGE_FIELDS} for image in prompt.images]
    return {"index": prompt.index, "ids": prompt.ids, "images": images}


def _restored(stored: dict[str, Any]) -> Prompt:
    # Rewards are known and the completions are logged: nobody reads messages and columns.
    images = tuple(ImageInput(**image) for image in stored["images"])
    return Prompt(stored["index"], stored["ids"], images, messages=[])


def load_window(
    folder: Path, prompts: Callable[[Sequence[int]], list[Prompt]] | None, device: torch.device
) -> Window | None:
    """Read the window of a checkpoint, or None if it has none.

    Args:
        folder: the checkpoint.
        prompts: row numbers -> prompts; None for a window saved with its prompts.
        device: for the log-probabilities.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    content = torch.load(path, map_location="cpu", weights_only=True)
    if prompts is None:
        built = [_restored(stored) for stored in content["whole_prompts"]]
    else:
        built = prompts(content["prompts"])
    groups = [
        Group(prompt, tuple(Completion(**fields) for fields in completions))
        for prompt, completions in zip(built, content["completions"], strict=True)
    ]
    pairs = [(group.prompt, c) for group in groups for c in group.completions]
    rows = [
        Row(prompt=p, completion=c, **{name: _to(value, device) for name, value in row.items()})
        for (p, c), row in zip(pairs, content["rows"], strict=True)
    ]
    rewards = content["rewards"]
    return Window(
        window_id=tuple(content["window_id"]),
        groups=groups,
        rewards=RewardTable(rewards["rewards_BF"], {}, rewards["metrics"], {}),
        advantages=Advantages(**content["advantages"]),
        rows=rows,
        entropy_threshold=_to(content["entropy_threshold"], device),
    )


def _to(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, torch.Tensor) else value
