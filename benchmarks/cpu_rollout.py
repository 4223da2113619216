"""Rollouts on a CPU, the engine beside transformers' generate: benchmarks/results/cpu_rollout.json.

    python benchmarks/cpu_rollout.py                      # tiny models and the demo's, one thread
    python benchmarks/cpu_rollout.py --threads 1 2 --case demo

Each case is one ``generate`` of fixed length at temperature 1, pictures and prompts included, with
nothing kept from the call before. The systems take turns, and the best of several calls counts.
The time is that of the process over all its threads, which other programs on the machine disturb
less than they do the clock; the clock's is noted too. Then `python benchmarks/tables.py` brings
docs/performance.md up to date.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from record import RESULTS, Record, command_line, commit, installed_versions, write_records

from foveal.rollout import TransformersBackend
from foveal.rollout.engine import Engine
from foveal.testing import TINY_FAMILIES, tiny
from foveal.types import Prompt, SamplingParams

COMPLETIONS = 8


@dataclass(frozen=True, slots=True)
class Subject:
    """A model and what it is asked."""

    model: Any
    processor: Any
    prompts: list[Prompt]
    tokens: int
    """Of each completion."""


def main(argv: Sequence[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else list(argv)
    arguments = parse(argv)
    origin = {
        "card": f"CPU ({os.cpu_count()} cores)",
        "versions": installed_versions(),
        "commit": commit(arguments.commit),
        "command": command_line("cpu_rollout.py", argv),
    }
    for name in arguments.case:
        subject = CASES[name]()
        for threads in arguments.threads:
            torch.set_num_threads(threads)
            for record in measure(name, subject, threads, arguments.repeats):
                print(f"{record['case']}, {record['system']}: {record['process_seconds']:.3f} s of "
                      f"the process, {record['seconds']:.3f} s", flush=True)  # fmt: skip
                write_records(arguments.out, [{**record, **origin}])


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--case", nargs="+", choices=list(CASES), default=list(CASES))
    add("--threads", type=int, nargs="+", default=[1])
    add("--repeats", type=int, default=3)
    add("--out", type=Path, default=RESULTS / "cpu_rollout.json")
    add("--commit", default=None, help="what is measured, where there is no git")
    return parser.parse_args(argv)


def measure(name: str, subject: Subject, threads: int, repeats: int) -> list[Record]:
    """A record for each system: the best of ``repeats`` calls after one that warms up."""
    engine = Engine(subject.model, subject.processor.tokenizer)
    stock = TransformersBackend(subject.model, subject.processor.tokenizer)
    times: dict[str, list[tuple[float, float]]] = {"engine": [], "transformers": []}
    for _ in range(1 + repeats):
        # Free the cache: prompts known from the call before would be a head start.
        engine.standby()
        engine.features.clear()
        times["engine"].append(timed(engine, subject))
        times["transformers"].append(timed(stock, subject))
    best = {system: min(found[1:]) for system, found in times.items()}
    tokens = len(subject.prompts) * COMPLETIONS * subject.tokens
    plural = "s" if threads > 1 else ""
    return [
        {
            "benchmark": "cpu_rollout",
            "case": f"{name}, {len(subject.prompts)} x {COMPLETIONS}, {subject.tokens} tokens, "
            f"{threads} thread{plural}",
            "system": system,
            "process_seconds": process_seconds,
            "seconds": seconds,
            "tokens_per_second": tokens / process_seconds,
            "times_transformers": best["transformers"][0] / process_seconds,
            "threads": threads,
            "load": os.getloadavg()[0],
        }
        for system, (process_seconds, seconds) in best.items()
    ]


def timed(backend: Any, subject: Subject) -> tuple[float, float]:
    """Seconds of the process and of the clock for one rollout.

    Raises:
        RuntimeError: if a completion has another length than was asked for.
    """
    sampling = SamplingParams(max_tokens=subject.tokens, ignore_eos=True, seed=0)
    clock, process = time.perf_counter(), time.process_time()
    groups = backend.generate(subject.prompts, COMPLETIONS, sampling)
    times = time.process_time() - process, time.perf_counter() - clock
    lengths = {len(c.ids) for group in groups for c in group.completions}
    if lengths != {subject.tokens}:
        raise RuntimeError(
            f"completions have {sorted(lengths)} tokens, asked for {subject.tokens} each; the "
            "backend must honour ignore_eos"
        )
    return times


def tiny_subject(family: str) -> Subject:
    """Three short questions about pictures of noise to a random tiny model."""
    model, processor = tiny(family)
    return Subject(model, processor, _prompts(model, processor, _noise_rows(3)), 60)


def demo_subject() -> Subject:
    """Eight questions of the demo's task to its model with the demo's adapter."""
    from foveal import FastVisionModel
    from foveal.demo import DemoSettings, demo_model_folder
    from foveal.tasks import dataset

    settings = DemoSettings()
    model, processor = FastVisionModel.from_pretrained(str(demo_model_folder()), device="cpu")
    model = FastVisionModel.get_peft_model(
        model,
        r=settings.lora_rank,
        lora_alpha=2 * settings.lora_rank,
        finetune_vision_layers=False,
        use_gradient_checkpointing=False,
        random_state=0,
    )
    rows = dataset("shapes", 8, seed=99, difficulty=settings.difficulty)
    prompts = _prompts(model, processor, rows)
    return Subject(model, processor, prompts, settings.max_completion_length)


def _noise_rows(count: int) -> list[dict[str, Any]]:
    import numpy as np
    from PIL import Image

    rows = []
    for row in range(count):
        pixels = np.random.default_rng(row).integers(0, 256, (70, 90, 3), dtype=np.uint8)
        text = "<image>" + "How many red things are there? " * (1 + row)
        rows.append({"problem": text, "images": [Image.fromarray(pixels)], "answer": "3"})
    return rows


def _prompts(model: Any, processor: Any, rows: Any) -> list[Prompt]:
    from foveal.data import PromptBuilder, load_rows
    from foveal.models.family import stock_model

    loaded = load_rows(rows)
    builder = PromptBuilder(processor, image_token_id=stock_model(model).config.image_token_id)
    return [builder.build(loaded[index], index) for index in range(len(rows))]


CASES: dict[str, Callable[[], Subject]] = {
    **{f"tiny {family}": lambda family=family: tiny_subject(family) for family in TINY_FAMILIES},
    "demo": demo_subject,
}


if __name__ == "__main__":
    main()
