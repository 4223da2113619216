"""``foveal doctor``: what this machine has, what is missing, and the command that adds it."""

from __future__ import annotations

import importlib.util
import re
import shutil
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

PYTHONS = ((3, 10), (3, 13))
"""Oldest and newest Python that is supported."""
REQUIRED = {
    "torch": "2.9",
    "torchvision": "0.24",
    "transformers": "5.17",
    "accelerate": "1.10",
    "peft": "0.18",
    "datasets": "3.6",
}
"""Package -> oldest version."""
EXTRAS = {
    "quant": (["bitsandbytes"], "load_in_4bit and load_in_8bit on a GPU, 8-bit optimizers"),
    "molecules": (["rdkit"], "tasks and rewards about molecules"),
    "report": (["matplotlib", "jinja2"], "reports of runs"),
    "vllm": (["vllm"], "rollouts by vLLM"),
}
"""Extra -> its packages, and what they are for."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    topic: str
    state: str
    remedy: str | None = None
    """What to do about it; None if nothing need be done."""
    is_fatal: bool = False
    """Whether nothing can be trained before that."""


def examine(folder: Path | None = None) -> list[Finding]:
    """Look at Python, packages, the GPU, extras and the disk.

    Args:
        folder: where runs will be written; the current folder if None.
    """
    packages = [_package(name, oldest) for name, oldest in REQUIRED.items()]
    broken = any(finding.is_fatal for finding in packages)
    hardware = [] if broken else _hardware()
    extras = [_extra(name, *about) for name, about in EXTRAS.items()]
    return [_python(sys.version_info[:3]), *packages, *hardware, *extras, *_disk(folder)]


def _python(version: tuple[int, ...]) -> Finding:
    shown = ".".join(map(str, version))
    oldest, newest = PYTHONS
    if oldest <= version[:2] <= newest:
        return Finding("python", shown)
    wanted = " to ".join(f"{major}.{minor}" for major, minor in PYTHONS)
    return Finding("python", shown, f"use Python {wanted}", is_fatal=True)


def _package(name: str, oldest: str) -> Finding:
    version, command = _version(name), f'pip install --upgrade "{name}>={oldest}"'
    if version is None:
        return Finding(name, "missing", command, is_fatal=True)
    if _numbers(version) < _numbers(oldest):
        return Finding(name, f"{version}, older than {oldest}", command, is_fatal=True)
    return Finding(name, version)


def _extra(name: str, packages: list[str], purpose: str) -> Finding:
    versions = {package: _version(package) for package in packages}
    shown = ", ".join(f"{package} {version}" for package, version in versions.items() if version)
    if all(versions.values()):
        return Finding(f"extra {name}", shown)
    return Finding(f"extra {name}", "not installed", f'pip install "foveal[{name}]": {purpose}')


def _hardware() -> list[Finding]:
    """The GPU, and the number format that a model would be loaded in."""
    import torch

    from foveal.models.load import choose_dtype

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype, reason = choose_dtype(None, device)
    shown = f"{str(dtype).removeprefix('torch.')}: {reason}"
    return [_gpu(), Finding("dtype", shown)]


def _gpu() -> Finding:
    import torch

    if torch.cuda.is_available():
        about = torch.cuda.get_device_properties(0)
        memory = f"{about.total_memory / 2**30:.1f} GiB"
        capability = f"compute capability {about.major}.{about.minor}"
        return Finding("GPU", f"{about.name}, {capability}, {memory}, CUDA {torch.version.cuda}")
    if torch.version.cuda is None and shutil.which("nvidia-smi"):
        remedy = "install torch with CUDA, see https://pytorch.org/get-started/locally"
        return Finding("GPU", "not usable: this torch is built without CUDA", remedy)
    return Finding("GPU", "none that torch can use; tiny models train on the CPU")


def _disk(folder: Path | None) -> list[Finding]:
    findings = [Finding("free disk, here", _free(folder or Path.cwd()))]
    if importlib.util.find_spec("huggingface_hub") is not None:
        from huggingface_hub.constants import HF_HUB_CACHE

        findings.append(Finding("free disk, model cache", _free(Path(HF_HUB_CACHE))))
    return findings


def _free(folder: Path) -> str:
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return f"{shutil.disk_usage(existing).free / 2**30:.1f} GiB in {folder}"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    """``"2.11.0+cu130"`` -> (2, 11, 0)."""
    return tuple(map(int, re.findall(r"\d+", re.split(r"[+a-z]", version)[0])))
