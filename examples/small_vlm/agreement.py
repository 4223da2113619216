"""How far the rollout's log-probabilities are from the trainer's, on text that a model means.

    python examples/small_vlm/agreement.py --model small_vlm --float32-reference
    python examples/small_vlm/agreement.py --model small_vlm --prompts 2 --max-tokens 8   # a try

The engine answers everyday questions, every second one beside a picture, at temperature 1 and with
an adapter of random values; then the trainer scores the tokens that were sampled. Random weights
would say little here: they make every token about as likely as any other, or certain. A float32
copy of the model tells which of the two is closer to the truth. The record goes to
benchmarks/results/agreement.json.
"""

from __future__ import annotations

import argparse
import random
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "benchmarks"))

from record import (  # pyright: ignore[reportMissingImports]  # noqa: E402
    RESULTS,
    Record,
    card,
    commit,
    installed_versions,
    write_records,
)

from foveal import FastVisionModel  # noqa: E402
from foveal.types import Group, Prompt, SamplingParams  # noqa: E402

QUESTIONS = (
    "What is the capital of France, and what is it known for?",
    "What might somebody notice first here?",
    "How do I make a simple vegetable soup?",
    "Describe what you see in a few sentences.",
    "Why is the sky blue during the day and red in the evening?",
    "Which colours stand out, and what do they remind you of?",
    "Can you suggest three ways to fall asleep more easily?",
    "Write a short story about this.",
    "What should I pack for a week of walking in the mountains?",
    "If this were a flag, what would its country be like?",
    "Explain how a bicycle stays upright.",
    "Give this a title and explain your choice.",
    "Write a short letter that thanks a neighbour for watering the plants.",
    "How would you explain this to somebody on the telephone?",
    "What is the difference between weather and climate?",
    "What is there more of, bright parts or dark ones?",
    "How does a refrigerator keep food cold?",
    "Make up a riddle about the thing in the middle.",
    "Tell me about an animal that lives in the deep sea.",
    "What could be done to make this look more cheerful?",
    "What are some good games for a long journey by train?",
    "Where in a house would you hang this, and why?",
    "How can I remember the names of new people better?",
    "Write a poem of four lines about these shapes.",
    "What happens to bread dough while it rises?",
    "What kind of music goes with this?",
    "Why do leaves change colour in autumn?",
    "Invent a game that is played on a board like this.",
    "How do I politely decline an invitation?",
    "List five words that come to mind.",
    "What did people use before there were clocks?",
    "Compare this with a window on a rainy day.",
)
"""The second of each pair goes with a picture."""
SIZES_PX = (112, 168, 224)
LORA_RANK = 16
LORA_SPREAD = 0.01
"""Standard deviation of the adapter's B, which starts at zero otherwise."""


def main(argv: Sequence[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else list(argv)
    arguments = parse(argv)
    origin = {
        "card": card(),
        "versions": installed_versions(),
        "commit": commit(arguments.commit),
        "command": shlex.join(["python", "examples/small_vlm/agreement.py", *argv]),
    }
    model, processor = load(arguments.model, arguments.dtype, arguments.seed)
    prompts = build_prompts(model, processor, arguments.prompts)
    groups = sample(model, processor, prompts, arguments)
    result = measure(model, groups)
    if arguments.float32_reference:
        result["against_float32"] = measure_float32(model, groups, arguments)
    report(result)
    case = (
        f"{arguments.model.resolve().name}, {arguments.prompts} x {arguments.completions}, "
        f"up to {arguments.max_tokens} new tokens, {result['dtype']}"
    )
    name = {"benchmark": "agreement", "case": case, "system": "engine"}
    write_records(arguments.out, [{**name, **result, **origin}])


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", type=Path, required=True, help="folder of a checkpoint")
    add("--prompts", type=int, default=len(QUESTIONS), choices=range(1, len(QUESTIONS) + 1))
    add("--completions", type=int, default=8, help="of each prompt")
    add("--max-tokens", type=int, default=128, help="of a completion")
    add("--dtype", choices=("bfloat16", "float16", "float32"), default=None)
    add("--float32-reference", action="store_true", help="score with a float32 copy as well")
    add("--seed", type=int, default=0, help="of the adapter and of sampling")
    add("--out", type=Path, default=RESULTS / "agreement.json")
    add("--commit", default=None, help="what is measured, where there is no git")
    return parser.parse_args(argv)


def load(folder: Path, dtype: str | None, seed: int) -> tuple[Any, Any]:
    """A model with an adapter of random values on its decoder, and its processor."""
    stock, processor = FastVisionModel.from_pretrained(folder, dtype=dtype)
    model = FastVisionModel.get_peft_model(
        stock, r=LORA_RANK, lora_alpha=2 * LORA_RANK, finetune_vision_layers=False
    )
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=LORA_SPREAD)
    return model.eval(), processor


def build_prompts(model: Any, processor: Any, count: int) -> list[Prompt]:
    """The first ``count`` questions, every second with a picture of its own."""
    from foveal.data import PromptBuilder, load_rows
    from foveal.models.family import stock_model

    builder = PromptBuilder(processor, image_token_id=stock_model(model).config.image_token_id)
    rows = load_rows(
        [
            {"problem": f"<image>{text}", "images": [picture(index)], "answer": ""}
            if index % 2
            else {"problem": text, "images": [], "answer": ""}
            for index, text in enumerate(QUESTIONS[:count])
        ]
    )
    return [builder.build(rows[index], index) for index in range(count)]


def picture(seed: int) -> Any:
    """Some coloured shapes on a plain ground, of one of three sizes."""
    from PIL import Image, ImageDraw

    dice = random.Random(seed)
    size = dice.choice(SIZES_PX)

    def colour() -> tuple[int, int, int]:
        return dice.randrange(256), dice.randrange(256), dice.randrange(256)

    image = Image.new("RGB", (size, size), colour())
    draw = ImageDraw.Draw(image)
    for _ in range(dice.randint(3, 8)):
        left, top = dice.randrange(size), dice.randrange(size)
        box = (left, top, left + dice.randint(8, size // 2), top + dice.randint(8, size // 2))
        shape = dice.choice((draw.ellipse, draw.rectangle))
        shape(box, fill=colour())
    return image


def sample(
    model: Any, processor: Any, prompts: Sequence[Prompt], arguments: argparse.Namespace
) -> list[Group]:
    from foveal.rollout.engine import Engine

    sampling = SamplingParams(max_tokens=arguments.max_tokens, seed=arguments.seed)
    engine = Engine(model, processor.tokenizer)
    groups = engine.generate(prompts, arguments.completions, sampling)
    tokens = sum(len(c.ids) for group in groups for c in group.completions)
    print(f"sampled {tokens:,} tokens in {len(groups)} x {arguments.completions}", flush=True)
    return groups


def measure(model: Any, groups: Sequence[Group]) -> Record:
    from foveal.models.family import stock_model

    stock = stock_model(model)
    rollout_N, trainer_N = rollout_logprobs(groups), trainer_logprobs(model, groups)
    pictures_N = torch.tensor(
        [bool(g.prompt.images) for g in groups for c in g.completions for _ in c.ids]
    )
    kinds = {"text alone": ~pictures_N, "beside pictures": pictures_N}
    return {
        "logprob_difference": described(rollout_N, trainer_N),
        "by_prompt": {
            name: described(rollout_N[kind_N], trainer_N[kind_N])
            for name, kind_N in kinds.items()
            if kind_N.any()
        },
        "against_float32": None,
        "dtype": str(stock.dtype).removeprefix("torch."),
        "device": stock.device.type,
    }


def measure_float32(
    model: Any, groups: Sequence[Group], arguments: argparse.Namespace
) -> dict[str, Record]:
    """Rollout and trainer against a float32 copy of the model, adapter included."""
    # Convolutions would round to 10 bits of mantissa on a GPU.
    torch.backends.cudnn.allow_tf32 = False
    reference, _ = load(arguments.model, "float32", arguments.seed)
    # The very weights that sampled, which their type may have rounded.
    reference.load_state_dict(model.state_dict())
    reference_N = trainer_logprobs(reference, groups)
    return {
        "rollout": difference(rollout_logprobs(groups), reference_N),
        "trainer": difference(trainer_logprobs(model, groups), reference_N),
    }


def rollout_logprobs(groups: Sequence[Group]) -> Tensor:
    """Log-probabilities ``[N]`` of all tokens as they were sampled, on the CPU."""
    logprobs = [c.rollout_logprob for group in groups for c in group.completions]
    assert None not in logprobs, "an engine without log-probabilities"
    return torch.tensor([value for row in logprobs for value in row or ()])


def trainer_logprobs(model: Any, groups: Sequence[Group]) -> Tensor:
    """The same tokens, ``[N]``, by the trainer's definition, one group at a time."""
    from foveal.models.forward import FeatureCache, completion_logprobs

    cache, scored = FeatureCache(), []
    for group in groups:
        ids = [completion.ids for completion in group.completions]
        with torch.no_grad():
            rows = completion_logprobs(
                model, [group.prompt] * len(ids), ids, temperature=1.0, cache=cache
            )
        scored.append(rows.logprob_BT[rows.mask_BT].float().cpu())
    return torch.cat(scored)


def described(rollout_N: Tensor, trainer_N: Tensor) -> Record:
    """Their difference, the number of tokens, and the mean log-probability itself."""
    return {
        **difference(rollout_N, trainer_N),
        "tokens": len(rollout_N),
        "mean_logprob": rollout_N.mean().item(),
    }


def difference(first_N: Tensor, second_N: Tensor) -> Record:
    """Mean and largest absolute difference, in nats."""
    difference_N = (first_N - second_N).abs()
    return {"mean": difference_N.mean().item(), "max": difference_N.max().item()}


def report(result: Record) -> None:
    found = result["logprob_difference"]
    print(
        f"{found['tokens']:,} tokens in {result['dtype']} on {result['device']}, mean "
        f"log-probability {found['mean_logprob']:.3f}"
    )
    lines = {"rollout against trainer": found}
    for name, value in result["by_prompt"].items():
        lines[f"{name}, mean log-probability {value['mean_logprob']:.3f}"] = value
    for name, value in (result["against_float32"] or {}).items():
        lines[f"{name} against float32"] = value
    for name, value in lines.items():
        print(f"  {name}: mean {value['mean']:.2e}, max {value['max']:.2e}")


if __name__ == "__main__":
    main()
