"""Run Triton kernels without a GPU, in Triton's interpreter.

Triton reads TRITON_INTERPRET when a kernel is defined, so the code runs in a Python of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]


def run_interpreted(module_or_code: str, timeout: float = 600.0) -> None:
    """Run a module (``"tests.unit.triton_draw_cases"``) or lines of code under the interpreter.

    A dotted name is run as ``python -m`` does, so the module's cases stand under
    ``if __name__ == "__main__":``.

    Raises:
        AssertionError: with everything that was printed, if it does not end well.
    """
    dotted = all(part.isidentifier() for part in module_or_code.split("."))
    how = ["-m", module_or_code] if dotted else ["-c", module_or_code]
    paths = [str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, *how],
        cwd=REPOSITORY,
        env={
            **os.environ,
            "TRITON_INTERPRET": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
    )
    if done.returncode != 0:
        raise AssertionError(
            f"{module_or_code!r} ended with {done.returncode} in the interpreter:\n{done.stdout}"
        )
