"""What a run shows while it goes on: a bar with the reward or the loss, and a quiet Ctrl-C."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text
from transformers import TrainerCallback

console = Console()


class RunProgress(TrainerCallback):
    """A bar over optimizer steps, with the last value of one metric."""

    def __init__(self, metrics: Any, shown: str) -> None:
        self.metrics = metrics
        self.shown = shown
        self._progress: Progress | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(f"{self.shown} {{task.fields[value]}}"),
            TimeRemainingColumn(),
            console=console,
        )
        self._progress.start()
        self._task = self._progress.add_task(
            "training", total=state.max_steps, completed=state.global_step, value="-"
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._progress is not None:
            value = self.metrics.latest(self.shown)
            shown = "-" if value is None else f"{value:.3f}"
            self._progress.update(self._task, completed=state.global_step, value=shown)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.close()

    def close(self) -> None:
        """Put the terminal back; also after an error, when ``on_train_end`` never comes."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


class Interrupt(TrainerCallback):
    """Ctrl-C ends the run after the step in hand, with a checkpoint. A second one ends it at once.

    Used as a context manager around training; outside of it Ctrl-C is what it was.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: Any = None

    def __enter__(self) -> Interrupt:
        self.asked = False
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
            self._before = None

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        console.print("Stopping after this step and saving; press Ctrl-C again to stop at once.")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.asked:
            control.should_save = True
            control.should_training_stop = True


def completions_table(window: Any, reward_names: list[str], count: int, step: int) -> Table:
    """A few completions with their rewards and advantages."""
    table = Table(title=f"Completions of step {step}", show_lines=True)
    table.add_column("prompt", max_width=48)
    table.add_column("completion", max_width=64)
    for name in [*reward_names, "advantage"]:
        table.add_column(name, justify="right")
    scored = zip(window.rows, window.rewards.rewards_BF, strict=True)
    for row, rewards in list(scored)[:count]:
        numbers = [f"{value:.2f}" for value in [*rewards, row.advantage]]
        # As it is: to rich a policy's "[/b]" would be markup, and an error.
        words = [Text(last_user_text(row.prompt.messages)), Text(row.completion.text)]
        table.add_row(*words, *numbers)
    return table


def last_user_text(messages: list[dict[str, Any]]) -> str:
    """The text of the last user message, pictures shown as ``<image>``."""
    content = next((m["content"] for m in reversed(messages) if m["role"] == "user"), "")
    if isinstance(content, str):
        return content
    return "".join("<image>" if part["type"] == "image" else part["text"] for part in content)
