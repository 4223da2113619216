"""The integers that describe a batch to the kernels."""

from __future__ import annotations

import itertools

import pytest
import torch

from foveal.kernels.decode_attention import PREFIX_SPLITS, rows_per_chunk
from foveal.rollout.tables import BatchTables
from foveal.types import PAGE
from tests.decoding import request, sequence

CPU = torch.device("cpu")
ROWS, PAGES = 24, 20
CHUNK = rows_per_chunk(7, 128)
"""9 rows."""


def filled(sequences, bucket=ROWS):
    tables = BatchTables(ROWS, PAGES, 7, 128, CPU)
    # Of a batch before, nothing may remain.
    old = request(5 * PAGE, list(range(90, 95)), 77)
    tables.fill([sequence(old, 3 * PAGE, [80, 81, 82, 83], 99) for _ in range(ROWS)], ROWS)
    tables.fill(sequences, bucket)
    return tables


def batch():
    """Groups of 18 rows (two chunks), 1 and 2, the last two of equal but different requests."""
    prompts = [request(3 * PAGE + 1, [1, 2, 3, 4], 50), request(1, [5], 1), request(1, [6], 1)]
    rows = []
    for of, count in zip(prompts, (18, 1, 2), strict=True):
        for _ in range(count):
            place = len(rows)
            rows.append(sequence(of, place, [10 + place], 100 + place))
    return rows


def test_rows_of_the_batch_and_padding():
    sequences = batch()
    tables = filled(sequences)
    rows, t = tables.rows(ROWS), tables.on_device
    count, padding = len(sequences), ROWS - len(sequences)
    assert t["token"].tolist() == [100 + r for r in range(count)] + [0] * padding
    assert rows.cached_B.tolist() == [*range(count)] + [0] * padding
    assert rows.prompt_length_B.tolist() == [193] * 18 + [1] * 3 + [0] * padding
    assert t["base_position"].tolist() == [50] * 18 + [1] * 3 + [0] * padding
    assert rows.suffix_table_BP[:, 0].tolist() == [10 + r for r in range(count)] + [0] * padding
    assert not rows.suffix_table_BP[:, 1:].any()
    assert rows.prefix_parts_B[count:].tolist() == [0] * padding


def test_a_row_of_several_pages_keeps_their_order():
    tables = filled([sequence(request(1, [3]), 2 * PAGE + 5, [9, 4, 7])], bucket=1)
    assert tables.rows(1).suffix_table_BP.tolist() == [[9, 4, 7] + [0] * (PAGES - 3)]


def test_chunks_hold_rows_of_one_request_and_each_row_once():
    sequences = batch()
    rows = filled(sequences).rows(ROWS)
    chunks = [[r for r in chunk if r >= 0] for chunk in rows.chunk_rows_XR.tolist()]
    assert chunks[:4] == [[*range(9)], [*range(9, 18)], [18], [19, 20]]
    assert not any(chunks[4:])
    assert rows.chunk_rows_XR.shape[1] == CHUNK
    assert rows.chunk_length_X.tolist() == [193, 193, 1, 1] + [0] * (ROWS - 4)
    for chunk, pages in enumerate(([1, 2, 3, 4], [1, 2, 3, 4], [5], [6])):
        assert rows.chunk_table_XP[chunk, : len(pages)].tolist() == pages


@pytest.mark.parametrize("length", [1, PAGE - 1, PAGE, PAGE + 1, 9 * PAGE, 19 * PAGE + 3])
@pytest.mark.parametrize("prompts", [1, 5, ROWS])
def test_items_cover_each_prompt_exactly_once_from_page_to_page(length, prompts):
    pages = list(range(1, -(-length // PAGE) + 1))
    sequences = [sequence(request(length, pages), 0, [50]) for _ in range(prompts)]
    rows = filled(sequences).rows(ROWS)
    items = rows.item_I4[: int(rows.item_count)].tolist()
    for chunk in range(prompts):
        mine = [item for item in items if item[0] == chunk]
        assert [slot for *_, slot in mine] == list(range(len(mine)))
        assert mine[0][1] == 0 and mine[-1][2] == length
        assert all(a[2] == b[1] for a, b in itertools.pairwise(mine))
        assert all(start < end and start % PAGE == 0 for _, start, end, _ in mine)
        assert rows.prefix_parts_B[chunk] == len(mine) <= PREFIX_SPLITS
    assert {item[0] for item in items} == set(range(prompts))
    if prompts == 1:
        assert len(items) >= min(len(pages), PREFIX_SPLITS // 2), "a long prompt is divided"


def test_an_empty_batch_has_no_items():
    rows = filled([], bucket=ROWS).rows(ROWS)
    assert rows.item_count.tolist() == [0]
    assert not rows.cached_B.any() and not rows.prompt_length_B.any()
    assert (rows.chunk_rows_XR == -1).all()


def test_tables_stay_where_captured_graphs_look_for_them():
    tables = BatchTables(ROWS, PAGES, 7, 128, CPU)
    before = {name: t.data_ptr() for name, t in tables.on_device.items()}
    tables.fill(batch(), ROWS)
    assert before == {name: t.data_ptr() for name, t in tables.on_device.items()}
    assert all(address % 16 == 0 for address in before.values())
    for part in (tables.rows(4).cached_B, tables.rows(ROWS).cached_B):
        assert part.data_ptr() == before["cached"]
