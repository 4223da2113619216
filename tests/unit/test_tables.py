"""Tables in documents are those that the measurements give."""

from __future__ import annotations

import importlib.util
import json

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


def test_a_measurement_that_is_not_there_is_not_invented(tmp_path, monkeypatch):
    module = load_tables()
    monkeypatch.setattr(module, "RESULTS", tmp_path)
    block = "<!-- table: rollout -->\n{}\n<!-- end -->"
    assert module.render(block.format("old")) == block.format(module.NOT_MEASURED)
    record = {
        "case": "a case",
        "system": "engine",
        "seconds": 12.34,
        "tokens_per_second": 3456.7,
        "ratio_to_floor": None,
        "peak_gib": 1.26,
        "logprob_difference": {"mean": 0.00123, "max": 0.0456, "tokens": 9},
        "command": "a command",
        "card": "a card",
        "versions": {"torch": "1.0"},
        "commit": "abc",
    }
    (tmp_path / "rollout.json").write_text(json.dumps([record, record]))
    table = module.render(block.format("old"))
    assert "| a case | engine | 12.3 | 3,457 | - | 1.3 | 1.2e-03 / 4.6e-02 |" in table
    assert table.count("`a command` on a card, torch 1.0, commit abc.") == 1


def test_the_table_of_cpu_rollouts_takes_rates_from_the_process_time(tmp_path, monkeypatch):
    module = load_tables()
    monkeypatch.setattr(module, "RESULTS", tmp_path)
    record = {
        "case": "a case",
        "system": "engine",
        "process_seconds": 0.256,
        "seconds": 1.234,
        "tokens_per_second": 5678.9,
        "times_transformers": 2.345,
        "command": "a command",
        "card": "CPU (2 cores)",
        "versions": {"torch": "1.0"},
        "commit": "abc",
    }
    (tmp_path / "cpu_rollout.json").write_text(json.dumps([record]))
    table = module.render("<!-- table: cpu_rollout -->\nold\n<!-- end -->")
    assert "| a case | engine | 0.26 | 1.23 | 5,679 | 2.35 |" in table
    assert "`a command` on CPU (2 cores), torch 1.0, commit abc." in table


def test_tables_of_training_show_what_is_known_and_a_dash_for_the_rest(tmp_path, monkeypatch):
    module = load_tables()
    monkeypatch.setattr(module, "RESULTS", tmp_path)
    origin = {"command": "a command", "card": "a card", "versions": {"torch": "1"}, "commit": "c"}
    common = {"case": "a case", "system": "s", "tokens_per_second": 5678.9, "peak_gib": 12.34}
    train_pass = {
        "seconds": 4.321,
        "useful_tflop": 1234.5,
        "share_useful": 0.456,
        "share_done": None,
        "breakdown": {"pictures": 0.256},
    }
    step = {"seconds": 9.87, "breakdown": {"time/rollout": 6.54}, "allocated_gib": None}
    for name, own, row in (
        ("train_pass", train_pass, "| a case | s | 4.32 | 5,679 | 1,234 | 46% | - | 12.3 | 0.26 |"),
        ("step", step, "| a case | s | 9.9 | 6.5 | 3.3 | 5,679 | 12.3 | - |"),
    ):
        (tmp_path / f"{name}.json").write_text(json.dumps([{**common, **own, **origin}]))
        table = module.render(f"<!-- table: {name} -->\nold\n<!-- end -->")
        assert row in table and "`a command` on a card, torch 1, commit c." in table
