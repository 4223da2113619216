"""What stands in the tables: income statements, balance sheets, invoices and timetables."""

from __future__ import annotations

from dataclasses import dataclass, field

from foveal.tasks.dice import Dice

Value = int | float | str
FIRMS = ("Arbor", "Belmont", "Cedar", "Delphi", "Ember", "Fjord", "Granite", "Harbour", "Iris")
ENDINGS = ("Ltd", "Inc", "plc", "Group", "AG")


@dataclass(slots=True)
class Row:
    label: str
    values: list[Value]
    """One for each column after the label."""
    style: str = "item"
    """``item``, ``total`` or ``head`` (a heading, without values)."""


@dataclass(slots=True)
class Table:
    form: str
    title: str
    columns: list[str]
    """The label's column first."""
    rows: list[Row]
    asked_columns: list[str]
    """Columns that questions are about; the others distract."""
    things: dict[str, list[str]] = field(default_factory=dict)
    """"expense" -> labels of the rows that are one; questions about the largest use it."""
    ratios: list[tuple[str, str, str, bool]] = field(default_factory=list)
    """Name, row above, row below, in percent."""
    decimals: int = 0

    def at(self, label: str, column: str) -> Value:
        row = next(row for row in self.rows if row.label == label)
        return row.values[self.columns.index(column) - 1]

    def labels(self, *styles: str) -> list[str]:
        return [row.label for row in self.rows if row.style in styles]


def _years(dice: Dice, difficulty: int) -> list[str]:
    last = dice.between(2016, 2024)
    years = [str(last - i) for i in range((2, 2, 3, 3, 4)[difficulty - 1])]
    return years[::-1] if dice.below(2) else years


def _size(dice: Dice, difficulty: int) -> float:
    low = (200, 800, 4000, 20000, 90000)[difficulty - 1]
    return dice.uniform(low, 6 * low)


def _firm(dice: Dice) -> str:
    return f"{dice.pick(FIRMS)} {dice.pick(ENDINGS)}"


def income(dice: Dice, difficulty: int) -> Table:
    """Revenue less costs, with gross, operating and net profit; costs are negative."""
    years = _years(dice, difficulty)
    pool = ("Marketing", "Administration", "Research", "Depreciation", "Salaries", "Rent")
    costs = dice.sample(pool, (2, 3, 4, 4, 5)[difficulty - 1])
    lines: dict[str, list[Value]] = {}
    base = _size(dice, difficulty)
    shares = [dice.uniform(0.03, 0.16) for _ in costs]
    for _ in years:
        base *= dice.uniform(0.8, 1.3)
        revenue = round(base)
        sales = -round(base * dice.uniform(0.3, 0.6))
        spent = [-max(1, round(base * share * dice.uniform(0.7, 1.4))) for share in shares]
        operating = revenue + sales + sum(spent)
        interest = -max(1, round(base * dice.uniform(0.01, 0.06)))
        tax = -max(1, round(abs(operating) * dice.uniform(0.1, 0.3)))
        named = {"Revenue": revenue, "Cost of sales": sales, "Gross profit": revenue + sales}
        named |= dict(zip(costs, spent, strict=True)) | {"Operating profit": operating}
        named |= {"Interest": interest, "Income tax": tax, "Net profit": operating + interest + tax}
        for label, value in named.items():
            lines.setdefault(label, []).append(value)
    totals = ("Gross profit", "Operating profit", "Net profit")
    rows = [Row(label, v, "total" if label in totals else "item") for label, v in lines.items()]
    return Table(
        "income",
        f"{_firm(dice)}: income statement",
        ["", *years],
        rows,
        years,
        {"cost other than the cost of sales": [*costs, "Interest", "Income tax"]},
        [
            ("gross margin (gross profit as a share of revenue)", "Gross profit", "Revenue", True),
            ("net margin (net profit as a share of revenue)", "Net profit", "Revenue", True),
            ("share of revenue spent on the cost of sales", "Cost of sales", "Revenue", True),
        ],
    )


_ASSETS = {
    "current assets": ("Cash", "Receivables", "Inventories", "Prepaid expenses"),
    "fixed assets": ("Property", "Equipment", "Intangibles", "Goodwill"),
}
_DEBTS = {
    "current liabilities": ("Trade payables", "Short-term loans", "Tax due", "Accruals"),
    "long-term liabilities": ("Long-term debt", "Provisions", "Leases"),
}


def balance(dice: Dice, difficulty: int) -> Table:
    """Both sides of a balance sheet; equity, which may be negative, makes up the difference."""
    years = _years(dice, min(difficulty, 4))
    size = _size(dice, difficulty)
    each = (2, 2, 3, 3, 4)[difficulty - 1]
    rows: list[Row] = []
    things: dict[str, list[str]] = {}
    sums: dict[str, list[int]] = {}
    for groups, name, scale in ((_ASSETS, "assets", 1.0), (_DEBTS, "liabilities", 0.75)):
        sides = []
        for group, pool in groups.items():
            labels = dice.sample(pool, min(each, len(pool)))
            sides.append([0] * len(years))
            for label in labels:
                first = size * scale * dice.uniform(0.1, 0.5)
                values = [max(2, round(first * dice.uniform(0.7, 1.4))) for _ in years]
                rows.append(Row(label, list(values)))
                sides[-1] = [a + b for a, b in zip(sides[-1], values, strict=True)]
                things.setdefault("asset" if scale == 1 else "liability", []).append(label)
            rows.append(Row(f"Total {group}", list(sides[-1]), "total"))
        sums[name] = [a + b for a, b in zip(*sides, strict=True)]
        rows.append(Row(f"Total {name}", list(sums[name]), "total"))
    equity = [a - b for a, b in zip(sums["assets"], sums["liabilities"], strict=True)]
    rows.append(Row("Equity", list(equity), "total"))
    current = "Total current assets", "Total current liabilities"
    ratios = [
        ("current ratio (current assets to current liabilities)", *current, False),
        (
            "debt ratio (liabilities as a share of assets)",
            "Total liabilities",
            "Total assets",
            True,
        ),
        (
            "share of fixed assets in all assets",
            "Total fixed assets",
            "Total assets",
            True,
        ),
    ]
    title = f"{_firm(dice)}: balance sheet"
    return Table("balance", title, ["", *years], rows, years, things, ratios)


_GOODS: tuple[str, ...] = (
    "Paper", "Toner", "Desk", "Chair", "Lamp", "Monitor", "Cable", "Keyboard", "Mouse", "Folder",
    "Stapler", "Shelf", "Printer", "Router", "Headset", "Webcam",
)  # fmt: skip


def invoice(dice: Dice, difficulty: int) -> Table:
    """Quantity times unit price for each item."""
    goods = dice.sample(_GOODS, (3, 4, 5, 7, 9)[difficulty - 1])
    rows = []
    for good in goods:
        count = dice.between(1, 6 + 6 * difficulty)
        cents = dice.between(2, 60 * difficulty) * (100, 50, 25, 5, 1)[difficulty - 1]
        rows.append(Row(good, [count, cents / 100, count * cents / 100]))
    columns = ["Item", "Quantity", "Unit price", "Amount"]
    number = dice.between(1000, 99999)
    table = Table("invoice", f"Invoice no. {number}", columns, rows, columns[3:], {"item": goods})
    table.decimals = 2
    return table


_STOPS = (
    "Ashford", "Brook", "Calder", "Dunmore", "Elm Park", "Fairway", "Glenn", "Hilltop", "Inver",
    "Kingsley", "Lakeside", "Mill Lane",
)  # fmt: skip


def timetable(dice: Dice, difficulty: int) -> Table:
    """When each train is at each stop."""
    stops = dice.sample(_STOPS, (3, 4, 5, 7, 9)[difficulty - 1])
    numbers = dice.sample(range(101, 999), (2, 3, 3, 4, 5)[difficulty - 1])
    trains = [f"{dice.pick(('IC', 'RE', 'S'))} {n}" for n in numbers]
    start, columns = dice.between(5 * 60, 9 * 60), []
    longest = dice.below(len(trains))
    for i in range(len(trains)):
        now, column = start, []
        for _ in stops:
            column.append(now)
            now += dice.between(4, 16) + (dice.between(3, 8) if i == longest else 0)
        columns.append(column)
        start += dice.between(17, 95)
    rows: list[Row] = []
    for s, stop in enumerate(stops):
        times: list[Value] = [f"{c[s] // 60:02d}:{c[s] % 60:02d}" for c in columns]
        rows.append(Row(stop, times))
    return Table("timetable", "Departures", ["", *trains], rows, trains, {"train": trains})
