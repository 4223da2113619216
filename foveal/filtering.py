"""Which rows of a data set a policy can learn from: those that it solves sometimes.

found = measure_rows(model, processor, "questions.parquet", ["exact_answer"], n=8)
found.counts()                     # {"kept": 310, "never": 120, "always": 55, "unscored": 0}
write_kept(found, "kept.parquet")  # the kept rows with a column ``pass_rate``
"""

from __future__ import annotations

import base64
import io
import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from foveal.data import RowSource, load_rows
from foveal.evaluate import Evaluation, evaluate

__all__ = ["MeasuredRows", "measure_rows", "write_kept"]

COLUMN = "pass_rate"
_PATH_KEYS = {"image", "images", "image_url", "url", "path", "file_name", "file_names"}


@dataclass(frozen=True, slots=True)
class MeasuredRows:
    """Rows of a set with the share of answers to each that were right."""

    source: RowSource
    pass_rates: tuple[float | None, ...]
    """One a row; None where the first reward says nothing about any of its answers."""
    above: float
    below: float

    @property
    def kept(self) -> list[int]:
        """Numbers of the rows whose pass rate lies between ``above`` and ``below``."""
        return [i for i in range(len(self.pass_rates)) if self._verdict(i) == "kept"]

    def counts(self) -> dict[str, int]:
        """How many rows are "kept", solved "never" or "always", outside "between", "unscored"."""
        found = Counter(self._verdict(index) for index in range(len(self.pass_rates)))
        return {name: found[name] for name in ("kept", "never", "always", "between", "unscored")}

    def _verdict(self, index: int) -> str:
        rate = self.pass_rates[index]
        if rate is None:
            return "unscored"
        if self.above < rate < self.below:
            return "kept"
        return {0.0: "never", 1.0: "always"}.get(rate, "between")


def measure_rows(
    model: Any,
    processor: Any,
    dataset: Any,
    reward_funcs: Any,
    *,
    n: int = 8,
    above: float = 0.0,
    below: float = 1.0,
    right_from: float = 1.0,
    temperature: float = 1.0,
    **settings: Any,
) -> MeasuredRows:
    """Answer every row ``n`` times and note how often it was right.

    Args:
        model, processor, dataset, reward_funcs: as for ``foveal.evaluate.evaluate``; the first
            reward says what is right.
        n: answers to each row.
        above, below: rows with a pass rate strictly between them are kept. 0 and 1 drop what is
            solved never or always.
        right_from: the first reward's value from which an answer is right.
        temperature: that of the training to come.
        settings: ``max_completion_length``, ``batch_size``, ``seed``, ``backend`` and
            ``show_progress`` of ``evaluate``.

    Raises:
        ValueError: for bounds that keep nothing, or ``n`` below 1.
    """
    if not (above < below and above >= 0 and below <= 1):
        raise ValueError(f"above is {above} and below {below}; give 0 <= above < below <= 1")
    if n < 1:
        raise ValueError(f"n is {n}; give 1 answer a row or more")
    source = dataset if isinstance(dataset, RowSource) else load_rows(dataset)
    evaluation = evaluate(
        model,
        processor,
        source,
        reward_funcs,
        num_generations=n,
        temperature=temperature,
        **settings,
    )
    return MeasuredRows(source, _pass_rates(evaluation, right_from), above, below)


def _pass_rates(evaluation: Evaluation, right_from: float) -> tuple[float | None, ...]:
    first = next(iter(evaluation.rewards))
    rates: list[float | None] = []
    for prompt in evaluation.results:
        said = [sample.rewards[first] for sample in prompt.samples]
        right = [reward >= right_from for reward in said if reward is not None]
        rates.append(sum(right) / len(right) if right else None)
    return tuple(rates)


def write_kept(found: MeasuredRows, path: str | os.PathLike[str]) -> int:
    """Write the kept rows, with their ``pass_rate``, as parquet or jsonl.

    Pictures that lie beside the data stay there: their paths are written anew, from the folder of
    ``path``. Pictures in the rows are copied into the file.

    Returns:
        The number of rows.

    Raises:
        ValueError: for another extension, or if no row is kept.
    """
    path = Path(path)
    kind = path.suffix.lower()
    if kind not in (".parquet", ".jsonl"):
        raise ValueError(f"{path} ends with {kind!r}; name a .parquet or a .jsonl file")
    kept = found.kept
    if not kept:
        raise ValueError(
            f"none of the {len(found.pass_rates)} rows is kept ({found.counts()}); move the bounds "
            "apart, or take easier or harder rows"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    base, as_text = found.source.base_dir, kind == ".jsonl"
    rows = [
        {
            **{
                name: _portable(value, str(name), base, path.parent, as_text)
                for name, value in found.source.rows[index].items()
            },
            COLUMN: found.pass_rates[index],
        }
        for index in kept
    ]
    if as_text:
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        path.write_text("".join(lines), encoding="utf-8")
    else:
        from datasets import Dataset

        Dataset.from_list(rows).to_parquet(str(path))
    return len(rows)


def _portable(value: Any, key: str, base: Path | None, folder: Path, as_text: bool) -> Any:
    """A value as it can be written, with pictures as bytes or text and paths from ``folder``."""
    if isinstance(value, Image.Image):
        value = _png(value)
    if isinstance(value, bytes | bytearray | memoryview):
        data = bytes(value)
        return f"data:image/*;base64,{base64.b64encode(data).decode()}" if as_text else data
    if isinstance(value, Mapping):
        if as_text and value.get("bytes") is not None:
            return _portable(value["bytes"], key, base, folder, as_text)
        return {k: _portable(v, str(k), base, folder, as_text) for k, v in value.items()}
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_portable(item, key, base, folder, as_text) for item in value]
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, str) and key in _PATH_KEYS and not os.path.isabs(value):
        start = Path(base or ".") / value
        if len(value) < 256 and start.is_file():
            return Path(os.path.relpath(start, folder)).as_posix()
    return value


def _png(picture: Image.Image) -> bytes:
    written = io.BytesIO()
    picture.save(written, format="PNG")
    return written.getvalue()
