"""Tables of business and travel: income statements, balance sheets, invoices, timetables.

    read        one cell
    total       the sum of some cells, or what the invoice comes to
    difference  of two cells, or the minutes from stop to stop
    growth      from one year to another, in percent
    ratio       current ratio, margins, debt ratio
    largest     the item, cost, asset or liability with the largest amount, or the slowest train

With difficulty rows, columns and digits multiply, sums of the table go missing, columns appear that
nobody asks for, separators and brackets get unusual, text shrinks and grain is added.
``reference_answer`` reads the printed cells.
"""

from __future__ import annotations

from typing import Any, ClassVar

from foveal.tasks.base import Drawn, DrawnTask, plain
from foveal.tasks.dice import Dice
from foveal.tasks.tables.content import Row, Table, balance, income, invoice, timetable
from foveal.tasks.tables.grid import STYLES, Format, draw, printed

FORMS = {"income": income, "balance": balance, "invoice": invoice, "timetable": timetable}
KINDS = {
    "read": ("income", "balance", "invoice", "timetable"),
    "total": ("income", "balance", "invoice"),
    "difference": ("income", "balance", "invoice", "timetable"),
    "growth": ("income", "balance"),
    "ratio": ("income", "balance"),
    "largest": ("income", "balance", "invoice", "timetable"),
}
DIGITS = "Answer with plain digits, without separators of thousands."
PRODUCT = "The amount of an item is its quantity times its unit price."
NEGATIVE = "Numbers in brackets are negative; give a negative answer a minus."

TEMPLATES = {
    "read": (
        "Which number stands in the row {a}, column {c}?",
        "What does the table give for {a} under {c}?",
        "Read the entry of {a} in the column {c}.",
    ),
    "time": ("When is the train {c} at {a}? Answer as printed.",),
    "total": (
        "Add up {names} in the column {c}. What is the sum?",
        "What do {names} come to in the column {c}?",
    ),
    "invoice": ("What is the total of all items?", "What does the whole invoice come to?"),
    "difference": (
        "How much is {a} minus {b} in the column {c}?",
        "In the column {c}, subtract {b} from {a}.",
    ),
    "years": (
        "How much did {a} change from {d} to {c}? A decline is negative.",
        "What is {a} in {c} minus {a} in {d}?",
    ),
    "minutes": (
        "How many minutes does the train {c} take from {b} to {a}?",
        "The train {c}: how many minutes pass between {b} and {a}?",
    ),
    "growth": (
        "By how many percent did {a} grow from {d} to {c}? A decline is negative. One decimal.",
        "What is the growth of {a} from {d} to {c}, in percent? A decline is negative. "
        "Give one decimal.",
    ),
    "percent": ("What is the {ratio} in {c}, in percent? Give one decimal.",),
    "ratio": ("What is the {ratio} in {c}? Give two decimals.",),
    "largest": (
        "Which {thing} is the largest in the column {c}?",
        "Name the {thing} with the largest amount in the column {c}, whatever its sign.",
    ),
    "slowest": ("Which train takes longest from {b} to {a}?",),
}


class TablesTask(DrawnTask):
    """The task family "tables"."""

    name: str = "tables"
    kinds: ClassVar[tuple[str, ...]] = tuple(KINDS)

    def draw(self, dice: Dice, difficulty: int) -> Drawn:
        kind = dice.pick(self.kinds)
        form = _format(dice, difficulty)
        asked: dict[str, Any] | None = None
        # A profit may vanish or change its sign, and two costs may be equal: then another table.
        while asked is None:
            table = FORMS[dice.pick(KINDS[kind])](dice, difficulty)
            asked = _ask(dice, table, kind, difficulty)
        answer, tolerance = asked.pop("answer"), asked.pop("tolerance", 0.0)
        _distract(dice, table, asked, difficulty)
        cells = printed(table, form)
        metadata = {"kind": kind, "form": table.form, "columns": table.columns}
        metadata |= {"labels": [row.label for row in table.rows], "cells": cells}
        metadata |= {"group": form.group, "point": form.point, **asked, "tolerance": tolerance}
        picture = draw(dice, table, cells, _note(dice, table, form), difficulty)
        return Drawn(picture, _question(dice, metadata), answer, metadata)

    def reference_answer(self, metadata: dict[str, Any]) -> str:
        """From the cells as printed; an invoice's amounts from quantity and price."""
        if metadata["form"] == "timetable":
            return _timetable_answer(metadata)
        values = [_read_cell(metadata, *place) for place in metadata["asked"]]
        kind = metadata["kind"]
        if kind == "largest":
            sizes = [abs(value) for value in values]
            return metadata["asked"][sizes.index(max(sizes))][0]
        if kind == "growth":
            return plain(round((values[0] / values[1] - 1) * 100, 1))
        if kind == "ratio":
            share = abs(values[0]) / abs(values[1]) * (1 if values[0] >= 0 else metadata["sign"])
            return plain(round(share * 100, 1) if metadata["percent"] else round(share, 2))
        return plain(values[0] - values[1] if kind == "difference" else sum(values))


def _read_cell(metadata: dict[str, Any], label: str, column: str) -> float:
    form = Format(metadata["group"], metadata["point"], brackets=True)
    row = metadata["cells"][metadata["labels"].index(label)]
    shown = metadata["columns"][1:]
    if column in shown:
        return form.value(row[shown.index(column)])
    return form.value(row[shown.index("Quantity")]) * form.value(row[shown.index("Unit price")])


def _timetable_answer(metadata: dict[str, Any]) -> str:
    def minutes(label: str, column: str) -> int:
        hours, rest = cell(label, column).split(":")
        return int(hours) * 60 + int(rest)

    def cell(label: str, column: str) -> str:
        row = metadata["cells"][metadata["labels"].index(label)]
        return row[metadata["columns"].index(column) - 1]

    asked = metadata["asked"]
    if metadata["kind"] == "read":
        return cell(*asked[0])
    pairs = zip(asked[::2], asked[1::2], strict=True)
    taken = {last[1]: minutes(*last) - minutes(*first) for last, first in pairs}
    if metadata["kind"] == "difference":
        return str(next(iter(taken.values())))
    return max(taken, key=lambda train: taken[train])


def _format(dice: Dice, difficulty: int) -> Format:
    group, point = dice.pick(STYLES[: 2 + difficulty // 2 + (difficulty > 3)])
    return Format(group, point, brackets=difficulty > 1 and dice.below(3) > 0)


def _ask(dice: Dice, table: Table, kind: str, difficulty: int) -> dict[str, Any] | None:
    """What is asked (cells as label and column), and the answer; None if the table allows none."""
    if table.form == "timetable":
        return _ask_timetable(dice, table, kind)
    column = dice.pick(table.asked_columns)
    items = table.labels("item", "total") if kind in ("read", "growth") else table.labels("item")
    if kind == "read":
        label = dice.pick(items)
        return {"asked": [[label, column]], "answer": _said(table.at(label, column))}
    if kind == "growth":
        return _ask_growth(dice, table, items)
    if kind == "ratio":
        return _ask_ratio(dice, table, column)
    if kind == "largest":
        thing = dice.pick(list(table.things))
        places = [[label, column] for label in table.things[thing]]
        sizes = [abs(float(table.at(*place))) for place in places]
        best = sizes.index(max(sizes))
        if sizes.count(max(sizes)) > 1:
            return None
        return {"asked": places, "thing": thing, "answer": places[best][0]}
    if kind == "total":
        whole = table.form == "invoice" and dice.below(2) == 1
        labels = items if whole else dice.sample(items, min(len(items) - 1, 2 + difficulty // 2))
        values = [float(table.at(label, column)) for label in labels]
        asked = [[label, column] for label in labels]
        return {"asked": asked, "whole": whole, "answer": plain(sum(values))}
    first, second = dice.sample(items, 2)
    places = [[first, column], [second, column]]
    if len(table.asked_columns) > 1 and dice.below(2):
        years = sorted(dice.sample(table.asked_columns, 2))
        places = [[first, years[1]], [first, years[0]]]
    value = float(table.at(*places[0])) - float(table.at(*places[1]))
    return {"asked": places, "answer": plain(value)}


def _said(value: Any) -> str:
    return value if isinstance(value, str) else plain(float(value))


def _ask_growth(dice: Dice, table: Table, items: list[str]) -> dict[str, Any] | None:
    label, years = dice.pick(items), sorted(dice.sample(table.asked_columns, 2))
    old, new = (float(table.at(label, year)) for year in years)
    if old * new <= 0 or abs(old) < 20:
        return None
    growth = round((new / old - 1) * 100, 1)
    asked = [[label, years[1]], [label, years[0]]]
    return {"asked": asked, "answer": plain(growth), "tolerance": 0.1}


def _ask_ratio(dice: Dice, table: Table, column: str) -> dict[str, Any] | None:
    name, above, below, percent = dice.pick(table.ratios)
    over, under = float(table.at(above, column)), float(table.at(below, column))
    sign = 1 if above == "Cost of sales" else -1
    share = over / under if sign < 0 else abs(over / under)
    value = round(share * 100, 1) if percent else round(share, 2)
    facts = {"asked": [[above, column], [below, column]], "ratio": name, "percent": percent}
    return {**facts, "sign": sign, "answer": plain(value), "tolerance": 0.1 if percent else 0.01}


def _ask_timetable(dice: Dice, table: Table, kind: str) -> dict[str, Any] | None:
    train, stops = dice.pick(table.asked_columns), table.labels("item")
    if kind == "read":
        stop = dice.pick(stops)
        return {"asked": [[stop, train]], "answer": str(table.at(stop, train))}
    first, last = sorted(dice.sample(range(len(stops)), 2))
    trains = [train] if kind == "difference" else table.asked_columns
    asked = [[stops[i], name] for name in trains for i in (last, first)]
    facts = {"kind": kind, "asked": asked, "columns": table.columns}
    cells = [[str(value) for value in row.values] for row in table.rows]
    taken = [_minutes(cells[last][i]) - _minutes(cells[first][i]) for i in range(len(cells[0]))]
    if kind == "difference":
        return {"asked": facts["asked"], "answer": str(taken[table.asked_columns.index(train)])}
    if taken.count(max(taken)) > 1:
        return None
    return {"asked": asked, "answer": table.asked_columns[taken.index(max(taken))]}


def _minutes(time: str) -> int:
    hours, minutes = time.split(":")
    return int(hours) * 60 + int(minutes)


def _distract(dice: Dice, table: Table, asked: dict[str, Any], difficulty: int) -> None:
    """Drop sums that can be worked out and add columns that nobody asks for."""
    named = {label for label, _ in asked["asked"]}
    if table.form == "invoice":
        if difficulty > 3 and dice.below(2):
            table.columns.remove("Amount")
            for row in table.rows:
                row.values.pop()
        elif not asked.get("whole"):
            total = sum(float(row.values[-1]) for row in table.rows)
            table.rows.append(Row("Total", ["", "", round(total, 2)], "total"))
    elif difficulty > 2 and table.form == "income" and dice.below(2):
        table.rows[:] = [r for r in table.rows if r.style == "item" or r.label in named]
    if difficulty > 1 and table.form in ("income", "balance") and dice.below(2):
        table.columns.insert(1, "Note")
        for row in table.rows:
            row.values.insert(0, dice.between(1, 30) if row.style == "item" else "")
    if difficulty > 2 and table.form in ("income", "balance") and len(table.columns) < 5:
        table.columns.append("Budget")
        for row in table.rows:
            near = float(row.values[-1]) * dice.uniform(0.8, 1.2)
            row.values.append(round(near))


def _note(dice: Dice, table: Table, form: Format) -> str:
    if table.form == "timetable":
        return dice.pick(("Monday to Friday", "weekends", "valid all year"))
    unit = dice.pick(("euros", "dollars", "pounds"))
    if form.group == ".":
        # A point before three digits would be read as a decimal point.
        return f"in {unit}; 1.000 is one thousand"
    return (
        f"in {unit}" if table.form == "invoice" else dice.pick((f"in {unit}", f"{unit}, thousands"))
    )


def _question(dice: Dice, metadata: dict[str, Any]) -> str:
    kind, asked = metadata["kind"], metadata["asked"]
    train = metadata["form"] == "timetable"
    names = [label for label, _ in asked]
    listed = f"{', '.join(names[:-1])} and {names[-1]}"
    key = kind
    if train:
        key = {"read": "time", "difference": "minutes", "largest": "slowest"}[kind]
    elif kind == "total" and metadata["whole"]:
        key = "invoice"
    elif kind == "difference" and asked[0][0] == asked[1][0]:
        key = "years"
    elif kind == "ratio" and metadata["percent"]:
        key = "percent"
    text = dice.pick(TEMPLATES[key]).format(
        a=names[0],
        b=names[1 % len(names)],
        c=asked[0][1],
        d=asked[-1][1],
        names=listed,
        ratio=metadata.get("ratio", ""),
        thing=metadata.get("thing", ""),
    )
    if not train and "Amount" in text and "Amount" not in metadata["columns"]:
        text = f"{text} {PRODUCT}"
    if train or kind in ("growth", "ratio", "largest"):
        return text
    brackets = any(cell.startswith("(") for row in metadata["cells"] for cell in row)
    return " ".join([text, *([NEGATIVE] if brackets else []), DIGITS])
