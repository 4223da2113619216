"""The command line: ``foveal demo | sft | train | eval | data | chat | tasks | doctor | version``.

Torch is loaded inside the commands that compute, so that help and messages come at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

import foveal
from foveal import cli_eval, cli_measure, cli_sft

if TYPE_CHECKING:
    from foveal.recipe import CheckedRecipe

USER_ERROR = 2
"""Exit code where what the user gave is at fault."""


class _Commands(TyperGroup):
    """Says what is wrong with the user's input in one line; other errors keep their traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except Exception as error:
            if ctx.params.get("traceback") or not _is_about_input(error):
                raise
            line = " ".join(str(error).split())
            Console(stderr=True).print(Text(line, style="red"), soft_wrap=True)
            raise typer.Exit(USER_ERROR) from None


def _is_about_input(error: Exception) -> bool:
    """Whether one of our own checks raised it; the same types from elsewhere are defects."""
    from foveal.rewards import RewardError

    if isinstance(error, RewardError):
        return True
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    raised_in = trace.tb_frame.f_globals.get("__name__", "") if trace is not None else ""
    ours = str(raised_in).partition(".")[0] == foveal.__name__
    return ours and isinstance(error, (ValueError, TypeError, ImportError, FileNotFoundError))


app = typer.Typer(
    cls=_Commands,
    help="Reinforcement learning for vision-language models on one GPU.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def options(
    traceback: Annotated[
        bool, typer.Option("--traceback", help="Show where an error was raised.")
    ] = False,
) -> None:
    """Reinforcement learning for vision-language models on one GPU."""


@app.command()
def demo(
    output_dir: Annotated[Path, typer.Option(help="The run folder.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(help="Of the adapter and the sampling.")] = 0,
) -> None:
    """Train a tiny model on a CPU, offline, in minutes, and show what it learned."""
    from foveal.demo import run_demo

    run_demo(output_dir=output_dir, seed=seed)


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="A YAML file.", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Such as train.learning_rate=1e-5.", metavar="KEY=VALUE"),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last whole checkpoint.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything but the weights; train nothing.")
    ] = False,
) -> None:
    """Train as a recipe says."""
    from foveal.recipe import check_recipe, load_recipe, run_recipe

    loaded = load_recipe(recipe, overrides or ())
    if dry_run:
        checked = check_recipe(loaded)
        typer.echo(loaded.to_yaml())
        Console().print(_plan(checked))
        return
    trainer = run_recipe(loaded, resume=resume or None)
    typer.echo(f"Run folder: {trainer.args.output_dir}")


def _plan(checked: CheckedRecipe) -> Table:
    """What a run would do."""
    from foveal.data import RowSource

    config, rows = checked.config, checked.train_rows
    prompts = config.prompts_per_micro_step * config.gradient_accumulation_steps
    table = Table(title="The recipe can run", show_header=False)
    table.add_row("model", checked.family)
    count = "as they are drawn, from "
    if isinstance(rows, RowSource) and not rows.is_streamed:
        count = f"{len(rows)} from "
    table.add_row("training rows", count + rows.name)
    if checked.eval_rows is not None:
        table.add_row("evaluation rows", f"{len(checked.eval_rows)} from {checked.eval_rows.name}")
    table.add_row("an optimizer step", f"{prompts} prompts x {config.num_generations} completions")
    epochs = f"{config.num_train_epochs:g} epochs"
    table.add_row("length", f"{config.max_steps} steps" if config.max_steps > 0 else epochs)
    return table


app.command("sft")(cli_sft.sft)
app.command("eval")(cli_eval.evaluate)
app.add_typer(cli_measure.data_app, name="data")


@app.command()
def chat(
    model: Annotated[str, typer.Argument(help="Checkpoint or adapter: folder or hub id.")],
    image: Annotated[
        list[str] | None, typer.Option(help="A picture for the first message; may be repeated.")
    ] = None,
    adapter: Annotated[Path | None, typer.Option(help="Folder of an adapter.")] = None,
    ask: Annotated[str | None, typer.Option(help="Answer this question and end.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Of an answer.")] = 512,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.7,
    load_in_4bit: Annotated[bool, typer.Option("--load-in-4bit", help="As in training.")] = False,
) -> None:
    """Ask a model about pictures."""
    sampling = foveal.SamplingParams(max_tokens=max_tokens, temperature=temperature)
    from foveal.chat import run_chat

    run_chat(
        model,
        images=image or (),
        adapter=adapter,
        sampling=sampling,
        load_in_4bit=load_in_4bit,
        ask=ask,
    )


tasks_app = typer.Typer(help="The procedural visual tasks.", no_args_is_help=True)
app.add_typer(tasks_app, name="tasks")


@tasks_app.command("list")
def list_tasks() -> None:
    """Print the names of the tasks."""
    from foveal.tasks import TASKS

    for name in TASKS:
        typer.echo(name)


@tasks_app.command("sheet")
def sheet(
    out: Annotated[Path, typer.Option(help="The PNG to write.")] = Path("tasks.png"),
    seed: Annotated[int, typer.Option(help="Of the first sample; the next has the next.")] = 0,
    task: Annotated[
        list[str] | None, typer.Option(help="A task; several times for several. Default: all.")
    ] = None,
    difficulty: Annotated[
        list[int] | None, typer.Option(help="1 to 5; several times. Default: 2 and 4.")
    ] = None,
) -> None:
    """Write a picture with a sample of each task, its question and its answer."""
    from foveal.tasks import TASKS, get_task, missing_package
    from foveal.tasks.sheet import write_sheet

    tasks = [get_task(name) for name in task or TASKS]
    # A task that was asked for by name says itself what it misses.
    for one in [] if task else list(tasks):
        if package := missing_package(one):
            typer.echo(f"left out: {one.name}, which needs {package} (pip install {package})")
            tasks.remove(one)
    wanted = [(one, level) for one in tasks for level in difficulty or (2, 4)]
    # One seed for all would draw the same kind of question for several of them.
    rows = [one.generate(seed + i, level) for i, (one, level) in enumerate(wanted)]
    write_sheet(out, rows)
    typer.echo(f"{len(rows)} samples in {out}")


@app.command()
def doctor() -> None:
    """Show versions, the GPU, extras and the disk; say what is missing and how to add it."""
    from foveal.doctor import examine

    findings = examine()
    table = Table("", "found", "to do", title=f"foveal {foveal.__version__}")
    for finding in findings:
        style = "red" if finding.is_fatal else None
        # As Text, because "foveal[quant]" would be taken for markup.
        table.add_row(*map(Text, (finding.topic, finding.state, finding.remedy or "")), style=style)
    Console().print(table)
    if any(finding.is_fatal for finding in findings):
        raise typer.Exit(1)


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(foveal.__version__)


def main() -> None:
    """Entry point of the ``foveal`` command."""
    app()


if __name__ == "__main__":
    main()
