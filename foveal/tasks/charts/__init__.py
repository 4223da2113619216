"""Reading charts: bars, grouped bars, lines, pies, scatter plots and box plots.

    read        the value of one bar, point, slice, median or quartile
    difference  how much larger one value is than another
    sum         two values, or what a group comes to
    ratio       how many times one value is another, to one decimal
    rank        which category has the largest, smallest or second largest value
    spread      of a box: its interquartile range, or its range without the outliers
    count       points of a series, above a line or above a value; outliers
    trend       which series of points rises, falls, or rises most steeply
    nearest     which lettered point is nearest to a cross

Values lie on a grain that gets finer with difficulty (a half of a tick, then a tenth), grid lines
vanish, categories and series multiply, text shrinks and grain is added. A number may be off by a
tenth of a tick for each value that has to be read.
"""

from __future__ import annotations

from typing import Any, ClassVar

from foveal.tasks.base import Drawn, DrawnTask
from foveal.tasks.charts import bars, boxes, scatter
from foveal.tasks.dice import Dice

FORMS = {
    "bar": bars,
    "grouped": bars,
    "line": bars,
    "pie": bars,
    "scatter": scatter,
    "box": boxes,
}
"""Which file draws and solves a form of chart."""


class ChartsTask(DrawnTask):
    """The task family "charts"."""

    name: str = "charts"
    kinds: ClassVar[tuple[str, ...]] = (
        "read", "difference", "sum", "ratio", "rank", "spread", "count", "trend", "nearest",
    )  # fmt: skip

    def draw(self, dice: Dice, difficulty: int) -> Drawn:
        form = dice.pick(tuple(FORMS))
        return FORMS[form].draw(dice, difficulty, form)

    def reference_answer(self, metadata: dict[str, Any]) -> str:
        """From the plotted values alone."""
        return FORMS[metadata["form"]].solve(metadata)
