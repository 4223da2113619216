"""The commands that look at data and train nothing: ``foveal data ...``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from foveal.cli_eval import (
    BACKENDS,
    DifficultyOption,
    RowsOption,
    SplitOption,
    backend_named,
    check_numbers,
)

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
    reward: Annotated[
        list[str] | None,
        typer.Option(help="As in eval: does it say that a row's own answer is right?"),
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
    from foveal.eval_sources import judged_sources, open_sources
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
    opened = open_sources([data], rows=rows, split=split, difficulty=difficulty)
    source, judges = opened[0].rows, judged_sources(opened, reward) if reward else []
    rewards_of = (lambda row, index: judges[0].rewards_of(row)) if judges else None
    builder = None if model is None else _prompt_builder(model, max_prompt_length)
    seen = inspect_rows(source, builder, rewards_of=rewards_of, show_progress=True)
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
    check_numbers(n, temperature, None, backend, max_tokens, batch_size)
    if out.suffix.lower() not in (".parquet", ".jsonl"):
        raise ValueError(f"--out is {out}; name a .parquet or a .jsonl file")
    if not 0 <= above < below <= 1:
        raise ValueError(f"--above is {above} and --below {below}; give 0 <= above < below <= 1")
    from foveal.eval_sources import check_sources, judged_sources, open_sources

    opened = open_sources([data], rows=rows, split=split, difficulty=difficulty, seed=task_seed)
    (source,) = judged_sources(opened, reward)
    if source.by_task:
        raise ValueError("--reward for rows of one task is for eval; filter one task at a time")
    check_sources([source], show_progress=True)
    from foveal.fast_model import FastVisionModel
    from foveal.filtering import measure_rows, write_kept

    policy, processor = FastVisionModel.from_pretrained(model, load_in_4bit=load_in_4bit)
    found = measure_rows(
        policy,
        processor,
        source.rows,
        source.rewards,
        n=n,
        above=above,
        below=below,
        right_from=right_from,
        temperature=temperature,
        max_completion_length=max_tokens,
        batch_size=batch_size,
        seed=seed,
        backend=backend_named(backend, policy, processor),
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
    from foveal.eval_sources import open_rows

    source = open_rows(data, rows=rows, split=split, difficulty=difficulty)
    count = write_rows((export_row(row, to) for row in source), out)
    typer.echo(f"{count} rows in {out}")


def _prompt_builder(model: str, max_prompt_length: int | None) -> Any:
    from foveal.data import PromptBuilder
    from foveal.models.load import load_processor

    processor, image_token_id = load_processor(model)
    return PromptBuilder(
        processor, image_token_id=image_token_id, max_prompt_length=max_prompt_length
    )
