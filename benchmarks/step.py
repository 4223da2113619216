"""One whole training step at real size with random weights: benchmarks/results/step.json.

    python benchmarks/step.py                                    # Qwen2.5-VL-7B, 4x8, 1024 tokens
    python benchmarks/step.py --policy offload --pass-tokens 8192
    python benchmarks/step.py --policy captured                  # layer inputs from the rollout
    python benchmarks/step.py --peer trl                         # the same through TRL
    python benchmarks/step.py --peer trl-vllm --vllm-memory 0.3
    python benchmarks/step.py --scale tiny --layers 2 --new-tokens 6 --prompts 1 --completions 2

4 prompts of one picture and about 120 letters, 8 completions each of fixed length, GSPO, LoRA of
rank 16 on the decoder, bf16, gradient checkpointing: rollout, rewards, training pass, optimizer.
Each step has other pictures. Of several steps the last one counts, from the end of the one before
it. Then `python benchmarks/tables.py` brings docs/performance.md up to date.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from models import SIZES, build
from record import (
    RESULTS,
    Record,
    origin,
    write_records,
)
from step_workload import (
    NotingMeter,
    StepClock,
    base_dtype,
    last_step,
    run_settings,
    spread_reward,
    step_record,
    step_rows,
)
from train_pass import POLICIES

from foveal.models.allocator import grow_segments
from foveal.rollout import RolloutBackend
from foveal.train.scoring import PASSES
from foveal.types import Group, Prompt, SamplingParams

PEERS = ("trl", "trl-vllm")


def main(argv: Sequence[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else list(argv)
    arguments = parse(argv)
    if arguments.peer is None:
        # As FastVisionModel.from_pretrained does; before the card is asked for its name.
        grow_segments()
    measured = origin("step.py", argv, arguments.commit)
    with tempfile.TemporaryDirectory() as folder:
        if arguments.peer is None:
            system, result = measure(arguments, Path(folder))
        else:
            from step_trl import measure_trl

            system, result = measure_trl(arguments, Path(folder))
    record = {"benchmark": "step", "case": case_name(arguments), "system": system}
    print(f"{record['case']}, {system}: {result}", flush=True)
    write_records(arguments.out, [{**record, **result, **measured}])


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", choices=list(SIZES), default="qwen2.5-vl-7b")
    add("--peer", choices=PEERS, default=None, help="measure another library")
    add("--prompts", type=int, default=4)
    add("--completions", type=int, default=8)
    add("--new-tokens", type=int, default=1024)
    add("--num-steps", type=int, default=3, help="the last one counts")
    add("--training-pass", choices=list(PASSES), default="group")
    add("--policy", default="full", help="checkpointing, as in train_pass.py; not for a peer")
    add("--pass-tokens", type=int, default=None, help="GRPOConfig.pass_tokens; its default")
    add("--pass-rows", type=int, default=8, help="rows of a forward and backward")
    add("--vllm-memory", type=float, default=0.3, help="of the card, for --peer trl-vllm")
    add("--out", type=Path, default=RESULTS / "step.json")
    add("--layers", type=int, default=None, help="of the decoder; all by default")
    add("--scale", choices=("full", "tiny"), default="full", help="tiny: for a try on a CPU")
    add("--commit", default=None, help="what is measured, where there is no git")
    arguments = parser.parse_args(argv)
    if arguments.num_steps < 2:
        parser.error("--num-steps must be at least 2: the first one also warms up")
    own = ("training_pass", "policy", "pass_tokens")
    changed = [name for name in own if getattr(arguments, name) != parser.get_default(name)]
    if arguments.peer and changed:
        parser.error(f"{', '.join(changed)} cannot be set for --peer {arguments.peer}")
    return arguments


def measure(arguments: argparse.Namespace, folder: Path) -> tuple[str, Record]:
    """The step of this library: its name in the table, and what was measured."""
    from foveal import GRPOConfig, GRPOTrainer
    from foveal.models.checkpointing import set_checkpointing

    settings = run_settings(arguments, folder)
    model, processor = build(
        arguments.model,
        device="cuda" if torch.cuda.is_available() else "cpu",
        layers=arguments.layers,
        scale=arguments.scale,
        dtype=base_dtype(),
    )
    set_checkpointing(model, POLICIES.get(arguments.policy, arguments.policy))
    tokens = {} if arguments.pass_tokens is None else {"pass_tokens": arguments.pass_tokens}
    clock = StepClock()
    trainer = GRPOTrainer(
        model=model,
        processing_class=processor,
        reward_funcs=[spread_reward],
        train_dataset=step_rows(arguments),
        args=GRPOConfig(**settings, training_pass=arguments.training_pass, **tokens),
        callbacks=[clock],
    )
    trainer.backend = FixedLength(trainer.backend, _stop_ids(model, processor))
    trainer.meter = NotingMeter(trainer.args.device, clock)
    trainer.train()
    logs = last_step(trainer.state.log_history, arguments)
    result = step_record(clock, arguments) | {
        "breakdown": {k: v for k, v in logs.items() if k.startswith(("time/", "memory/"))},
        "sampling_logp_difference_mean": logs["sampling/sampling_logp_difference/mean"],
        "sampling_logp_difference_max": logs["sampling/sampling_logp_difference/max"],
    }
    if trainer.captured.agreement is not None:
        cosines = result["gradient_cosines"] = trainer.captured.agreement.cosines
        for part, cosine in cosines.items():
            print(f"cosine with full checkpointing, {part}: {cosine:.6f}", flush=True)
    if torch.cuda.is_available():
        result["allocated_gib"] = max(v for k, v in logs.items() if k.startswith("memory/"))
    system = f"foveal, {arguments.training_pass} pass, {arguments.policy}"
    if arguments.pass_tokens is not None:
        system += f", {arguments.pass_tokens} tokens at once"
    return system, result


@dataclass(frozen=True, slots=True)
class FixedLength:
    """A backend whose completions all have the length asked for."""

    backend: RolloutBackend
    stop_ids: tuple[int, ...]

    def generate(
        self, prompts: Sequence[Prompt], n: int, sampling: SamplingParams, on_tokens: Any = None
    ) -> list[Group]:
        """As the backend's, with no end that could be sampled."""
        fixed = replace(sampling, ignore_eos=True, suppress_token_ids=self.stop_ids)
        return self.backend.generate(prompts, n, fixed, on_tokens)

    def standby(self) -> None:
        self.backend.standby()


def case_name(arguments: argparse.Namespace) -> str:
    name = f"{arguments.model}, {arguments.prompts} x {arguments.completions}"
    name += f", {arguments.new_tokens} new tokens"
    if arguments.layers is not None:
        name += f", {arguments.layers} layers"
    return name if arguments.scale == "full" else f"{name}, {arguments.scale}"


def _stop_ids(model: Any, processor: Any) -> tuple[int, ...]:
    from foveal.models.family import stock_model
    from foveal.rollout.transformers_backend import stop_token_ids

    return tuple(stop_token_ids(stock_model(model).generation_config, processor.tokenizer))


if __name__ == "__main__":
    main()
