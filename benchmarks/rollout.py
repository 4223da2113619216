"""Rollouts of real-size models with random weights: benchmarks/results/rollout.json.

    python benchmarks/rollout.py                                # every model, 4x8 and 16x8
    python benchmarks/rollout.py --model gemma-3-4b --profile
    python benchmarks/rollout.py --system transformers --scale tiny --layers 2 --new-tokens 8

A case P x G is P prompts of one picture and about 120 letters with G completions each, at
temperature 1 and of fixed length. The time is that of one ``generate``, pictures and prompts
included, with nothing kept from earlier calls; it stands beside the time that reading the bytes
would take (floor.py), and its log-probabilities beside the trainer's. Then `python
benchmarks/tables.py` brings docs/performance.md up to date.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from floor import Decoder, copy_bandwidth, decode_bytes
from kernel_time import decode_kernels, grouped, print_kernels
from models import SIZES, Size, build, build_prompts, size_of
from record import (
    GIB,
    RESULTS,
    Record,
    origin,
    write_records,
)

from foveal.rollout import RolloutBackend, TransformersBackend
from foveal.types import Group, Prompt, SamplingParams

WARM_TOKENS = 4
"""New tokens of the first rollout, whose time goes to compiling and capturing."""
LEAK_TOKENS = 4
LOGPROB_ROWS = 32
LOGPROB_TOKENS = 32 * 1024
"""Most rows and tokens whose log-probabilities are compared with the trainer's."""
TRANSFORMERS_ROWS = 32
"""Rows of one call to transformers' generate, which keeps each row's prompt for itself."""

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Case:
    """P prompts with G completions each."""

    prompts: int
    completions: int

    @classmethod
    def parse(cls, text: str) -> Case:
        prompts, _, completions = text.partition("x")
        if not (prompts.isdigit() and completions.isdigit() and int(prompts) * int(completions)):
            raise argparse.ArgumentTypeError(
                f"{text!r} is no case; write prompts x completions, such as 4x8"
            )
        return cls(int(prompts), int(completions))


@dataclass(frozen=True, slots=True)
class Subject:
    """What is measured: a model of some size behind one backend."""

    model: Any
    processor: Any
    backend: RolloutBackend
    size: Size
    device: torch.device
    weight_bytes: int
    """Allocated on the device before the backend was made."""
    bandwidth: float | None
    """Bytes a second; None where it was not measured."""

    def build_prompts(self, count: int, first_seed: int) -> list[Prompt]:
        return build_prompts(self.model, self.processor, self.size, count, first_seed=first_seed)

    def generate(self, prompts: Sequence[Prompt], completions: int, tokens: int) -> list[Group]:
        """A rollout of fixed length.

        Raises:
            RuntimeError: a completion has another length, so times would not compare.
        """
        sampling = SamplingParams(
            max_tokens=tokens,
            ignore_eos=True,
            # A backend that has no fixed length still gives it when it cannot sample an end.
            suppress_token_ids=tuple(self._stop_ids()),
            seed=0,
        )
        groups = self.backend.generate(prompts, completions, sampling)
        lengths = {len(c.ids) for group in groups for c in group.completions}
        if lengths != {tokens}:
            raise RuntimeError(
                f"completions of {min(lengths)} to {max(lengths)} tokens, asked for {tokens} each; "
                "the backend must honour ignore_eos"
            )
        return groups

    def timed(self, call: Callable[[], Result]) -> tuple[Result, float]:
        """What ``call`` returns, and its seconds, the device's work included."""
        self._synchronise()
        start = time.perf_counter()
        result = call()
        self._synchronise()
        return result, time.perf_counter() - start

    def allocated(self) -> int:
        return _allocated(self.device)

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _stop_ids(self) -> list[int]:
        from foveal.models.family import stock_model
        from foveal.rollout.transformers_backend import stop_token_ids

        config = stock_model(self.model).generation_config
        return stop_token_ids(config, self.processor.tokenizer)


def main(argv: Sequence[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else list(argv)
    arguments = parse(argv)
    measured = origin("rollout.py", argv, arguments.commit)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bandwidth = copy_bandwidth(device)
    if bandwidth is None:
        print("this is a CPU: no bandwidth is measured, so no floor", flush=True)
    else:
        print(f"copying moves {bandwidth / 1e12:.2f} TB/s, read and written", flush=True)
    for name in arguments.model:
        for record in measure_model(name, device, bandwidth, arguments):
            write_records(arguments.out, [{**record, **measured}])


def measure_model(
    name: str, device: torch.device, bandwidth: float | None, arguments: argparse.Namespace
) -> Iterator[Record]:
    """One record for each system and case, on weights that are made once."""
    model, processor = build(name, device=device, layers=arguments.layers, scale=arguments.scale)
    weight_bytes = _allocated(device)
    for system in arguments.system:
        subject = Subject(
            model=model,
            processor=processor,
            backend=SYSTEMS[system](model, processor),
            size=size_of(name, arguments.scale),
            device=device,
            weight_bytes=weight_bytes,
            bandwidth=bandwidth,
        )
        for case in arguments.cases:
            label = _case_name(name, case, arguments)
            print(f"{label}, {system}", flush=True)
            result = measure(subject, case, arguments)
            yield {"benchmark": "rollout", "case": label, "system": system, **result}
        # The next system, and the next model, start with nothing of this one's on the device.
        del subject
        _empty_cache(device)
    del model
    _empty_cache(device)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", nargs="+", choices=list(SIZES), default=list(SIZES))
    add("--cases", nargs="+", type=Case.parse, default=[Case(4, 8), Case(16, 8)], metavar="PxG")
    add("--system", nargs="+", choices=list(SYSTEMS), default=["engine"])
    add("--new-tokens", type=int, default=1024)
    add("--out", type=Path, default=RESULTS / "rollout.json")
    add("--layers", type=int, default=None, help="of the decoder; all by default")
    add("--scale", choices=("full", "tiny"), default="full", help="tiny: for a try on a CPU")
    add("--commit", default=None, help="what is measured, where there is no git")
    add("--profile", action="store_true", help="time per kernel in a decode step")
    add("--leak", type=int, default=0, metavar="N", help="N short rollouts must leave no bytes")
    add("--no-logprob-check", dest="logprob_check", action="store_false")
    return parser.parse_args(argv)


def measure(subject: Subject, case: Case, arguments: argparse.Namespace) -> Record:
    """Everything about one case, each part printed when it is known."""
    # Other pictures than in the timed rollout: nothing that a backend keeps can help it.
    others = subject.build_prompts(case.prompts, first_seed=1_000)
    _, capture_seconds = subject.timed(
        lambda: subject.generate(others, case.completions, WARM_TOKENS)
    )
    prompts = subject.build_prompts(case.prompts, first_seed=0)
    groups, result = time_rollout(subject, case, prompts, arguments.new_tokens)
    result["capture_seconds"] = capture_seconds
    _print_result(result)
    if arguments.logprob_check:
        result["logprob_difference"] = difference = compare_logprobs(subject.model, groups)
        print(f"  log-probabilities against the trainer's: {difference}", flush=True)
    if arguments.profile:
        kernels = decode_kernels(
            lambda tokens: subject.generate(others, case.completions, tokens), subject.device
        )
        print_kernels(kernels)
        result["breakdown"]["decode_step_ms"] = grouped(kernels)
    if arguments.leak:
        result["allocated_after_rollouts"] = allocated_after(
            subject, others, case.completions, arguments.leak
        )
    return result


def time_rollout(
    subject: Subject, case: Case, prompts: Sequence[Prompt], new_tokens: int
) -> tuple[list[Group], Record]:
    """One rollout, and what is known about it: time, memory, the backend's own parts, floor."""
    captures = getattr(subject.backend, "captures", None)
    if subject.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(subject.device)
    groups, seconds = subject.timed(lambda: subject.generate(prompts, case.completions, new_tokens))
    floor = floor_seconds(subject, case, prompts, new_tokens)
    result: Record = {
        "seconds": seconds,
        "tokens_per_second": case.prompts * case.completions * new_tokens / seconds,
        "peak_gib": _peak_gib(subject),
        # A backend may tell where its last call spent its time: part -> seconds.
        "breakdown": dict(getattr(subject.backend, "timings", {})),
        "floor_seconds": floor,
        "ratio_to_floor": floor and seconds / floor,
        "bandwidth_bytes_per_second": subject.bandwidth,
        "logprob_difference": None,
    }
    if captures is not None:
        result["captures_while_timed"] = subject.backend.captures - captures  # pyright: ignore
    return groups, result


def floor_seconds(
    subject: Subject, case: Case, prompts: Sequence[Prompt], new_tokens: int
) -> float | None:
    if subject.bandwidth is None:
        return None
    lengths = [len(prompt.ids) for prompt in prompts]
    decoder = Decoder.of(subject.model)
    return decode_bytes(decoder, lengths, case.completions, new_tokens) / subject.bandwidth


def compare_logprobs(model: Any, groups: Sequence[Group]) -> Record:
    """The rollout's log-probabilities against the trainer's definition of them, row by row.

    Returns:
        Mean and largest absolute difference in nats, the number of tokens compared, and the mean
        log-probability itself: near 0 the model is certain, and a small difference says little.
    """
    from foveal.models.forward import FeatureCache, completion_logprobs

    rows = [(group.prompt, completion) for group in groups for completion in group.completions]
    length = len(rows[0][1].ids)
    count = max(1, min(len(rows), LOGPROB_ROWS, LOGPROB_TOKENS // length))
    cache, differences, sampled_sums = FeatureCache(), [], []
    for index in range(count):
        # Spread evenly, so that every group is looked at.
        prompt, completion = rows[index * len(rows) // count]
        with torch.no_grad():
            scored = completion_logprobs(
                model, [prompt], [completion.ids], temperature=1.0, cache=cache
            )
        assert completion.rollout_logprob is not None, "a backend without log-probabilities"
        sampled = torch.tensor(completion.rollout_logprob)
        sampled_sums.append(sampled.sum().item())
        differences.append((scored.logprob_BT[0].float().cpu() - sampled).abs())
    all_differences = torch.cat(differences)
    return {
        "mean": all_differences.mean().item(),
        "max": all_differences.max().item(),
        "tokens": all_differences.numel(),
        "mean_logprob": sum(sampled_sums) / all_differences.numel(),
    }


def allocated_after(
    subject: Subject, prompts: Sequence[Prompt], completions: int, count: int
) -> list[int] | None:
    """Bytes allocated on the device after each of ``count`` short rollouts; None on a CPU."""
    if subject.device.type != "cuda":
        print("  this is a CPU: no leak is looked for", flush=True)
        return None
    allocated = []
    for _ in range(count):
        subject.generate(prompts, completions, LEAK_TOKENS)
        allocated.append(subject.allocated())
    verdict = "no leak" if len(set(allocated)) == 1 else "LEAK"
    print(f"  {verdict}: {allocated} bytes after each of {count} rollouts", flush=True)
    return allocated


def _engine(model: Any, processor: Any) -> RolloutBackend:
    from foveal.rollout.engine import Engine  # pyright: ignore[reportMissingImports]

    return Engine(model, processor.tokenizer)


def _transformers(model: Any, processor: Any) -> RolloutBackend:
    return TransformersBackend(model, processor.tokenizer, max_rows=TRANSFORMERS_ROWS)


SYSTEMS: dict[str, Callable[[Any, Any], RolloutBackend]] = {
    "engine": _engine,
    "transformers": _transformers,
}


def _case_name(model: str, case: Case, arguments: argparse.Namespace) -> str:
    name = f"{model}, {case.prompts} x {case.completions}, {arguments.new_tokens} new tokens"
    if arguments.layers is not None:
        name += f", {arguments.layers} layers"
    return name if arguments.scale == "full" else f"{name}, {arguments.scale}"


def _print_result(result: Record) -> None:
    line = f"  {result['seconds']:.2f} s, {result['tokens_per_second']:.0f} tokens/s"
    if result["peak_gib"] is not None:
        line += f", {result['peak_gib']:.2f} GiB above the weights"
    if result["floor_seconds"] is not None:
        line += f"; floor {result['floor_seconds']:.2f} s, ratio {result['ratio_to_floor']:.2f}"
    print(f"{line}; warm-up {result['capture_seconds']:.1f} s", flush=True)
    if result["breakdown"]:
        parts = ", ".join(f"{part} {spent:.3f}" for part, spent in result["breakdown"].items())
        print(f"  seconds: {parts}", flush=True)
    if result.get("captures_while_timed"):
        print(
            f"  {result['captures_while_timed']} graphs were captured in the timed rollout; the "
            "warm-up should have captured all",
            flush=True,
        )


def _peak_gib(subject: Subject) -> float | None:
    if subject.device.type != "cuda":
        return None
    return (torch.cuda.max_memory_allocated(subject.device) - subject.weight_bytes) / GIB


def _allocated(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def _empty_cache(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
