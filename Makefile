# Everything happens in .venv; the first target that needs it installs it, later ones reuse it.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
NB := $(BIN)/contrastive-nb
DEMO := data/runs/demo

.PHONY: help install hooks demo test test-all lab docs bench sync clean
help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

install: .venv/.installed  ## install the package, editable, and all it needs into .venv
.venv/.installed: settings.ini pyproject.toml constraints.txt .ci/metadata.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; name it with make PYTHON=...")'
	@$(PYTHON) -m venv .venv || { echo "the venv module is missing; on Debian: apt-get install python3-venv"; exit 1; }
	@echo "installing into .venv, this takes a minute or two"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@[ ! -e .git ] || $(MAKE) --no-print-directory hooks
	@touch $@

hooks:  ## git: keep notebooks clean when committed, merge them cell by cell (make install does it)
	@git config contrastive-nb.bin '$(abspath $(BIN))'
	@git config core.hooksPath .ci/hooks
	@git config merge.nbdev-merge.driver '$(abspath $(BIN))/nbdev_merge %O %A %B %P'

demo: install  ## the study in small: 4 losses x 3 batch sizes x 2 seeds on handwritten digits, with a report
	$(NB) sweep nbs/experiments/pretrain.ipynb -g nbs/experiments/grids/demo.yaml -o $(DEMO) -j 2
	$(NB) collect $(DEMO)
	$(NB) report $(DEMO)/results.nc -o $(DEMO)/report.html
	@echo "open it in a browser: file://$(abspath $(DEMO))/report.html"

test: install  ## every chapter and every fast test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'not slow' -n 2 --dist worksteal

test-all: install  ## the slow tests too
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

lab: install  ## JupyterLab on the notebooks
	$(BIN)/jupyter lab --notebook-dir=nbs

bench: install  ## speed and memory of losses, measures, views and training beside the forms in use, as ratios
	$(BIN)/python tests/bench_losses.py
	$(BIN)/python tests/bench_metrics.py
	$(BIN)/python tests/bench_training.py

docs: install  ## the site in _docs/html, offline; make docs SERVE=1 also serves it on this machine
	$(BIN)/python nbs/_site/build.py $(if $(SERVE),--serve)

sync: install  ## after editing a notebook: export the modules, clean the notebooks, write the README
	$(BIN)/nbdev_export
	$(BIN)/nbdev_clean
	$(BIN)/python .ci/readme.py

clean:  ## remove .venv, the site and the demo's runs; other sweeps in data/runs stay
	rm -rf .venv _docs build dist $(DEMO) .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
