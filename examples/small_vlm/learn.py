"""Learning runs of the small model: recipes, seeds, held-out rows before and after.

    python examples/small_vlm/learn.py --model warm_vlm --nlvr ../shared/data/nlvr/train.parquet \\
        --recipes count_grpo count_gspo count_dapo --seeds 0 1 2 --out runs/small_vlm
    python examples/small_vlm/learn.py --model warm_vlm --recipes count_gspo --seeds 0 \\
        --peer trl --out runs/small_vlm                         # TRL's trainer beside ours

``warm_vlm`` comes from ``cold_start.py``; recipes lie in ``examples/recipes/small_vlm``. Each run
is a folder of ``OUT/runs`` with ``run.json`` (what was asked, held-out reward before and after,
seconds to each mean reward), ``metrics.jsonl`` and some completions with their pictures. Over all
runs there are ``OUT/summary.json`` and one plot a recipe. A run that is there already is not done
again, so the same command goes on where it was stopped.

Held-out reward: 4 samples a question at temperature 1. Rollouts are the engine's throughout.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from learn_data import DRAWN_ROWS, write_data
from learn_peer import check_peer, run_trl
from learn_report import (
    METRICS_FILE,
    RUN_FILE,
    can_plot,
    write_metrics,
    write_plots,
    write_samples,
    write_summary,
)
from learn_run import (
    Asked,
    gain,
    held_out,
    recipe_of,
    release,
    reward_curve,
    run_foveal,
    seconds_to,
)

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "benchmarks"))

from record import (  # pyright: ignore[reportMissingImports]  # noqa: E402
    card,
    commit,
    installed_versions,
)

from foveal.eval_result import write_json  # noqa: E402
from foveal.recipe import Recipe, check_recipe  # noqa: E402

SECOND_HALF = "nlvr_second_half.parquet"
TARGETS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", type=Path, required=True, help="folder of the checkpoint to start from")
    add("--recipes", nargs="+", required=True, help="their names, without .yaml")
    add("--seeds", type=int, nargs="+", default=[0])
    add("--out", type=Path, required=True, help="folder of the results")
    add("--nlvr", type=Path, help=f"the pack's parquet file; else {SECOND_HALF} of --model")
    add("--recipe-folder", type=Path, default=REPOSITORY / "examples" / "recipes" / "small_vlm")
    add("--peer", choices=("trl",), help="the same runs through another trainer as well")
    add("--budget-seconds", type=float, help="begin no run after so many seconds")
    add("--train-seconds", type=float, help="stop training of a run after so many seconds")
    add("--answers", type=int, default=4, help="samples of a held-out question")
    add("--held-out", type=int, help="held-out questions; all if not given")
    add("--drawn-rows", type=int, default=DRAWN_ROWS, help="held-out, of a drawn task and level")
    add("--reach", type=float, nargs="+", default=TARGETS, help="mean rewards to time")
    add("--set", nargs="+", default=[], metavar="KEY=VALUE", help="overrides for every recipe")
    add("--commit", default=None, help="what is measured, where there is no git")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Do the runs; 1 if one of them failed, which does not stop the others."""
    argv = sys.argv[1:] if argv is None else list(argv)
    arguments, started = parse(argv), time.perf_counter()
    origin = {
        "card": card(),
        "commit": commit(arguments.commit),
        "versions": installed_versions(),
        "command": shlex.join(["python", "examples/small_vlm/learn.py", *argv]),
    }
    asked = Asked(
        recipes=arguments.recipe_folder,
        model=arguments.model,
        out=arguments.out.absolute(),
        overrides=tuple(arguments.set),
        answers=arguments.answers,
        rows=arguments.held_out,
        targets=tuple(arguments.reach),
        train_seconds=arguments.train_seconds,
    )
    write_data(nlvr_of(arguments), asked.out / "data", arguments.drawn_rows)
    waiting = [run for run in planned(arguments, asked) if not is_there(*run, asked)]
    if not can_plot():
        print("matplotlib is missing: no plots; install it and repeat the command", flush=True)
    failed = []
    for place, (name, seed, system) in enumerate(waiting, 1):
        spent = time.perf_counter() - started
        if arguments.budget_seconds is not None and spent >= arguments.budget_seconds:
            print(f"{spent:.0f} s are spent; {len(waiting) - place + 1} runs are left", flush=True)
            break
        print(f"[{place}/{len(waiting)}, {spent:.0f} s] {run_name(name, seed, system)}", flush=True)
        try:
            one_run(name, seed, system, asked, origin)
        except Exception:
            # Whatever stops one run on a card that is paid for must not stop the others.
            traceback.print_exc()
            failed.append(run_name(name, seed, system))
        release()
        write_summary(asked.out)
    finish(asked.out)
    if failed:
        print(f"failed: {', '.join(failed)}", flush=True)
    return 1 if failed else 0


def nlvr_of(arguments: argparse.Namespace) -> Path | None:
    """Where NLVR's rows are; None where there are none, as drawn tasks need none."""
    beside = arguments.model / SECOND_HALF
    return arguments.nlvr or (beside if beside.is_file() else None)


def planned(arguments: argparse.Namespace, asked: Asked) -> list[tuple[str, int, str]]:
    """Recipe, seed and system of every run, one seed of all recipes after the other.

    A budget that ends early then leaves whole comparisons of fewer seeds. Recipes are read and
    their data opened here, so that a mistake costs no run.

    Raises:
        ValueError: for a recipe that cannot be run, or has no counterpart in the other system.
    """
    systems = ["foveal", *([arguments.peer] if arguments.peer else [])]
    for name in arguments.recipes:
        recipe = recipe_of(asked, name, 0)
        if isinstance(recipe.data.train, str) and not Path(recipe.data.train).is_file():
            raise ValueError(f"{name}: there is no {recipe.data.train}; give the pack by --nlvr")
        check_recipe(recipe)
        if arguments.peer:
            check_peer(recipe)
    return [(n, s, system) for s in arguments.seeds for n in arguments.recipes
            for system in systems]  # fmt: skip


def run_name(recipe: str, seed: int, system: str) -> str:
    return f"{recipe}-{seed}" + ("" if system == "foveal" else f"-{system}")


def is_there(recipe: str, seed: int, system: str, asked: Asked) -> bool:
    """Whether a run is finished.

    Raises:
        ValueError: if it is, with other overrides or from another model.
    """
    path = asked.out / "runs" / run_name(recipe, seed, system) / RUN_FILE
    if not path.is_file():
        return False
    found = json.loads(path.read_text())
    for what, now in (("set", list(asked.overrides)), ("model", asked.model.absolute().name)):
        if found[what] != now:
            raise ValueError(
                f"{path} was made with {what} {found[what]}, not {now}; give another --out"
            )
    print(f"{run_name(recipe, seed, system)} is there already", flush=True)
    return True


def one_run(name: str, seed: int, system: str, asked: Asked, origin: dict[str, Any]) -> None:
    """Run, measure, and write the folder of the run; ``run.json`` comes last."""
    started = time.perf_counter()
    recipe = recipe_of(asked, name, seed)
    learned = (run_foveal if system == "foveal" else run_trl)(recipe, asked)
    folder = asked.out / "runs" / run_name(name, seed, system)
    folder.mkdir(parents=True, exist_ok=True)
    write_metrics(folder / METRICS_FILE, learned.history, learned.clock.seconds)
    work = Path(recipe.train["output_dir"])
    write_samples(work, folder)
    (folder / "recipe.yaml").write_text(recipe.to_yaml())
    after = held_out(learned.model, learned.processor, recipe, asked)
    curve = reward_curve(learned.history, learned.clock.seconds)
    record = {
        "name": folder.name,
        "recipe": name,
        "seed": seed,
        "system": system,
        "model": asked.model.absolute().name,
        "set": list(asked.overrides),
        **gain(learned.before, after),
        "steps": learned.steps,
        "completions_per_rollout": rollout_size(recipe),
        "train_seconds": learned.clock.seconds[learned.steps],
        "seconds": time.perf_counter() - started,
        "seconds_to_reward": {f"{t:g}": seconds_to(curve, t) for t in asked.targets},
        **origin,
    }
    write_json(folder / RUN_FILE, record)
    shutil.rmtree(work, ignore_errors=True)
    print(
        f"{folder.name}: {record['before']:.3f} -> {record['after']:.3f} on "
        f"{record['questions']} questions, {learned.steps} steps in "
        f"{record['train_seconds']:.0f} s ({record['seconds']:.0f} s in all)",
        flush=True,
    )


def rollout_size(recipe: Recipe) -> int:
    train = recipe.train
    step = train["per_device_train_batch_size"] * train["gradient_accumulation_steps"]
    return train.get("generation_batch_size") or step


def finish(out: Path) -> None:
    """Summary and plots of what is there now."""
    summary = write_summary(out)
    if can_plot():
        write_plots(out)
    for group in summary["over_seeds"]:
        shown = {k: group[k]["mean"] for k in ("before", "after", "gain")}
        print(f"  {group['recipe']} ({group['system']}, {len(group['seeds'])} seeds): " + ", ".join(
            f"{name} {value:.3f}" for name, value in shown.items()), flush=True)  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
