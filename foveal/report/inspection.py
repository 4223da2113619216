"""What ``foveal data inspect`` found: tables on the screen and one page for the browser."""

from __future__ import annotations

import base64
import html
import io
from collections import Counter
from pathlib import Path
from typing import Any

from PIL import Image
from rich.table import Table
from rich.text import Text

from foveal.data import NormalRow, RowSource
from foveal.inspection import Finding, Inspection, constant_answer, quartiles, question_text

MOST_SHOWN = 8
THUMBNAIL_PX = 160
ROWS_ON_PAGE = 24
_ROW_NUMBERS = 12

_STYLE = """
body { font: 15px/1.4 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0 } td { padding: .2rem .8rem .2rem 0 }
td { vertical-align: top; border-top: 1px solid #ddd }
article > div { overflow-wrap: anywhere }
article { display: flex; gap: 1rem; border-top: 1px solid #ddd; padding: .8rem 0 }
pre { white-space: pre-wrap; margin: 0; font: inherit } .error { color: #b00020 }
.warning { color: #8a5a00 } .number { color: #888 }
"""


def facts(seen: Inspection) -> list[tuple[str, str]]:
    """What is in the data, a line each."""
    lines = [("rows", str(seen.rows)), ("formats", listed(seen.formats))]
    for name, kinds in seen.columns.items():
        lines.append((f"column {name}", listed(kinds)))
    for task, answers in sorted(seen.answers.items()):
        answer, share = constant_answer(answers)
        said = f"{answers.total()}, {len(answers)} different; most frequent '{_cut(answer, 60)}'"
        lines.append((f"answers {task}".strip(), f"{said} ({share:.0%})"))
    if seen.pictures_per_row:
        lines.append(("pictures a row", listed(seen.pictures_per_row)))
    if seen.stored:
        lines.append(("stored as", listed(seen.stored)))
    if seen.broken or seen.missing:
        lines.append(("rows without a picture", f"{seen.broken} unusable, {seen.missing} missing"))
    if seen.sizes:
        lines.append(("width, pixels", spread([width for width, _ in seen.sizes])))
        lines.append(("height, pixels", spread([height for _, height in seen.sizes])))
    if seen.characters:
        lines.append(("text, characters", spread(seen.characters)))
    if seen.tokens:
        lines.append(("prompt, tokens", spread(seen.tokens)))
    if seen.picture_tokens:
        lines.append(("picture, tokens", spread(seen.picture_tokens)))
    if seen.tokens and seen.max_prompt_length is not None:
        bound = seen.max_prompt_length
        lines.append((f"prompts over {bound} tokens", f"{seen.too_long} of {len(seen.tokens)}"))
    return lines


def listed(counts: Counter[Any]) -> str:
    """``a (3), b (1)``: the most frequent, and how many others."""
    shown = ", ".join(f"{name} ({count})" for name, count in counts.most_common(MOST_SHOWN))
    more = len(counts) - MOST_SHOWN
    return f"{shown} and {more} more" if more > 0 else shown


def spread(values: list[int]) -> str:
    low, middle, high, most = quartiles(values)
    return f"{low} to {most}, median {middle}, 95 % up to {high}"


def facts_table(seen: Inspection) -> Table:
    """``facts`` as a table."""
    table = Table(title=Text(seen.name), title_justify="left", show_header=False)
    for name, value in facts(seen):
        table.add_row(Text(name), Text(value))
    return table


def findings_table(seen: Inspection, limit: int | None = 20) -> Table:
    """Errors first; findings of one kind and reason share a line.

    Args:
        seen: the inspection.
        limit: most lines; None for all.
    """
    table = Table("", "rows", "finding", title="Findings", title_justify="left")
    lines = grouped(seen.findings)
    for finding, rows in lines[:limit]:
        style = "red" if finding.is_error else "yellow"
        table.add_row(Text(_severity(finding)), Text(_numbers(rows)), Text(finding.reason))
        table.rows[-1].style = style
    hidden = len(lines) - len(lines[:limit])
    if hidden:
        table.caption = f"and {hidden} more lines; --all shows them"
    return table


def grouped(findings: list[Finding]) -> list[tuple[Finding, list[int]]]:
    """Findings with the same words together, with the numbers of their rows; errors first."""
    found: dict[tuple[bool, str, str], tuple[Finding, list[int]]] = {}
    for finding in findings:
        key = (not finding.is_error, finding.kind, finding.reason)
        _, rows = found.setdefault(key, (finding, []))
        if finding.row is not None:
            rows.append(finding.row)
    return [found[key] for key in sorted(found, key=lambda key: key[0])]


def _severity(finding: Finding) -> str:
    return "error" if finding.is_error else "warning"


def _numbers(rows: list[int]) -> str:
    if not rows:
        return "all"
    shown = ", ".join(map(str, rows[:_ROW_NUMBERS]))
    more = len(rows) - _ROW_NUMBERS
    return f"{shown} and {more} more" if more > 0 else shown


def sample_table(source: RowSource, indices: list[int]) -> Table:
    """Some rows as the model would be asked; rows that cannot be read are left out."""
    table = Table("row", "question", "answer", title="Some rows", title_justify="left")
    for index, row in _readable(source, indices):
        question, answer = _cut(question_text(row)), _cut(row.answer or "-")
        table.add_row(str(index), Text(question), Text(answer))
    return table


def evenly(rows: int, count: int) -> list[int]:
    """``count`` row numbers over the whole data set, from the first to the last."""
    if rows <= count:
        return list(range(rows))
    return [place * (rows - 1) // (count - 1) for place in range(count)]


def write_page(path: Path, seen: Inspection, source: RowSource) -> None:
    """Write one HTML file that needs no other: the facts, the findings, and rows with pictures.

    Rows with a finding come first, then some from all over the data set.
    """
    flagged = [found.row for found in seen.findings if found.row is not None]
    # Half the page at most: rows that cannot be read have no picture to show.
    flagged = list(dict.fromkeys(flagged))[: ROWS_ON_PAGE // 2]
    others = evenly(seen.rows, ROWS_ON_PAGE - len(flagged))
    chosen = list(dict.fromkeys([*flagged, *others]))
    reasons: dict[int | None, list[Finding]] = {}
    for found in seen.findings:
        reasons.setdefault(found.row, []).append(found)
    rows = "".join(
        _article(index, _row_or_none(source, index), reasons.get(index, [])) for index in chosen
    )
    lines = "".join(
        f"<tr><td>{_escaped(a)}</td><td>{_escaped(b)}</td></tr>" for a, b in facts(seen)
    )
    found = "".join(
        f"<tr class={_severity(one)}><td>{_severity(one)}</td><td>{_numbers(numbers)}</td>"
        f"<td>{_escaped(one.reason)}</td></tr>"
        for one, numbers in grouped(seen.findings)
    )
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{_escaped(seen.name)}'
        f"</title><style>{_STYLE}</style><h1>{_escaped(seen.name)}</h1><table>{lines}</table>"
        f"<h2>Findings</h2><table>{found or '<tr><td>none</td></tr>'}</table>"
        f"<h2>Rows</h2>{rows}</html>\n"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(page, encoding="utf-8", errors="replace")
    part.replace(path)


def _article(index: int, row: NormalRow | None, findings: list[Finding]) -> str:
    pictures = "".join(_thumbnail(picture) for picture in row.images) if row else ""
    text = _escaped(question_text(row)) if row else "(cannot be read)"
    answer = _escaped(row.answer or "") if row else ""
    notes = "".join(
        f"<p class={_severity(found)}>{_escaped(found.reason)}</p>" for found in findings
    )
    return (
        f"<article><div class=number>{index}</div><div>{pictures}</div>"
        f"<div><pre>{text}</pre><p><b>{answer}</b></p>{notes}</div></article>"
    )


def _thumbnail(picture: Image.Image) -> str:
    small = picture.copy()
    small.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    stored = io.BytesIO()
    small.save(stored, "JPEG", quality=70)
    data = base64.b64encode(stored.getvalue()).decode("ascii")
    size = f"{picture.width} x {picture.height}"
    return f'<img src="data:image/jpeg;base64,{data}" alt="{size} pixels" title="{size}">'


def _readable(source: RowSource, indices: list[int]) -> list[tuple[int, NormalRow]]:
    read = [(index, _row_or_none(source, index)) for index in indices]
    return [(index, row) for index, row in read if row is not None]


def _row_or_none(source: RowSource, index: int) -> NormalRow | None:
    try:
        return source[index]
    except (TypeError, ValueError):
        return None  # it is among the findings


def _cut(text: str, length: int = 120) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."


def _escaped(text: str) -> str:
    return html.escape(text)
