"""Tables in documents are those that the measurements give."""

from __future__ import annotations

import importlib.util

from tests.conftest import REPOSITORY


def load_tables():
    path = REPOSITORY / "benchmarks" / "tables.py"
    spec = importlib.util.spec_from_file_location("tables", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_document_shows_what_was_measured():
    module = load_tables()
    for name in module.DOCUMENTS:
        text = (REPOSITORY / name).read_text()
        assert "<!-- table:" in text
        assert module.render(text) == text, f"{name}: run python benchmarks/tables.py"


def test_a_changed_measurement_changes_the_table(tmp_path, monkeypatch):
    module = load_tables()
    original = (module.RESULTS / "demo.json").read_text()
    (tmp_path / "demo.json").write_text(original.replace('"seed 0"', '"seed 9"'))
    monkeypatch.setattr(module, "RESULTS", tmp_path)
    text = (REPOSITORY / "README.md").read_text()
    assert module.render(text) != text
