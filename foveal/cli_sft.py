"""The command ``foveal sft``: supervised training from a recipe, or from options alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from foveal.recipe import CheckedSFTRecipe

TASK = "task:"
TASK_ROWS = 10_000
"""Rows that are drawn of a task unless the user says how many."""


def sft(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            help="A YAML file first, unless --model and --data are given; then settings, such as "
            "train.learning_rate=1e-5.",
            metavar="[RECIPE] [KEY=VALUE]",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Checkpoint or adapter: folder or hub id.")
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(help="File, folder or hub id; or task:NAME. Several are mixed."),
    ] = None,
    eval_data: Annotated[
        list[str] | None, typer.Option("--eval", help="The same, for evaluation.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The run folder.")] = Path("runs/sft"),
    lora: Annotated[
        int, typer.Option(help="Rank of an adapter; 0 trains the model as it is loaded.")
    ] = 16,
    rows: Annotated[int, typer.Option(help="Rows drawn of each task.")] = TASK_ROWS,
    difficulty: Annotated[
        list[int] | None, typer.Option(help="Of tasks; several are taken in turn.")
    ] = None,
    task_seed: Annotated[
        int, typer.Option(help="Of the tasks' rows; evaluation takes the next one.")
    ] = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last whole checkpoint.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything but the weights; train nothing.")
    ] = False,
) -> None:
    """Train on completions: a recipe's, or those of --data."""
    recipe, overrides = _split(arguments or [])
    if (recipe is None) == (model is None):
        raise ValueError(
            "give either a recipe or --model and --data; `foveal sft --help` shows both"
        )
    if recipe is not None and (data or eval_data):
        raise ValueError("--data and --eval go with --model; a recipe names its data itself")
    if recipe is None and not data:
        raise ValueError("--data is missing; name a file, or a task such as --data task:shapes")
    from foveal.recipe import check_sft_recipe, load_sft_recipe, run_sft_recipe

    source: Any = recipe
    if source is None:
        levels = difficulty or [3]
        source = {
            "model": {"model_name": model},
            "lora": {"r": lora, "lora_alpha": 2 * lora} if lora else False,
            "data": {"train": _parts(data or [], rows, levels, task_seed)},
            "train": {"output_dir": str(out)},
        }
        if eval_data:
            source["data"]["eval"] = _parts(eval_data, min(rows, 200), levels, task_seed + 1)
            source["train"]["eval_strategy"] = "epoch"
    loaded = load_sft_recipe(source, overrides)
    if dry_run:
        checked = check_sft_recipe(loaded)
        typer.echo(loaded.to_yaml())
        Console().print(_plan(checked))
        return
    trainer = run_sft_recipe(loaded, resume=resume or None)
    typer.echo(f"Run folder: {trainer.args.output_dir}")


def _split(arguments: list[str]) -> tuple[str | None, list[str]]:
    """The recipe's file, if the first argument is one, and the settings."""
    if arguments and "=" not in arguments[0]:
        return arguments[0], arguments[1:]
    return None, arguments


def _parts(names: list[str], rows: int, levels: list[int], seed: int) -> list[Any]:
    """What --data names, as a recipe has it."""
    return [
        {"task": name.removeprefix(TASK), "n": rows, "seed": seed, "difficulty": levels}
        if name.startswith(TASK)
        else name
        for name in names
    ]


def _plan(checked: CheckedSFTRecipe) -> Table:
    """What a run would do."""
    config, rows = checked.config, checked.train_rows
    table = Table(title="The recipe can run", show_header=False)
    table.add_row("model", checked.family)
    table.add_row("training rows", f"{len(rows)} from {rows.name}")
    if checked.eval_rows is not None:
        table.add_row("evaluation rows", f"{len(checked.eval_rows)} from {checked.eval_rows.name}")
    step_rows = config.per_device_train_batch_size * config.gradient_accumulation_steps
    table.add_row("an optimizer step", f"{step_rows} rows")
    epochs = f"{config.num_train_epochs:g} epochs"
    table.add_row("length", f"{config.max_steps} steps" if config.max_steps > 0 else epochs)
    return table
