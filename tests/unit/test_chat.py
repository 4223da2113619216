"""``foveal chat`` on a tiny model: one question, a conversation, and what a wrong line does."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from foveal import FastVisionModel, chat
from foveal.chat import Conversation, run_chat
from foveal.cli import app
from foveal.generate import fast_generate
from foveal.testing import save_tiny, tiny
from foveal.types import SamplingParams
from tests.samples import picture

GREEDY = SamplingParams(max_tokens=8, temperature=0.0)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny"), "qwen2_5_vl")


@pytest.fixture
def photo(tmp_path) -> Path:
    picture(0, 64, 64).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def answer(model, processor, messages) -> str:
    return fast_generate(model, processor, messages, GREEDY)[0].outputs[0].text


def user(text, *pictures):
    parts = [{"type": "image", "image": p} for p in pictures]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


def one_shot(*arguments: object, code: int = 0) -> str:
    line = ["chat", *map(str, arguments), "--temperature", "0", "--max-tokens", "8"]
    result = CliRunner().invoke(app, line)
    assert result.exit_code == code, (result.output, result.exception)
    return result.output


def test_one_question_is_answered_and_the_picture_and_the_adapter_take_part(
    checkpoint, photo, tmp_path
):
    model, processor = FastVisionModel.from_pretrained(checkpoint, device="cpu")
    adapted = FastVisionModel.get_peft_model(model, r=2)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data += 0.5
    adapted.save_pretrained(tmp_path / "adapter")
    with_adapter = answer(adapted, processor, [user("What?", picture(0, 64, 64))])
    with adapted.disable_adapter():
        plain, seen = (
            answer(model, processor, [user("What?", *p)]) for p in ((), (picture(0, 64, 64),))
        )
    assert len({plain, seen, with_adapter}) == 3
    assert one_shot(checkpoint, "--ask", "What?").endswith(f"{plain}\n")
    assert one_shot(checkpoint, "--ask", "What?", "--image", photo).endswith(f"{seen}\n")
    options = ["--ask", "What?", "--image", photo, "--adapter", tmp_path / "adapter"]
    assert one_shot(checkpoint, *options).endswith(f"{with_adapter}\n")


def test_a_missing_picture_is_one_line_and_no_model_is_loaded_for_it(checkpoint, monkeypatch):
    monkeypatch.setattr(FastVisionModel, "from_pretrained", None)
    shown = one_shot(checkpoint, "--ask", "What?", "--image", "no/such.png", code=2)
    assert len(shown.splitlines()) == 1 and "no/such.png" in shown


def test_a_wrong_setting_or_adapter_is_one_line(checkpoint, tmp_path):
    line = ["chat", str(checkpoint), "--ask", "?", "--max-tokens", "0"]
    shown = CliRunner().invoke(app, line)
    assert shown.exit_code == 2 and "max_tokens is 0" in shown.output
    shown = one_shot(checkpoint, "--ask", "?", "--adapter", tmp_path, code=2)
    assert "no adapter_config.json" in shown.splitlines()[-1]


def talk(monkeypatch, checkpoint, *lines: str, **options) -> tuple[str, list]:
    """What is printed, and the messages of each question."""
    asked = []

    def noted(model, processor, messages, *rest, **more):
        asked.append(messages)
        return fast_generate(model, processor, messages, *rest, **more)

    monkeypatch.setattr(chat, "fast_generate", noted)
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    console = Console(file=io.StringIO())
    run_chat(str(checkpoint), sampling=GREEDY, console=console, **options)
    return console.file.getvalue(), asked


def shape(messages: list) -> list[str]:
    return [
        message["role"][0] + "i" * sum(part["type"] == "image" for part in message["content"])
        if isinstance(message["content"], list)
        else message["role"][0]
        for message in messages
    ]


def test_a_conversation_remembers_what_was_said_and_shown(checkpoint, photo, monkeypatch):
    lines = ["", "One?", f"/image {photo}", f"/image {photo}", "Two?", "/reset", "Three?", "/quit"]
    shown, asked = talk(monkeypatch, checkpoint, *lines, "Four?", images=[photo])
    assert [shape(messages) for messages in asked] == [["ui"], ["ui", "a", "uii"], ["u"]]
    model, processor = FastVisionModel.from_pretrained(checkpoint, device="cpu")
    for messages in asked:
        assert answer(model, processor, messages) in shown
    assert asked[1][1]["content"] == answer(model, processor, asked[0])


def test_a_wrong_line_says_so_and_the_conversation_goes_on(checkpoint, monkeypatch):
    lines = ["/image no/such.png", "/imagine", "Is <image> here?", "And [red]this?", "So?"]
    shown, asked = talk(monkeypatch, checkpoint, *lines)
    assert "no/such.png" in shown and "There is no /imagine" in shown
    assert "1 <image> marker" in shown
    assert [shape(messages) for messages in asked] == [["u"], ["u"], ["u", "a", "u"]]


def test_an_interrupted_question_is_forgotten(monkeypatch):
    model, processor = tiny("qwen2_5_vl")
    conversation = Conversation(model, processor, GREEDY, pictures=[picture(0, 64, 64)])

    def interrupt(text):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        conversation.ask("What?", interrupt)
    assert conversation.messages == [] and len(conversation.pictures) == 1
    assert conversation.ask("What?", lambda text: None) == conversation.messages[1]["content"]
    assert conversation.pictures == []


def test_the_answer_is_printed_as_it_comes():
    pieces = []
    Conversation(*tiny("qwen2_5_vl"), GREEDY).ask("What?", pieces.append)
    assert len(pieces) > 1


def test_help_of_chat_loads_no_torch():
    script = "import sys, foveal.cli; foveal.SamplingParams; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr
