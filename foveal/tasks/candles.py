"""Candlestick charts: one candle a day from open to close, wicks to the day's high and low.

    up        number of days that close above their open
    gain      the largest rise from open to close of a day, in price
    day       the day of the largest rise
    return    change from the close of one day to that of another, in percent
    drawdown  largest fall from a close to a later close, in percent of the former

The number of up days is drawn before the prices, and so is the day of the largest rise. Numbers
may be off by what misreading a price by a tenth of a tick can cause.
"""

from __future__ import annotations

from typing import Any, ClassVar

from foveal.tasks.base import Drawn, DrawnTask, plain
from foveal.tasks.canvas import INKS, PAPERS, Canvas
from foveal.tasks.dice import Dice

WIDTH, HEIGHT = 364, 280
DAYS = (5, 7, 9, 11, 14)
LOOKS = (((30, 150, 80), (210, 50, 50)), ((40, 110, 200), (225, 120, 30)))

TEMPLATES = {
    "up": ("On how many days did the price rise?", "Count the days that closed above their open."),
    "gain": (
        "What is the largest rise from open to close of one day?",
        "How much did the price gain, open to close, on its best day?",
    ),
    "day": (
        "Which day has the largest rise from open to close? Answer with its number.",
        "On which day, by number, did the price rise most from open to close?",
    ),
    "return": (
        "By how many percent did the close change from day {a} to day {b}? Give one decimal.",
        "What is the return from the close of day {a} to that of day {b}, in percent? "
        "Give one decimal.",
    ),
    "drawdown": (
        "What is the maximum drawdown of the closes, in percent? Give one decimal.",
        "By how many percent did the close fall at most from an earlier one? Give one decimal.",
    ),
}


class CandlesTask(DrawnTask):
    """The task family "candles"."""

    name: str = "candles"
    kinds: ClassVar[tuple[str, ...]] = ("up", "gain", "day", "return", "drawdown")

    def draw(self, dice: Dice, difficulty: int) -> Drawn:
        kind = dice.pick(self.kinds)
        n, tick = DAYS[difficulty - 1], dice.pick((2, 5, 10, 20))
        bodies, best = _bodies(dice, n, difficulty)
        candles = _candles(dice, bodies, tick, difficulty)
        first, last = sorted(dice.sample(range(n), 2))
        closes = [candle["close"] for candle in candles]
        made = {
            "up": lambda: sum(body > 0 for body in bodies),
            "gain": lambda: max(bodies) * tick / _parts(difficulty),
            "day": lambda: best + 1,
            "return": lambda: round((closes[last] / closes[first] - 1) * 100, 1),
            "drawdown": lambda: round(_drawdown(closes), 1),
        }
        metadata = {"kind": kind, "candles": candles, "days": [first, last], "tick": tick}
        metadata["tolerance"] = _tolerance(kind, tick, min(closes))
        palette = dice.pick(LOOKS)
        picture = _draw(dice, candles, tick, palette, difficulty)
        names = ("Green", "red") if palette is LOOKS[0] else ("Blue", "orange")
        legend = f"{names[0]} candles rose, {names[1]} ones fell."
        asked = dice.pick(TEMPLATES[kind]).format(a=first + 1, b=last + 1)
        return Drawn(picture, f"{legend} {asked}", plain(made[kind]()), metadata)

    def reference_answer(self, metadata: dict[str, Any]) -> str:
        """From the four prices of every day; the drawdown over all pairs of days."""
        days = metadata["candles"]
        gains = [day["close"] - day["open"] for day in days]
        closes = [day["close"] for day in days]
        if metadata["kind"] == "up":
            return str(len([gain for gain in gains if gain > 0]))
        if metadata["kind"] == "gain":
            return plain(max(gains))
        if metadata["kind"] == "day":
            return str(gains.index(max(gains)) + 1)
        if metadata["kind"] == "return":
            first, last = metadata["days"]
            return plain(round((closes[last] / closes[first] - 1) * 100, 1))
        falls = [1 - b / a for i, a in enumerate(closes) for b in closes[i:]]
        return plain(round(max(falls) * 100, 1))


def _parts(difficulty: int) -> int:
    """Prices are multiples of this part of a tick."""
    return (1, 2, 4, 5, 10)[difficulty - 1]


def _bodies(dice: Dice, n: int, difficulty: int) -> tuple[list[int], int]:
    """Close less open of each day on the grain, never 0, and the one day that rises most."""
    most = 3 * _parts(difficulty)
    ups = dice.between(1, n - 1)
    rising = dice.sample(range(n), ups)
    best, top = dice.pick(rising), dice.between(2, most)
    return [
        top if i == best else dice.between(1, top - 1) if i in rising else -dice.between(1, most)
        for i in range(n)
    ], best


def _candles(dice: Dice, bodies: list[int], tick: int, difficulty: int) -> list[dict[str, float]]:
    """Each day opens near the last close, or anywhere where it would leave the range from there."""
    parts = _parts(difficulty)
    low, high = 10 * parts, dice.between(14, 20) * parts
    close = dice.between(low, high)
    candles = []
    for body in bodies:
        start = close + dice.between(-parts, parts)
        lowest, highest = low + max(0, -body), high - max(0, body)
        if not lowest <= start <= highest:
            start = dice.between(lowest, highest)
        close = start + body
        wicks = [dice.uniform(0, parts * 0.8) for _ in range(2)]
        prices = (start, max(start, close) + wicks[0], min(start, close) - wicks[1], close)
        names = ("open", "high", "low", "close")
        candles.append({k: p * tick / parts for k, p in zip(names, prices, strict=True)})
    return candles


def _drawdown(closes: list[float]) -> float:
    peak, worst = closes[0], 0.0
    for close in closes:
        peak = max(peak, close)
        worst = max(worst, (peak - close) / peak * 100)
    return worst


def _tolerance(kind: str, tick: float, lowest: float) -> float:
    if kind in ("up", "day"):
        return 0.0
    error = tick / 10
    return round(error if kind == "gain" else error / lowest * 100, 4)


def _draw(
    dice: Dice, candles: list[dict[str, float]], tick: int, palette: Any, difficulty: int
) -> Any:
    canvas, ink = Canvas(WIDTH, HEIGHT, dice.pick(PAPERS)), dice.pick(INKS)
    size = (13, 12, 11, 10, 9)[difficulty - 1]
    left, right, top, bottom = 44.0, WIDTH - 10.0, 14.0, HEIGHT - 34.0
    low = int(min(day["low"] for day in candles) // tick)
    high = int(max(day["high"] for day in candles) // tick) + 1

    def y(price: float) -> float:
        return bottom - (price / tick - low) / (high - low) * (bottom - top)

    for mark in range(low, high + 1):
        if difficulty < 5:
            canvas.line([(left, y(mark * tick)), (right, y(mark * tick))], (212, 215, 220), 0.7)
        canvas.line([(left - 4, y(mark * tick)), (left, y(mark * tick))], ink, 1)
        canvas.text((left - 7, y(mark * tick)), plain(mark * tick), size, ink, "rm")
    canvas.line([(left, top), (left, bottom), (right, bottom)], ink, 1)
    step = (right - left) / len(candles)
    half = step * dice.uniform(0.22, 0.36)
    for i, day in enumerate(candles):
        x, colour = left + step * (i + 0.5), palette[day["close"] < day["open"]]
        canvas.line([(x, y(day["high"])), (x, y(day["low"]))], colour, 1.3)
        canvas.box([x - half, y(day["open"]), x + half, y(day["close"])], colour)
        canvas.text((x, bottom + 11), str(i + 1), size, ink)
    canvas.text(((left + right) / 2, HEIGHT - 9), "day", size, ink)
    return canvas.finish(dice, (0, 0, 2, 4, 7)[difficulty - 1])
