"""``foveal chat``: ask a model about pictures, in a loop or once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from torch import nn

from foveal.data import load_image
from foveal.fast_model import FastVisionModel
from foveal.generate import fast_generate
from foveal.types import SamplingParams

HELP = "/image PATH adds a picture to the next message; /reset begins anew; /quit ends."


@dataclass(slots=True)
class Conversation:
    """Messages so far, and the pictures that wait for the next one."""

    model: nn.Module
    processor: Any
    sampling: SamplingParams
    messages: list[dict[str, Any]] = field(default_factory=list)
    pictures: list[Image.Image] = field(default_factory=list)

    def ask(self, question: str, show: Callable[[str], None]) -> str:
        """Answer a question; ``show`` gets the text as it comes.

        A question that fails or is interrupted leaves the conversation as it was.
        """
        parts = [{"type": "image", "image": picture} for picture in self.pictures]
        content = [*parts, {"type": "text", "text": question}]
        asked = [*self.messages, {"role": "user", "content": content}]
        (answer,) = fast_generate(
            self.model,
            self.processor,
            asked,
            self.sampling,
            stream=lambda place, sample, text: show(text),
        )
        text = answer.outputs[0].text
        self.messages = [*asked, {"role": "assistant", "content": text}]
        self.pictures = []
        return text

    def reset(self) -> None:
        self.messages, self.pictures = [], []


def run_chat(
    model_name: str,
    *,
    images: Sequence[str | Path] = (),
    adapter: str | Path | None = None,
    sampling: SamplingParams,
    load_in_4bit: bool = False,
    ask: str | None = None,
    console: Console | None = None,
) -> None:
    """Load a model and talk with it until the user ends, or answer ``ask`` and return.

    Args:
        model_name: checkpoint or adapter: folder or hub id.
        images: picture files or URLs for the first message.
        adapter: folder of an adapter to put on the model.
        sampling: how answers are drawn.
        load_in_4bit: as in training.
        ask: the only question.
        console: where to print; the standard output if None.

    Raises:
        ValueError: for a picture, a model or an adapter that cannot be read.
    """
    pictures = [load_image(str(image)) for image in images]  # must not wait for the weights
    model, processor = FastVisionModel.from_pretrained(model_name, load_in_4bit=load_in_4bit)
    if adapter is not None:
        model = FastVisionModel.load_adapter(model, adapter)
    conversation = Conversation(model, processor, sampling, pictures=pictures)
    console = console or Console()
    if ask is not None:
        conversation.ask(ask, _printer(console))
        console.print()
        return
    console.print(HELP)
    while _turn(conversation, console):
        pass


def _turn(conversation: Conversation, console: Console) -> bool:
    """One line of the user's; False when it was the last."""
    try:
        line = console.input("> ").strip()
    except (EOFError, KeyboardInterrupt):
        return False
    command, _, rest = line.partition(" ")
    try:
        if command == "/quit":
            return False
        elif command == "/reset":
            conversation.reset()
        elif command == "/image":
            conversation.pictures.append(load_image(rest.strip()))
        elif command.startswith("/"):
            console.print(f"There is no {command}. {HELP}", markup=False)
        elif line:
            conversation.ask(line, _printer(console))
            console.print()
    except KeyboardInterrupt:
        console.print("\n(interrupted; the question is forgotten)")
    except ValueError as error:
        console.print(" ".join(str(error).split()), style="red", markup=False, soft_wrap=True)
    return True


def _printer(console: Console) -> Callable[[str], None]:
    return lambda text: console.print(text, end="", markup=False, highlight=False, soft_wrap=True)
