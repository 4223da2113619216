"""The contact sheet of the tasks, from the command line."""

import sys

import pytest
from PIL import Image
from typer.testing import CliRunner

from foveal.cli import app
from foveal.tasks import TASKS, get_task, missing_package
from foveal.tasks.sheet import write_sheet


def _run(*arguments):
    result = CliRunner().invoke(app, ["tasks", *map(str, arguments)])
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


def test_the_sheet_has_a_cell_for_each_task_and_difficulty_and_stays_small(tmp_path):
    file = tmp_path / "new" / "sheet.png"
    drawn = [task for task in TASKS.values() if missing_package(task) is None]
    assert f"{2 * len(drawn)} samples" in _run("sheet", "--out", file).replace("\n", " ")
    assert file.stat().st_size < 400_000
    with Image.open(file) as sheet:
        assert sheet.mode == "P"
        whole = sheet.size
    _run("sheet", "--out", file, "--task", "stars", "--difficulty", 1)
    with Image.open(file) as one:
        assert one.width == whole[0] and one.height < whole[1]
        # The dark sky is there, and not only its caption.
        dark = one.convert("L").histogram()
    assert sum(dark[:60]) > 20_000


def test_colours_survive_the_palette(tmp_path):
    write_sheet(tmp_path / "a.png", [get_task("shapes").generate(s, 4) for s in range(8)])
    with Image.open(tmp_path / "a.png") as sheet:
        seen = {colour for _, colour in sheet.convert("RGB").getcolors(1 << 20)}
    for wanted in ((214, 40, 40), (240, 205, 40), (45, 85, 220)):
        assert min(sum(abs(a - b) for a, b in zip(wanted, c, strict=True)) for c in seen) < 45


def test_without_rdkit_the_sheet_leaves_molecules_out_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("foveal.tasks.find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "rdkit", None)
    said = _run("sheet", "--out", tmp_path / "a.png", "--difficulty", 1)
    assert "left out: molecules, which needs rdkit (pip install rdkit)" in said
    asked = ["tasks", "sheet", "--out", str(tmp_path / "b.png"), "--task", "molecules"]
    refused = CliRunner().invoke(app, asked)
    assert refused.exit_code == 2 and "install it with" in refused.output


def test_tasks_are_listed():
    assert _run("list").split() == list(TASKS)


def test_a_wrong_path_or_no_rows_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"1 rows for .*sheet\.jpg"):
        write_sheet(tmp_path / "sheet.jpg", [get_task("shapes").generate(0)])
    with pytest.raises(ValueError, match="0 rows"):
        write_sheet(tmp_path / "sheet.png", [])


def test_captions_keep_their_accents(tmp_path):
    row, captions = get_task("stars").generate(0, 1), []
    for text in ("où est la flèche", "oü est la flêche"):
        write_sheet(tmp_path / "sheet.png", [{**row, "problem": f"<image>{text}"}])
        captions.append((tmp_path / "sheet.png").read_bytes())
    # Letters that a font lacks all look the same.
    assert captions[0] != captions[1]
