"""How far rounding moves a gradient, by layer: benchmarks/results/gradients.json.

    python benchmarks/gradients.py                                       # Qwen2.5-VL-7B, random
    python benchmarks/gradients.py --checkpoint warm_vlm --rows warm_vlm/nlvr_second_half.parquet
    python benchmarks/gradients.py --scale tiny --layers 2 --tokens 6 --dtype bfloat16

Completions are sampled by the engine, which keeps what goes into each layer. Then the gradient of
one step (GSPO, advantages from -1.5 to 1.5) is computed four times: in 16 bit with full
checkpointing, in 16 bit from the kept layer inputs (policy "captured"), in 16 bit by the plain pass
through the model's own layers, and in float32. A table has the cosines of each layer's gradient
between two of them.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from models import SIZES, build, build_prompts, size_of, start_adapter
from record import RESULTS, Record, origin, write_records
from torch import Tensor

from foveal import FastVisionModel
from foveal.data import PromptBuilder, load_rows
from foveal.models.checkpointing import set_checkpointing
from foveal.models.family import stock_model
from foveal.models.forward import FeatureCache
from foveal.rl import LossSpec, step_normaliser
from foveal.rollout import Engine
from foveal.train import group_pass, plain_pass
from foveal.train.captured import gradient_cosines, without_layer_inputs
from foveal.train.plain_pass import PassSettings, Row
from foveal.types import Prompt, SamplingParams

Gradients = dict[str, Tensor | None]
PASS_TOKENS = 2048


def main(argv: Sequence[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else list(argv)
    arguments = parse(argv)
    measured = origin("gradients.py", argv, arguments.commit)
    model, processor = subject(arguments)
    rows = sampled_rows(model, processor, arguments)
    tokens = sum(row.num_tokens for row in rows)
    case = f"{name_of(arguments)}, {len(rows)} completions, {tokens} tokens"
    half = arguments.dtype
    full, kept = half_gradients(model, rows)
    stock = gradients(model, without_layer_inputs(rows), plain_pass)
    true = float32_gradients(model, rows)
    pairs = {
        f"full checkpointing, {half}, to float32": (full, true),
        f"captured, {half}, to float32": (kept, true),
        f"plain pass, {half}, to float32": (stock, true),
        f"captured to full checkpointing, both {half}": (kept, full),
    }
    records = []
    for system, (ours, theirs) in pairs.items():
        found = summary(gradient_cosines(model, ours, theirs))
        print(f"{case}: {system}: {found}", flush=True)
        records.append({"benchmark": "gradients", "case": case, "system": system, **found,
                        **measured})  # fmt: skip
    write_records(arguments.out, records)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", choices=list(SIZES), default="qwen2.5-vl-7b")
    add("--checkpoint", type=Path, help="trained weights in the place of --model's random ones")
    add("--rows", type=Path, help="questions for --checkpoint")
    add("--prompts", type=int, default=1)
    add("--completions", type=int, default=4)
    add("--tokens", type=int, default=256, help="of a completion at most")
    add("--dtype", choices=("bfloat16", "float16"), default="bfloat16")
    add("--layers", type=int, default=None, help="of the decoder; all by default")
    add("--scale", choices=("full", "tiny"), default="full", help="tiny: for a try on a CPU")
    add("--out", type=Path, default=RESULTS / "gradients.json")
    add("--commit", default=None, help="what is measured, where there is no git")
    arguments = parser.parse_args(argv)
    if (arguments.checkpoint is None) != (arguments.rows is None):
        parser.error("--checkpoint and --rows go together")
    return arguments


def subject(arguments: argparse.Namespace) -> tuple[Any, Any]:
    """The model in 16 bit, with an adapter that is not zero, and its processor."""
    dtype = getattr(torch, arguments.dtype)
    if arguments.checkpoint is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return build(arguments.model, device=device, layers=arguments.layers, dtype=dtype,
                     scale=arguments.scale)  # fmt: skip
    model, processor = FastVisionModel.from_pretrained(arguments.checkpoint, dtype=dtype)
    adapted = FastVisionModel.get_peft_model(
        model, r=16, lora_alpha=32, finetune_vision_layers=False
    )
    start_adapter(adapted)
    return adapted, processor


def name_of(arguments: argparse.Namespace) -> str:
    if arguments.checkpoint is not None:
        return f"{arguments.checkpoint.absolute().name}, trained"
    name = f"{arguments.model}, random weights"
    if arguments.layers is not None:
        name += f", {arguments.layers} layers"
    return name if arguments.scale == "full" else f"{name}, {arguments.scale}"


def sampled_rows(model: Any, processor: Any, arguments: argparse.Namespace) -> list[Row]:
    """Completions of the engine with their layer inputs, and made-up advantages."""
    count = arguments.completions
    sampling = SamplingParams(
        max_tokens=arguments.tokens, seed=0, ignore_eos=arguments.checkpoint is None
    )
    engine = Engine(model.eval(), processor.tokenizer)
    with engine.keeping_layer_inputs():
        groups = engine.generate(prompts_of(model, processor, arguments), count, sampling)
    engine.standby()
    spread = torch.linspace(-1.5, 1.5, count).tolist()
    return [
        Row(group.prompt, completion, advantage, (True,) * len(completion.ids))
        for group in groups
        for completion, advantage in zip(group.completions, spread, strict=True)
    ]


def prompts_of(model: Any, processor: Any, arguments: argparse.Namespace) -> list[Prompt]:
    if arguments.checkpoint is None:
        size = size_of(arguments.model, arguments.scale)
        return build_prompts(model, processor, size, arguments.prompts)
    rows = load_rows(arguments.rows)
    builder = PromptBuilder(processor, image_token_id=stock_model(model).config.image_token_id)
    return [builder.build(rows[index], index) for index in range(arguments.prompts)]


def half_gradients(model: Any, rows: list[Row]) -> tuple[Gradients, Gradients]:
    """With full checkpointing, and from the kept layer inputs."""
    set_checkpointing(model, "captured")
    return gradients(model, without_layer_inputs(rows)), gradients(model, rows)


def float32_gradients(model: Any, rows: list[Row]) -> Gradients:
    """Of the same weights in float32, whose products are not rounded to TF32."""
    wide = copy.deepcopy(model).float()
    set_checkpointing(wide, True)
    return gradients(wide, without_layer_inputs(rows))


def gradients(model: Any, rows: list[Row], training_pass: Any = group_pass) -> Gradients:
    """Of one optimizer step, by parameter; the model is left without any."""
    spec = LossSpec(importance_level="sequence")
    training_pass.learn(
        model.train(), rows, step_normaliser(spec, [row.num_tokens for row in rows]),
        PassSettings(
            spec=spec, temperature=1.0, rows_at_once=len(rows), tokens_at_once=PASS_TOKENS,
            correct_mismatch=False,  # its weights round, too, and are no part of the passes
        ),
        cache=FeatureCache(), backward=torch.Tensor.backward,
    )  # fmt: skip
    found = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    for parameter in model.parameters():
        parameter.grad = None
    return found


def summary(cosines: dict[str, float]) -> Record:
    part, least = min(cosines.items(), key=lambda item: item[1])
    return {
        "cosine_mean": sum(cosines.values()) / len(cosines),
        "cosine_least": least,
        "least_in": part,
    }


if __name__ == "__main__":
    main()
