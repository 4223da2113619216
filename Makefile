# Two commands do everything: `make demo` and `make test`. Both set up .venv first.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin

.PHONY: demo test check tiny-model clean

demo: $(VENV)/demo
	$(RUN)/foveal demo

test: check
	$(RUN)/pytest -n 2

check: $(VENV)/dev
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/pyright --pythonpath $(RUN)/python
	$(RUN)/lint-imports

tiny-model: $(VENV)/demo
	$(RUN)/python examples/tiny_model/build.py

$(VENV)/demo: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(RUN)/python -m pip install --quiet --upgrade pip
	$(RUN)/python -m pip install --quiet -e .
	touch $@

$(VENV)/dev: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(RUN)/python -m pip install --quiet --upgrade pip
	$(RUN)/python -m pip install --quiet -e '.[dev]'
	touch $@ $(VENV)/demo

clean:
	rm -rf $(VENV) runs build dist *.egg-info
