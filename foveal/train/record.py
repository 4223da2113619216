"""What a run leaves in its folder: ``metrics.jsonl``, ``rollouts.jsonl`` and the pictures."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from PIL import Image
from transformers import TrainerCallback

from foveal.train.console import last_user_text
from foveal.train.window import Window


class MetricsFile(TrainerCallback):
    """Every log entry as one line of ``metrics.jsonl``."""

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder) / "metrics.jsonl"

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A resumed run goes on after the step that it resumes from."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _keep_until(self.path, state.global_step)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any
    ) -> None:
        entry = {"step": state.global_step, **(logs or {})}
        with self.path.open("a") as file:
            file.write(json.dumps({k: _plain(v) for k, v in entry.items()}) + "\n")


class RolloutFile:
    """Every completion as one line of ``rollouts.jsonl``; pictures once each, by content."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.path = self.folder / "rollouts.jsonl"

    def start(self, step: int) -> None:
        """Forget completions of ``step`` and later, which a resumed run makes again."""
        self.folder.mkdir(parents=True, exist_ok=True)
        _keep_until(self.path, step - 1)

    def write(self, window: Window, reward_names: list[str], step: int) -> None:
        """Append the completions of a rollout made at ``step``."""
        lines = []
        scored = zip(window.rows, window.rewards.rewards_BF, strict=True)
        for index, (row, rewards) in enumerate(scored):
            line = {
                "step": step,
                "row": row.prompt.index,
                "prompt": last_user_text(row.prompt.messages),
                "images": self._pictures(row.prompt),
                "answer": _plain(row.prompt.columns.get("answer")),
                "completion": row.completion.text,
                "tokens": len(row.completion.ids),
                "stop_reason": row.completion.stop_reason,
                "rewards": dict(zip(reward_names, map(_plain, rewards), strict=True)),
                "advantage": _plain(row.advantage),
            }
            for name, values in window.rewards.extra.items():
                line[f"extra/{name}" if name in line else name] = _plain(values[index])
            lines.append(line)
        with self.path.open("a") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)

    def _pictures(self, prompt: Any) -> list[str]:
        pictures = [
            part["image"]
            for message in prompt.messages
            if not isinstance(message["content"], str)
            for part in message["content"]
            if part["type"] == "image" and isinstance(part.get("image"), Image.Image)
        ]
        names = []
        for picture, image in zip(pictures, prompt.images, strict=True):
            path = self.folder / "images" / f"{image.digest[:16]}.png"
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                part = path.with_suffix(".part")
                picture.save(part, format="PNG")
                part.replace(path)
            names.append(path.relative_to(self.folder).as_posix())
        return names


def _keep_until(path: Path, step: int) -> None:
    """Drop lines after ``step``, by way of a second file so that a crash loses nothing."""
    if not path.exists():
        return
    lines = [line for line in path.read_text().splitlines() if _step_of(line) <= step]
    part = path.with_suffix(".part")
    part.write_text("".join(line + "\n" for line in lines))
    part.replace(path)


def _step_of(line: str) -> float:
    """The step of a line; a crash may have cut the last one short, which belongs to no step."""
    try:
        return json.loads(line)["step"]
    except ValueError:
        return math.inf


def _plain(value: Any) -> Any:
    """``value`` as JSON has it: not-a-number becomes null, other objects their text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, (int, str, bool, type(None))):
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if hasattr(value, "tolist"):  # numpy and torch, numbers and arrays
        return _plain(value.tolist())
    return str(value)
