"""``foveal eval``: answer data sets with a model, or put two results side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from foveal.eval_log import AnswerLog
    from foveal.eval_result import EvalResult
    from foveal.eval_sources import EvalSource
    from foveal.evaluate import Evaluation

BACKENDS = ("engine", "transformers")

RowsOption = Annotated[
    int | None,
    typer.Option(help="Only the first so many; of a task, of each difficulty (200)."),
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
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="File, folder or hub id; or task:NAME, made now. Several times for several; "
            "NAME=PATH gives it a name.",
            show_default=False,
        ),
    ] = None,
    task: Annotated[
        list[str] | None, typer.Option(help="The same as --data task:NAME.", show_default=False)
    ] = None,
    reward: Annotated[
        list[str] | None,
        typer.Option(
            help="Name of a reward; several times for several, the first says what is right. "
            "SOURCE=REWARD is for one source, SOURCE:TASK=REWARD for rows of a task in it, "
            ":TASK=REWARD in any. A task brings its own."
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
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where the run that writes --out stopped.")
    ] = False,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(help="Two results to put side by side; no model is run.", metavar="A B"),
    ] = None,
) -> None:
    """Answer every row of data sets: pass@k, majority, rewards; or compare two results."""
    named = [*(data or ()), *(f"task:{name}" for name in task or ())]
    if compare is not None:
        if model is not None or named:
            raise ValueError("--compare runs no model; leave MODEL, --data and --task out")
        _compare(*compare, out)
        return
    if model is None or not named:
        raise ValueError("give MODEL and --data or --task, or two results after --compare")
    check_numbers(samples, temperature, k, backend, max_tokens, batch_size)
    _check_out(out, resume)
    from foveal.eval_sources import judged_sources, open_sources

    opened = open_sources(named, rows=rows, split=split, difficulty=difficulty, seed=task_seed)
    sources = judged_sources(opened, reward)
    settings: dict[str, Any] = {"model": model, "weights": _weights(model)}
    settings |= {"data": [dict(source.settings) for source in sources], "split": split}
    settings |= {"rows": sum(len(source.rows) for source in sources)}
    settings |= {"samples": samples, "temperature": temperature, "max_tokens": max_tokens}
    settings |= {"seed": seed, "batch_size": batch_size, "backend": backend}
    settings |= {"load_in_4bit": load_in_4bit}
    if any(source.task is not None for source in opened):
        settings |= {"difficulty": difficulty, "task_seed": task_seed}
    result = _finished(out, settings, resume) or _answered(
        settings, sources, right_from, out, resume
    )
    _show(result, right_from, k, out)


def check_numbers(
    samples: int,
    temperature: float,
    ks: Sequence[int] | None,
    backend: str,
    max_tokens: int,
    batch_size: int,
) -> None:
    """Raise ValueError for settings that cannot be used."""
    if samples < 1 or (samples > 1 and temperature == 0):
        raise ValueError(
            f"--samples is {samples} at --temperature {temperature:g}; give at least 1, and a "
            "temperature above 0 for more than 1, because greedy answers are all the same"
        )
    if temperature < 0:
        raise ValueError(f"--temperature is {temperature:g}; 0 is greedy, above 0 samples")
    if wrong := [k for k in ks or () if not 1 <= k <= samples]:
        raise ValueError(f"--k is {wrong[0]}; it must lie in 1 to --samples, which is {samples}")
    if backend not in BACKENDS:
        raise ValueError(f"--backend is {backend!r}; choose one of {', '.join(BACKENDS)}")
    for name, value in (("--max-tokens", max_tokens), ("--batch-size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")


def backend_named(name: str, model: Any, processor: Any) -> Any:
    """The rollout backend of a name in ``BACKENDS``; None for the default."""
    from foveal.rollout import TransformersBackend

    return TransformersBackend(model, processor.tokenizer) if name == "transformers" else None


def _check_out(out: Path | None, resume: bool) -> None:
    if out is None and resume:
        raise ValueError("--resume needs --out: the answered rows lie beside that file")
    if out is not None and out.is_dir():
        raise ValueError(f"--out is the folder {out}; name a JSON file, such as {out}/result.json")


def _weights(model: str) -> dict[str, list[int]]:
    """Size and time of a folder's weight files: whether they are still those of the first rows."""
    files = sorted(Path(model).expanduser().glob("*.safetensors"))
    return {file.name: [(kept := file.stat()).st_size, kept.st_mtime_ns] for file in files}


def _finished(out: Path | None, settings: Mapping[str, Any], resume: bool) -> EvalResult | None:
    """The whole result that is there already, where a run is to be resumed."""
    from foveal.eval_log import check_settings, log_path
    from foveal.eval_result import read_result

    if not resume or out is None or log_path(out).exists() or not out.exists():
        return None
    result = read_result(out)
    check_settings(out, result.settings, settings)
    typer.echo(f"{out} is whole; no row is left")
    return result


def _answered(
    settings: dict[str, Any],
    sources: Sequence[EvalSource],
    right_from: float,
    out: Path | None,
    resume: bool,
) -> EvalResult:
    """Check all rows, answer those that are not answered yet, and write down each batch."""
    from foveal.eval_log import AnswerLog, log_path
    from foveal.eval_sources import check_sources
    from foveal.evaluate import evaluation_of, whole_batches
    from foveal.report import versions

    log = None if out is None else AnswerLog.begin(log_path(out), settings, resume=resume)
    known, left = whole_batches(log.known if log else {}, sources, settings["batch_size"])
    check_sources(sources, _same_row(known, log), show_progress=True)
    if log is not None:
        if known:
            typer.echo(f"{len(known)} rows are answered in {log.path}, {left} are left")
        log.keep(known, settings)
    if left:
        evaluation = _answer(settings, sources, known, log)
    else:
        evaluation = evaluation_of(list(known.values()))
    return evaluation.result(settings, versions(), right_from)


def _same_row(known: Mapping[Any, Any], log: AnswerLog | None) -> Any:
    """A check that each row is the one that was answered."""
    from foveal.data import row_key

    def check(source: EvalSource, row: Any, index: int) -> None:
        answered = known.get((source.name, index))
        if answered is not None and answered.key != row_key(row):
            assert log is not None, "known rows come from a file"
            raise ValueError(
                f"row {index} of {source.name} is not the one that was answered in {log.path}: "
                "the data has changed. Delete that file to start anew"
            )

    return check


def _answer(
    settings: Mapping[str, Any],
    sources: Sequence[EvalSource],
    known: Mapping[Any, Any],
    log: AnswerLog | None,
) -> Evaluation:
    from foveal.evaluate import evaluate_sources
    from foveal.fast_model import FastVisionModel

    policy, processor = FastVisionModel.from_pretrained(
        settings["model"], load_in_4bit=settings["load_in_4bit"]
    )
    is_whole = False
    try:
        evaluation = evaluate_sources(
            policy,
            processor,
            sources,
            num_generations=settings["samples"],
            temperature=settings["temperature"],
            max_completion_length=settings["max_tokens"],
            batch_size=settings["batch_size"],
            seed=settings["seed"],
            backend=backend_named(settings["backend"], policy, processor),
            show_progress=True,
            known=known,
            on_batch=None if log is None else log.append,
        )
        is_whole = True
    finally:
        if log is not None and not is_whole:
            said = f"The rows answered so far are in {log.path}; --resume goes on from them"
            Console(stderr=True).print(Text(said, style="yellow"), soft_wrap=True)
    return evaluation


def _show(
    result: EvalResult, right_from: float, ks: Sequence[int] | None, out: Path | None
) -> None:
    from dataclasses import replace

    from foveal.eval_log import log_path
    from foveal.eval_result import write_result
    from foveal.report.evaluation import result_table

    result = replace(result, right_from=right_from)
    summary = result.summary(ks)
    names = ", ".join(source["name"] for source in result.settings["data"])
    Console().print(result_table(summary, f"{result.settings['model']} on {names}"))
    if out is not None:
        write_result(out, result, summary)
        log_path(out).unlink(missing_ok=True)


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
