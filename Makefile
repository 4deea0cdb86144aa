# Two commands set everything up:  make demo   and   make test
PYTHON ?= python3
BIN := .venv/bin
DEMO := demo

.PHONY: demo test test-slow check format clean

.venv/ready: setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "crossmodal needs Python 3.11 or newer; say which with make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo,captions,export,dev]'
	@touch $@

# Trains on Twemoji, tests on OpenMoji, builds an index and searches it: everything in demo/.
demo: .venv/ready
	rm -rf $(DEMO)
	$(BIN)/crossmodal train emoji out=$(DEMO)/run
	$(BIN)/crossmodal embed $(DEMO)/run --data emoji:openmoji -o $(DEMO)/embeddings
	$(BIN)/crossmodal index build $(DEMO)/embeddings -o $(DEMO)/index
	$(BIN)/crossmodal search $(DEMO)/index "a sad face" -k 10 --grid $(DEMO)/search-sad-face.png
	$(BIN)/crossmodal search $(DEMO)/index "fruit" -k 10 --grid $(DEMO)/search-fruit.png
	$(BIN)/crossmodal search $(DEMO)/index "a vehicle" -k 10 --grid $(DEMO)/search-vehicle.png
	@echo "pictures: $(DEMO)/search-*.png   report: $(DEMO)/run/report.html"
	$(BIN)/crossmodal zeroshot $(DEMO)/run --data emoji:openmoji --store $(DEMO)/store --output $(DEMO)/zeroshot.json --report $(DEMO)/zeroshot.html

test: .venv/ready
	$(BIN)/python -m pytest -n 2 -m "not slow"

test-slow: .venv/ready
	$(BIN)/python -m pytest -m slow

check: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: .venv/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv build dist *.egg-info $(DEMO)
