"""The commands that measure and train nothing: ``foveal eval`` and ``foveal data ...``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from foveal.data import RowSource

TASK = "task:"
TASK_ROWS = 200
"""Rows of each difficulty that are made of a task unless the user says how many."""
BACKENDS = ("engine", "transformers")

DataOption = Annotated[
    str | None,
    typer.Option(help="File, folder or hub id; or task:NAME, made now.", show_default=False),
]
RowsOption = Annotated[
    int | None,
    typer.Option(help=f"Only the first so many; of a task, of each difficulty ({TASK_ROWS})."),
]
SplitOption = Annotated[str | None, typer.Option(help='Such as "validation", "train[:100]".')]
DifficultyOption = Annotated[
    list[int] | None, typer.Option(help="Of a task; several times for several.")
]


def evaluate(
    model: Annotated[
        str | None,
        typer.Argument(help="Checkpoint or adapter: folder or hub id.", show_default=False),
    ] = None,
    data: DataOption = None,
    reward: Annotated[
        list[str] | None,
        typer.Option(
            help="Name of a reward; several times for several, the first says what is "
            "right. A task brings its own."
        ),
    ] = None,
    samples: Annotated[int, typer.Option(help="Answers to each question.")] = 1,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    max_tokens: Annotated[int, typer.Option(help="Of an answer.")] = 512,
    k: Annotated[
        list[int] | None, typer.Option("--k", help="Of pass@k; 1, 2, 4, .. unless given.")
    ] = None,
    right_from: Annotated[
        float, typer.Option(help="The first reward from which an answer is right.")
    ] = 1.0,
    rows: RowsOption = None,
    split: SplitOption = None,
    difficulty: DifficultyOption = None,
    task_seed: Annotated[int, typer.Option(help="Of a task's rows.")] = 0,
    backend: Annotated[
        str, typer.Option(help="Where answers come from: " + ", ".join(BACKENDS))
    ] = "engine",
    batch_size: Annotated[int, typer.Option(help="Questions answered at once.")] = 32,
    seed: Annotated[int, typer.Option(help="Of the sampling.")] = 0,
    load_in_4bit: Annotated[bool, typer.Option("--load-in-4bit", help="As in training.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Write every answer and the summary to this JSON file.")
    ] = None,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(help="Two results to put side by side; no model is run.", metavar="A B"),
    ] = None,
) -> None:
    """Answer every row of a data set: pass@k, majority, rewards; or compare two results."""
    if compare is not None:
        if model is not None or data is not None:
            raise ValueError("--compare runs no model; leave MODEL and --data out")
        _compare(*compare, out)
        return
    if model is None or data is None:
        raise ValueError("give MODEL and --data, or two results after --compare")
    _check_numbers(samples, temperature, k, backend)
    ready = _open(data, rows=rows, split=split, difficulty=difficulty, seed=task_seed)
    functions = _rewards(reward, data, ready)
    settings: dict[str, Any] = {"model": model, "data": data, "rows": len(ready), "split": split}
    settings |= {"samples": samples, "temperature": temperature, "max_tokens": max_tokens}
    settings |= {"seed": seed, "batch_size": batch_size, "backend": backend}
    settings |= {"load_in_4bit": load_in_4bit}
    if data.startswith(TASK):
        settings |= {"difficulty": difficulty, "task_seed": task_seed}
    _run(settings, ready, functions, k, right_from, out)


def _run(
    settings: dict[str, Any],
    ready: RowSource,
    functions: list[Any],
    ks: list[int] | None,
    right_from: float,
    out: Path | None,
) -> None:
    from foveal.eval_result import write_result
    from foveal.evaluate import evaluate as evaluate_model
    from foveal.fast_model import FastVisionModel
    from foveal.report import versions
    from foveal.report.evaluation import result_table

    policy, processor = FastVisionModel.from_pretrained(
        settings["model"], load_in_4bit=settings["load_in_4bit"]
    )
    evaluation = evaluate_model(
        policy,
        processor,
        ready,
        functions,
        num_generations=settings["samples"],
        temperature=settings["temperature"],
        max_completion_length=settings["max_tokens"],
        batch_size=settings["batch_size"],
        seed=settings["seed"],
        backend=_backend(settings["backend"], policy, processor),
        show_progress=True,
    )
    result = evaluation.result(settings, versions(), right_from)
    summary = result.summary(ks)
    Console().print(result_table(summary, f"{settings['model']} on {ready.name}"))
    if out is not None:
        write_result(out, result, summary)


def _compare(first: Path, second: Path, out: Path | None) -> None:
    from foveal.eval_result import compare, read_result, write_json
    from foveal.report.evaluation import comparison_table

    comparison = compare(read_result(first), read_result(second))
    console = Console()
    for name, (one, other) in comparison.differing.items():
        said = f"{name} is {one} in the first and {other} in the second"
        console.print(Text(f"warning: {said}", style="yellow"), soft_wrap=True)
    console.print(comparison_table(comparison, str(first), str(second)))
    if out is not None:
        write_json(out, {"first": str(first), "second": str(second), **asdict(comparison)})


def _check_numbers(samples: int, temperature: float, ks: list[int] | None, backend: str) -> None:
    if samples < 1 or (samples > 1 and temperature == 0):
        raise ValueError(
            f"--samples is {samples} at --temperature {temperature:g}; give at least 1, and a "
            "temperature above 0 for more than 1, because greedy answers are all the same"
        )
    if wrong := [k for k in ks or () if not 1 <= k <= samples]:
        raise ValueError(f"--k is {wrong[0]}; it must lie in 1 to --samples, which is {samples}")
    if backend not in BACKENDS:
        raise ValueError(f"--backend is {backend!r}; choose one of {', '.join(BACKENDS)}")


def _rewards(names: list[str] | None, data: str, ready: RowSource) -> list[Any]:
    """The reward functions, shown all rows and the columns of the first."""
    from foveal.inspection import check_rows
    from foveal.rewards import RewardCaller, resolve
    from foveal.tasks import get_task

    if not names and not data.startswith(TASK):
        raise ValueError("--reward is missing; name one, such as --reward exact_answer")
    own = [] if names else [get_task(data.removeprefix(TASK)).reward]
    functions = [resolve(name) for name in names or ()] or own
    check_rows(ready, functions)
    RewardCaller(functions).check_columns(ready[0].columns)
    return functions


def _backend(name: str, model: Any, processor: Any) -> Any:
    from foveal.rollout import TransformersBackend

    return TransformersBackend(model, processor.tokenizer) if name == "transformers" else None


def _open(
    data: str,
    *,
    rows: int | None,
    split: str | None,
    difficulty: list[int] | None = None,
    seed: int = 0,
) -> RowSource:
    """Rows of a file, or of a task."""
    from foveal.data import load_rows

    if rows is not None and rows < 1:
        raise ValueError(f"--rows is {rows}; it must be at least 1")
    if data.startswith(TASK):
        if split is not None:
            raise ValueError(f"--split is {split!r}, and a task has no splits; leave it out")
        return _task_rows(data.removeprefix(TASK), rows or TASK_ROWS, difficulty, seed)
    if difficulty:
        raise ValueError("--difficulty is for task:NAME; rows of a file are as they are")
    source = load_rows(data, split)
    return source if rows is None else replace(source, rows=_Head(source.rows, rows))


def _task_rows(name: str, count: int, difficulty: list[int] | None, seed: int) -> RowSource:
    from foveal.data import load_rows
    from foveal.tasks import dataset

    levels: list[dict[str, int]] = [{"difficulty": level} for level in difficulty or ()]
    made = [row for level in levels or [{}] for row in dataset(name, count, seed, **level)]
    return replace(load_rows(made), name=f"{TASK}{name}")


@dataclass(frozen=True, slots=True)
class _Head:
    """The first rows of a sequence of rows."""

    rows: Any
    most: int

    def __len__(self) -> int:
        return min(self.most, len(self.rows))

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        if index >= len(self):
            raise IndexError(index)
        return self.rows[index]


data_app = typer.Typer(help="Look at data before training on it.", no_args_is_help=True)


@data_app.callback()
def data_commands() -> None:
    """Look at data before training on it."""


@data_app.command("inspect")
def inspect(
    data: Annotated[str, typer.Argument(help="File, folder or hub id; or task:NAME.")],
    split: SplitOption = None,
    rows: RowsOption = None,
    difficulty: DifficultyOption = None,
    model: Annotated[
        str | None, typer.Option(help="Count tokens with this checkpoint's processor.")
    ] = None,
    max_prompt_length: Annotated[
        int | None, typer.Option(help="As in training: which prompts have more tokens?")
    ] = None,
    page: Annotated[
        Path | None, typer.Option(help="Write an HTML page with pictures of some rows.")
    ] = None,
    show_all: Annotated[bool, typer.Option("--all", help="Show every finding.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings fail as well.")] = False,
) -> None:
    """Show what a data set holds and what training would stumble over; exit code 1 if it would."""
    from foveal.inspection import inspect_rows
    from foveal.report.inspection import (
        evenly,
        facts_table,
        findings_table,
        sample_table,
        write_page,
    )

    if max_prompt_length is not None and model is None:
        raise ValueError("--max-prompt-length counts tokens; name a checkpoint with --model too")
    source = _open(data, rows=rows, split=split, difficulty=difficulty)
    builder = None if model is None else _prompt_builder(model, max_prompt_length)
    seen = inspect_rows(source, builder, show_progress=True)
    console = Console()
    console.print(facts_table(seen))
    console.print(sample_table(source, evenly(seen.rows, 3)))
    if seen.findings:
        console.print(findings_table(seen, limit=None if show_all else 20))
    if page is not None:
        write_page(page, seen, source)
        console.print(Text(f"Page: {page}"), soft_wrap=True)
    if seen.would_fail or (strict and seen.findings):
        raise typer.Exit(1)


@data_app.command("filter")
def filter_rows(
    data: Annotated[str, typer.Argument(help="File, folder or hub id; or task:NAME.")],
    model: Annotated[str, typer.Option(help="Checkpoint or adapter: the policy to be trained.")],
    out: Annotated[Path, typer.Option(help="The .parquet or .jsonl file to write.")],
    reward: Annotated[
        list[str] | None, typer.Option(help="As in eval; the first says what is right.")
    ] = None,
    n: Annotated[int, typer.Option("--n", help="Answers to each question.")] = 8,
    above: Annotated[float, typer.Option(help="Keep pass rates above this one.")] = 0.0,
    below: Annotated[float, typer.Option(help="Keep pass rates below this one.")] = 1.0,
    temperature: Annotated[float, typer.Option(help="That of the training to come.")] = 1.0,
    max_tokens: Annotated[int, typer.Option(help="Of an answer.")] = 512,
    right_from: Annotated[
        float, typer.Option(help="The first reward from which an answer is right.")
    ] = 1.0,
    rows: RowsOption = None,
    split: SplitOption = None,
    difficulty: DifficultyOption = None,
    task_seed: Annotated[int, typer.Option(help="Of a task's rows.")] = 0,
    backend: Annotated[
        str, typer.Option(help="Where answers come from: " + ", ".join(BACKENDS))
    ] = "engine",
    batch_size: Annotated[int, typer.Option(help="Questions answered at once.")] = 32,
    seed: Annotated[int, typer.Option(help="Of the sampling.")] = 0,
    load_in_4bit: Annotated[bool, typer.Option("--load-in-4bit", help="As in training.")] = False,
) -> None:
    """Keep the rows that a model solves sometimes, with their pass rate in a column."""
    _check_numbers(n, temperature, None, backend)
    if out.suffix.lower() not in (".parquet", ".jsonl"):
        raise ValueError(f"--out is {out}; name a .parquet or a .jsonl file")
    if not 0 <= above < below <= 1:
        raise ValueError(f"--above is {above} and --below {below}; give 0 <= above < below <= 1")
    ready = _open(data, rows=rows, split=split, difficulty=difficulty, seed=task_seed)
    functions = _rewards(reward, data, ready)
    from foveal.fast_model import FastVisionModel
    from foveal.filtering import measure_rows, write_kept

    policy, processor = FastVisionModel.from_pretrained(model, load_in_4bit=load_in_4bit)
    found = measure_rows(
        policy,
        processor,
        ready,
        functions,
        n=n,
        above=above,
        below=below,
        right_from=right_from,
        temperature=temperature,
        max_completion_length=max_tokens,
        batch_size=batch_size,
        seed=seed,
        backend=_backend(backend, policy, processor),
        show_progress=True,
    )
    said = ", ".join(f"{name} {count}" for name, count in found.counts().items())
    typer.echo(f"{len(found.pass_rates)} rows: {said}")
    typer.echo(f"{write_kept(found, out)} rows in {out}")


@data_app.command("convert")
def convert(
    data: Annotated[str, typer.Argument(help="File, folder or hub id; or task:NAME.")],
    to: Annotated[str, typer.Option(help="Such as EasyR1, verl, TRL, ms-swift.")],
    out: Annotated[Path, typer.Option(help="The .parquet or .jsonl file to write.")],
    split: SplitOption = None,
    rows: RowsOption = None,
    difficulty: DifficultyOption = None,
) -> None:
    """Write a data set in another framework's row format, pictures included."""
    from foveal.data import export_row, write_rows

    source = _open(data, rows=rows, split=split, difficulty=difficulty)
    count = write_rows((export_row(row, to) for row in source), out)
    typer.echo(f"{count} rows in {out}")


def _prompt_builder(model: str, max_prompt_length: int | None) -> Any:
    from foveal.data import PromptBuilder
    from foveal.models.load import load_processor

    processor, image_token_id = load_processor(model)
    return PromptBuilder(
        processor, image_token_id=image_token_id, max_prompt_length=max_prompt_length
    )
