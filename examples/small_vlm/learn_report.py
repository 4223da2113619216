"""What learning runs leave behind: a folder for each run, one summary, one picture a recipe."""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from learn_run import reward_curve

from foveal.eval_result import write_json

RUN_FILE = "run.json"
METRICS_FILE = "metrics.jsonl"
SAMPLES = 6
"""Completions that are kept of the first rollout, and of the last."""
KEPT = ("step", "reward", "reward_std", "kl", "entropy", "loss", "grad_norm", "learning_rate",
        "completions/mean_length", "completions/clipped_ratio", "frac_reward_zero_std",
        "step_time", "time/rollout", "time/train", "time/ref_logprob", "time/data",
        "sampling/sampling_logp_difference/mean", "clip_ratio/region_mean", "eval_reward",
        "eval_completions/mean_length", "dynamic_sampling/redrawn_groups")  # fmt: skip
KEPT_BEGINNINGS = ("curriculum/", "source/", "rollout_time/")
LEVEL = 0.95


def write_metrics(
    path: Path, history: Sequence[Mapping[str, Any]], seconds: Mapping[int, float]
) -> None:
    """The log, less what nobody plots, with the seconds of training; five digits are enough."""
    with path.open("w") as file:
        for entry in history:
            kept = {k: v for k, v in entry.items() if k in KEPT or k.startswith(KEPT_BEGINNINGS)}
            kept["seconds"] = seconds.get(entry["step"])
            file.write(json.dumps({k: _short(v) for k, v in kept.items()}) + "\n")


def _short(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return float(f"{value:.5g}") if math.isfinite(value) else None


def write_samples(work: Path, folder: Path) -> None:
    """A few completions of the first and of the last rollout, with their pictures.

    Args:
        work: the run's own folder, with ``rollouts.jsonl``; without that file nothing is written.
        folder: where ``samples.json`` and ``pictures`` go.
    """
    path = work / "rollouts.jsonl"
    if not path.is_file():
        return
    lines = path.read_text().splitlines()
    first, last = json.loads(lines[0])["step"], json.loads(lines[-1])["step"]
    samples = []
    for step in dict.fromkeys((first, last)):
        found = [line for line in map(json.loads, lines) if line["step"] == step]
        # Spread over the rollout, so that they are not of one prompt.
        every = max(1, len(found) // SAMPLES)
        samples += found[::every][:SAMPLES]
    for sample in samples:
        sample["images"] = [_copied(work / name, folder / "pictures") for name in sample["images"]]
    write_json(folder / "samples.json", samples)


def _copied(picture: Path, folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(picture, folder / picture.name)
    return f"{folder.name}/{picture.name}"


# -- over seeds


def all_runs(out: Path) -> list[dict[str, Any]]:
    """Every finished run, by name."""
    return [json.loads(path.read_text()) for path in sorted(out.glob(f"runs/*/{RUN_FILE}"))]


def write_summary(out: Path) -> dict[str, Any]:
    """Every run, and means over seeds of each recipe and system, into ``summary.json``."""
    runs = all_runs(out)
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for run in runs:
        groups[run["recipe"], run["system"]].append(run)
    summary = {
        "over_seeds": [
            {"recipe": recipe, "system": system, **_over_seeds(members)}
            for (recipe, system), members in sorted(groups.items())
        ],
        "runs": runs,
    }
    write_json(out / "summary.json", summary)
    return summary


def _over_seeds(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    targets = sorted({target for run in runs for target in run["seconds_to_reward"]}, key=float)
    reached = {
        target: [s for run in runs if (s := run["seconds_to_reward"].get(target)) is not None]
        for target in targets
    }
    return {
        "seeds": [run["seed"] for run in runs],
        "metric": runs[0]["metric"],
        **{name: mean_interval([run[name] for run in runs]) for name in ("before", "after")},
        "gain": mean_interval([run["gain"]["mean"] for run in runs]),
        "train_seconds": mean_interval([run["train_seconds"] for run in runs]),
        "seconds_to_reward": {
            target: {**mean_interval(times), "reached": len(times), "of": len(runs)}
            for target, times in reached.items()
        },
    }


def mean_interval(values: Sequence[float]) -> dict[str, Any]:
    """Mean and 95 % interval by Student's t over seeds; no interval for fewer than two values."""
    if not values:
        return {"mean": None, "interval": None}
    n = len(values)
    mean = sum(values) / n
    if n < 2:
        return {"mean": mean, "interval": None}
    from scipy.stats import t

    spread = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1))
    half = float(t.ppf((1 + LEVEL) / 2, n - 1)) * spread / math.sqrt(n)
    return {"mean": mean, "interval": [mean - half, mean + half]}


# -- plots


def can_plot() -> bool:
    return importlib.util.find_spec("matplotlib") is not None


def write_plots(out: Path) -> list[Path]:
    """One picture a recipe, of every run of it. Needs matplotlib."""
    by_recipe: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for run in all_runs(out):
        by_recipe[run["recipe"]].append(run)
    return [_plot(out, recipe, runs) for recipe, runs in sorted(by_recipe.items())]


def _plot(out: Path, recipe: str, runs: Sequence[Mapping[str, Any]]) -> Path:
    import matplotlib  # pyright: ignore[reportMissingImports]

    matplotlib.use("agg")
    from matplotlib import pyplot  # pyright: ignore[reportMissingImports]

    figure, axes = pyplot.subplots(2, 3, figsize=(12, 6), constrained_layout=True)
    panels: dict[str, Any] = dict(zip(("reward", "seconds", "held_out", "kl", "entropy", "length"),
                      axes.flat, strict=True))  # fmt: skip
    for run in runs:
        label = f"{run['system']}, seed {run['seed']}"
        style = "-" if run["system"] == "foveal" else "--"
        lines = (out / "runs" / run["name"] / METRICS_FILE).read_text().splitlines()
        for name, (x, y) in series(run, [json.loads(line) for line in lines]).items():
            panels[name].plot(x, y, style, label=label, linewidth=1)
    titles = {"reward": "mean reward, by step", "seconds": "mean reward, by seconds of training",
              "held_out": "held-out, by step", "kl": "KL to the start, nats a token",
              "entropy": "entropy, nats a token", "length": "tokens a completion"}  # fmt: skip
    for name, title in titles.items():
        panels[name].set_title(title, fontsize=9)
        panels[name].grid(alpha=0.3)
    panels["kl"].set_yscale("log")  # single steps stand far above the rest
    panels["reward"].legend(fontsize=7)
    figure.suptitle(recipe)
    path = out / f"{recipe}.png"
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return path


def series(
    run: Mapping[str, Any], log: Sequence[Mapping[str, Any]]
) -> dict[str, tuple[list[float], list[float]]]:
    """Panel -> x and y."""

    def column(name: str) -> tuple[list[float], list[float]]:
        found = [(e["step"], e[name]) for e in log if e.get(name) is not None]
        return [x for x, _ in found], [y for _, y in found]

    known = {e["step"]: e["seconds"] for e in log if e.get("seconds") is not None}
    curve = reward_curve([e for e in log if e.get("reward") is not None], known)
    held_x, held_y = column("eval_reward")
    return {
        "reward": ([float(s) for s, _, _ in curve], smooth([r for _, _, r in curve])),
        "seconds": ([s for _, s, _ in curve], smooth([r for _, _, r in curve])),
        "held_out": ([0, *held_x, run["steps"]], [run["before"], *held_y, run["after"]]),
        "kl": column("kl"),
        "entropy": column("entropy"),
        "length": column("completions/mean_length"),
    }


def smooth(values: Sequence[float], window: int = 5) -> list[float]:
    """Mean of each value and up to ``window - 1`` before it."""
    return [
        sum(part) / len(part)
        for end in range(1, len(values) + 1)
        if (part := values[max(0, end - window) : end])
    ]
