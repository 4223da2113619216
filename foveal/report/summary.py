"""The numbers of a finished run, for programs (``summary.json``) and for people (a table)."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.table import Table

from foveal._version import __version__

PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets")
GIB = 1 << 30


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a run's numbers."""
    found = {"python": platform.python_version(), "foveal": __version__}
    for package in PACKAGES:
        found[package] = metadata.version(package)
    return found


def write_summary(folder: Path, summary: Mapping[str, Any]) -> Path:
    """Write ``summary.json`` into the run folder, whole or not at all."""
    path = folder / "summary.json"
    part = path.with_suffix(".part")
    part.write_text(json.dumps(summary, indent=2) + "\n")
    part.replace(path)
    return path


def summary_table(
    summary: Mapping[str, Any],
    rewards: Mapping[str, tuple[float, float]],
    phase_seconds: Mapping[str, float],
) -> Table:
    """Held-out accuracy and rewards before and after, then the time of each phase.

    Args:
        summary: as written to ``summary.json``.
        rewards: by reward function, mean before and after.
        phase_seconds: seconds by phase.
    """
    table = Table(
        title=f"{summary['steps']} steps in {summary['seconds']:.0f} s", title_justify="left"
    )
    for column in ("", "before", "after"):
        table.add_column(column, justify="right" if column else "left")
    table.add_row(
        "held-out accuracy",
        f"{summary['accuracy_before']:.1%}",
        f"[bold green]{summary['accuracy_after']:.1%}[/]",
        end_section=True,
    )
    for name, (before, after) in rewards.items():
        table.add_row(f"reward {name}", f"{before:.3f}", f"{after:.3f}")
    table.add_section()
    total = sum(phase_seconds.values())
    for name, seconds in sorted(phase_seconds.items(), key=lambda item: -item[1]):
        table.add_row(f"time {name}", f"{seconds:.1f} s", f"{seconds / total:.0%}")
    table.add_section()
    table.add_row("peak memory", "", f"{summary['peak_bytes'] / GIB:.2f} GiB")
    return table
