"""The training pass alone, at real size with random weights: benchmarks/results/train_pass.json.

    python benchmarks/train_pass.py                              # Qwen2.5-VL-7B, 4x8, 1024 tokens
    python benchmarks/train_pass.py --policy none full --ragged --profile
    python benchmarks/train_pass.py --scale tiny --layers 2 --tokens 8 --cases 1x2

A case P x G is P prompts of one picture and about 120 letters with G completions of random token
ids each: one GSPO forward and backward over all of them, the vision tower's features known as
they are after a rollout (their time stands apart). The arithmetic is that of arithmetic.py,
beside the card's rate in a large matrix product. Then `python benchmarks/tables.py` brings
docs/performance.md up to date.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from arithmetic import (
    Products,
    done_flop,
    matrix_rate,
    row_layout,
    shared_layout,
    useful_flop,
    vision_flop,
)
from kernel_time import print_profile, profile_once
from models import SIZES, build, build_prompts, size_of
from record import (
    GIB,
    RESULTS,
    Record,
    origin,
    write_records,
)
from rollout import Case

from foveal.models.checkpointing import set_checkpointing
from foveal.models.family import language_model, stock_model
from foveal.models.forward import FeatureCache
from foveal.models.precision import evaluating
from foveal.rl import step_normaliser
from foveal.train.config import GRPOConfig
from foveal.train.plain_pass import PassSettings, Row
from foveal.train.planning import predicted
from foveal.train.scoring import PASSES, pass_settings
from foveal.types import Completion, Prompt

POLICIES: dict[str, Any] = {"none": False, "full": True}
"""Names here for what ``set_checkpointing`` calls otherwise; other names are its own."""
TFLOP = 1e12


@dataclass(frozen=True, slots=True)
class Subject:
    """A model that is trained on some rows."""

    model: Any
    device: torch.device
    prompts: list[Prompt]
    rows: list[Row]
    settings: PassSettings
    cache: FeatureCache
    system: str
    """Name of the pass in ``foveal.train.scoring.PASSES``."""

    def learn(self) -> None:
        """Forward and backward over all rows, from no gradients."""
        self.model.zero_grad(set_to_none=True)
        lengths = [row.num_tokens for row in self.rows]
        normaliser = step_normaliser(
            self.settings.spec, lengths, generation_tokens=sum(lengths), optimizer_steps=1
        )
        self.model.train()
        loss, _ = PASSES[self.system].learn(
            self.model,
            self.rows,
            normaliser,
            self.settings,
            cache=self.cache,
            backward=torch.Tensor.backward,
        )
        if not loss.isfinite():
            raise RuntimeError(f"the loss is {loss.item()}; times of such a pass mean nothing")

    def encode(self) -> None:
        """Every picture through the tower."""
        self.cache.clear()
        with evaluating(self.model):
            self.cache.get(self.model, [image for p in self.prompts for image in p.images])

    def seconds(self, call: Callable[[], object]) -> float:
        self._synchronise()
        start = time.perf_counter()
        call()
        self._synchronise()
        return time.perf_counter() - start

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def main(argv: Sequence[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else list(argv)
    arguments = parse(argv)
    measured = origin("train_pass.py", argv, arguments.commit)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rate = matrix_rate(device)
    if rate is None:
        print("this is a CPU: no rate is measured, so no share of it", flush=True)
    else:
        print(f"a large matrix product runs at {rate / TFLOP:.0f} TFLOP/s", flush=True)
    failed = []
    for name in arguments.model:
        model, processor = build(
            name,
            device=device,
            layers=arguments.layers,
            scale=arguments.scale,
            # Few CPUs multiply bf16 at any speed.
            dtype=torch.float32 if device.type == "cpu" else torch.bfloat16,
        )
        if not arguments.lora:
            keep_first_adapter(model)
        for case, system, policy in arguments.runs:
            label, full_name = case_name(name, case, arguments), f"{system}, {policy}"
            print(f"{label}: {full_name}", flush=True)
            set_checkpointing(model, POLICIES.get(policy, policy))
            try:
                subject = prepare(name, model, processor, case, system, arguments)
                result = measure(subject, policy, rate, arguments)
            except torch.OutOfMemoryError as error:
                print(f"  out of memory: {error}", flush=True)
                failed.append(f"{label}: {full_name}")
            else:
                record = {"benchmark": "train_pass", "case": label, "system": full_name}
                write_records(arguments.out, [{**record, **result, **measured}])
            subject = None  # rows, features and gradients go before the next case
            model.zero_grad(set_to_none=True)
            _empty_cache(device)
        del model
        _empty_cache(device)
    if failed:
        sys.exit(f"out of memory, not measured: {'; '.join(failed)}")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", nargs="+", choices=list(SIZES), default=["qwen2.5-vl-7b"])
    add("--cases", nargs="+", type=Case.parse, default=[Case(4, 8)], metavar="PxG")
    add("--tokens", type=int, default=1024, help="of each completion")
    add("--ragged", action="store_true", help="completions of half to all of --tokens")
    add("--system", nargs="+", choices=list(PASSES), default=["group"])
    add(
        "--policy",
        nargs="+",
        default=["full"],
        help="checkpointing: none, full, or another that set_checkpointing knows",
    )
    add("--pass-tokens", type=int, default=None, help="GRPOConfig.pass_tokens; its default")
    add("--pass-rows", type=int, default=8, help="rows of a forward and backward")
    add("--repeats", type=int, default=2, help="timed passes; the fastest counts")
    add("--no-lora", dest="lora", action="store_false", help="adapter in the first layer only")
    add("--profile", action="store_true", help="time per kernel")
    add("--out", type=Path, default=RESULTS / "train_pass.json")
    add("--layers", type=int, default=None, help="of the decoder; all by default")
    add("--scale", choices=("full", "tiny"), default="full", help="tiny: for a try on a CPU")
    add("--commit", default=None, help="what is measured, where there is no git")
    arguments = parser.parse_args(argv)
    if arguments.tokens < 2 or arguments.repeats < 1:
        parser.error("--tokens must be at least 2 and --repeats at least 1")
    if "captured" in arguments.policy:
        parser.error("captured needs a rollout: python benchmarks/step.py --policy captured")
    arguments.runs = [
        (case, system, policy)
        for case in arguments.cases
        for system in arguments.system
        for policy in arguments.policy
    ]
    return arguments


def prepare(
    name: str,
    model: Any,
    processor: Any,
    case: Case,
    system: str,
    arguments: argparse.Namespace,
) -> Subject:
    size = size_of(name, arguments.scale)
    prompts = build_prompts(model, processor, size, case.prompts)
    return Subject(
        model=model,
        device=stock_model(model).device,
        prompts=prompts,
        rows=random_rows(model, prompts, case, arguments),
        settings=pass_settings(gspo_config(case, system, arguments)),
        cache=FeatureCache(),
        system=system,
    )


def measure(
    subject: Subject, policy: str, rate: float | None, arguments: argparse.Namespace
) -> Record:
    """Everything about one case, each part printed when it is known."""
    # From no gradients, as each measured pass begins.
    predicted_gib = predicted_peak(subject, policy)
    subject.encode()
    picture_seconds = subject.seconds(subject.encode)
    print(f"  pictures {picture_seconds:.3f} s", flush=True)
    print(f"  first pass {subject.seconds(subject.learn):.2f} s", flush=True)
    seconds, peak_gib = time_passes(subject, arguments.repeats)
    tokens = sum(len(row.completion.ids) for row in subject.rows)
    result: Record = {
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "peak_gib": peak_gib,
        "predicted_gib": predicted_gib,
        **arithmetic(subject, policy, seconds, rate),
        "breakdown": {"pictures": picture_seconds},
    }
    _print_result(result)
    if arguments.profile:
        kernels = profile_once(subject.learn, subject.device)
        result["breakdown"]["kernels"] = print_profile(kernels)
    return result


def predicted_peak(subject: Subject, policy: str) -> float | None:
    """GiB that ``foveal.memory.planner`` expects a pass to allocate; None for the plain one."""
    if subject.system != "group":
        return None
    subject.model.zero_grad(set_to_none=True)
    found = predicted(subject.model, subject.rows, subject.settings, POLICIES.get(policy, policy))
    return found.peak_bytes / GIB


def time_passes(subject: Subject, repeats: int) -> tuple[float, float | None]:
    """Seconds of the fastest pass, and the most GiB that a pass allocated above its start."""
    times, peaks = [], []
    on_gpu = subject.device.type == "cuda"
    for _ in range(repeats):
        subject.model.zero_grad(set_to_none=True)
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(subject.device)
            before = torch.cuda.memory_allocated(subject.device)
        times.append(subject.seconds(subject.learn))
        if on_gpu:
            peaks.append(torch.cuda.max_memory_allocated(subject.device) - before)  # pyright: ignore
    return min(times), max(peaks) / GIB if peaks else None


def arithmetic(subject: Subject, policy: str, seconds: float, rate: float | None) -> Record:
    """Counts of arithmetic.py in TFLOP, and the shares of the card's rate that they make."""
    products = Products.of(subject.model)
    prompts = [len(prompt.ids) for prompt in subject.prompts]
    lengths = [len(row.completion.ids) for row in subject.rows]
    each = len(lengths) // len(prompts)
    groups = [lengths[start : start + each] for start in range(0, len(lengths), each)]
    shared = layout = shared_layout(prompts, groups)
    if subject.system == "plain":
        layout = row_layout(prompts, groups, subject.settings.rows_at_once)
    useful, done = useful_flop(products, shared), done_flop(products, layout, policy)
    return {
        "useful_tflop": useful / TFLOP,
        "done_tflop": None if done is None else done / TFLOP,
        "pictures_tflop": vision_flop(subject.model, subject.prompts) / TFLOP,
        "matrix_tflop_per_second": rate and rate / TFLOP,
        "share_useful": rate and useful / seconds / rate,
        "share_done": None if done is None else rate and done / seconds / rate,
    }


def gspo_config(case: Case, system: Any, arguments: argparse.Namespace) -> GRPOConfig:
    given = {} if arguments.pass_tokens is None else {"pass_tokens": arguments.pass_tokens}
    return GRPOConfig(
        output_dir="runs/train_pass",
        importance_sampling_level="sequence",
        loss_type="grpo",
        epsilon=3e-4,
        epsilon_high=4e-4,
        num_generations=case.completions,
        per_device_train_batch_size=arguments.pass_rows,
        gradient_accumulation_steps=case.completions * case.prompts,
        max_completion_length=arguments.tokens,
        training_pass=system,
        use_cpu=not torch.cuda.is_available(),
        report_to="none",
        **given,
    )


def random_rows(
    model: Any, prompts: Sequence[Prompt], case: Case, arguments: argparse.Namespace
) -> list[Row]:
    """Rows of random ordinary tokens, group by group; no advantage is zero."""
    generator = torch.Generator().manual_seed(0)
    ordinary = torch.tensor(_ordinary_ids(model))
    rows = []
    for prompt in prompts:
        for number, length in enumerate(lengths_of(case.completions, arguments)):
            picks = torch.randint(len(ordinary), (length,), generator=generator)
            size = 0.5 + torch.rand((), generator=generator).item()
            completion = Completion(tuple(ordinary[picks].tolist()), "", "length")
            advantage = size if number % 2 else -size
            rows.append(Row(prompt, completion, advantage, (True,) * length))
    return rows


def lengths_of(completions: int, arguments: argparse.Namespace) -> list[int]:
    """Tokens of each completion of a prompt: all alike, or evenly from half to all."""
    tokens = arguments.tokens
    if not arguments.ragged or completions == 1:
        return [tokens] * completions
    half = tokens // 2
    return [half + (tokens - half) * i // (completions - 1) for i in range(completions)]


def keep_first_adapter(model: Any) -> None:
    """Take the adapter off every layer but the first, which lets gradients pass all layers."""
    from peft.tuners.lora import LoraLayer

    for layer in language_model(model).layers[1:]:
        adapted = [(path, m) for path, m in layer.named_modules() if isinstance(m, LoraLayer)]
        for path, module in adapted:
            layer.set_submodule(path, module.base_layer)


def case_name(model: str, case: Case, arguments: argparse.Namespace) -> str:
    name = f"{model}, {case.prompts} x {case.completions}, {arguments.tokens} tokens"
    if arguments.ragged:
        name += ", ragged"
    if not arguments.lora:
        name += ", no LoRA"
    if arguments.pass_tokens is not None:
        name += f", {arguments.pass_tokens} at once"
    if arguments.layers is not None:
        name += f", {arguments.layers} layers"
    return name if arguments.scale == "full" else f"{name}, {arguments.scale}"


def _ordinary_ids(model: Any) -> list[int]:
    """Token ids that stand for nothing but text."""
    from foveal.models.family import placeholder_ids

    stock = stock_model(model)
    # The special tokens of the byte-level tokenizers follow their 256 bytes; see models.py.
    first = max([300, *placeholder_ids(model)]) + 1
    return list(range(first, stock.config.get_text_config().vocab_size))


def _print_result(result: Record) -> None:
    line = f"  {result['seconds']:.3f} s, {result['tokens_per_second']:.0f} completion tokens/s"
    if result["peak_gib"] is not None:
        line += f", {result['peak_gib']:.2f} GiB above the weights"
    if result["predicted_gib"] is not None:
        line += f" ({result['predicted_gib']:.2f} predicted)"
    print(f"{line}; {result['useful_tflop']:.4g} TFLOP useful", flush=True)
    if result["done_tflop"] is not None:
        print(f"  {result['done_tflop']:.4g} TFLOP done", flush=True)
    for kind in ("useful", "done"):
        if result[f"share_{kind}"] is not None:
            print(f"  {kind}: {result[f'share_{kind}']:.1%} of the matrix rate", flush=True)


def _empty_cache(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
