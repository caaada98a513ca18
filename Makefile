# make demo            run the first suite on the embedded model
# make test            the tests of the harness
# make slow            those of its tests that take minutes
# make check           formatting, lint, types
# make suites          the suites of this repository, through pytest
# make browser         reports in a real browser: needs Chromium, and npm to fetch axe-core
# make example         measures reports/example anew, with its page and docs/report.png
# make example-page    its page and screenshot alone, from the results that are there
# make selftest        whether those suites catch the faults that are planted in the model
# make transformers4   the tests and suites with the last transformers 4
#
# PYTHON=python3.13 make test takes another interpreter; `make clean` removes the environments.

PYTHON ?= python3
VENV = .venv
VENV4 = .venv-transformers4
INSTALL = -m pip install --quiet --disable-pip-version-check
SETUP = pyproject.toml constraints.txt

# What transformers 4 needs in place of lines of constraints.txt.
PINS4 = transformers==4.57.6 tokenizers==0.22.2 huggingface_hub==0.36.2 datasets==5.0.1 fsspec==2026.6.0
DROP4 = transformers|tokenizers|huggingface_hub|datasets|fsspec|httpx2|httpcore2

# Checks accessibility in `make browser`; its package is held to this digest, and nothing of it is in this repository.
AXE = $(VENV)/axe-core/axe.min.js
AXE_PACKAGE = axe-core@4.14.1
AXE_SHA512 = 1477dafa598d8d065f273d6af302aa203c02e83131707b7fa648cd41bd3d6b734f8c22a0dab86ee6a6f64b8afbe804b214d36db85a2826965edfb3a0b9d546b5

EXAMPLE = reports/example

.PHONY: demo test slow check suites browser example example-page selftest transformers4 clean

demo: $(VENV)/.installed
	$(VENV)/bin/harness run suites/basics.yaml

test: $(VENV)/.installed-dev
	$(VENV)/bin/python -m pytest

slow: $(VENV)/.installed-dev
	$(VENV)/bin/python -m pytest -m slow

check: $(VENV)/.installed-dev
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/ruff check
	$(VENV)/bin/mypy

suites: $(VENV)/.installed-dev
	$(VENV)/bin/python -m pytest suites/

browser: $(VENV)/.installed-dev $(AXE)
	HARNESS_BROWSER=required $(VENV)/bin/python -m pytest -m browser

example: $(VENV)/.installed-dev
	$(VENV)/bin/python $(EXAMPLE)/render.py --measure

example-page: $(VENV)/.installed-dev
	$(VENV)/bin/python $(EXAMPLE)/render.py

selftest: $(VENV)/.installed-dev
	$(VENV)/bin/harness selftest suites/ --quick

# Only what meets transformers or its files: the rest is the same with both.
transformers4: $(VENV4)/.installed-dev
	$(VENV4)/bin/python -m pytest tests/backends tests/expectations tests/lint tests/test_rendering.py suites

clean:
	rm -rf $(VENV) $(VENV4)

$(VENV)/bin/python $(VENV4)/bin/python:
	$(PYTHON) -m venv $(@D:/bin=)

# A stamp is newer than what it was made from, so that a second call installs nothing.
$(VENV)/.installed: $(SETUP) | $(VENV)/bin/python
	@echo "installing into $(VENV) (torch and its friends: minutes, the first time)"
	$(VENV)/bin/python $(INSTALL) --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.installed-dev: $(SETUP) | $(VENV)/bin/python
	@echo "installing into $(VENV) (torch and its friends: minutes, the first time)"
	$(VENV)/bin/python $(INSTALL) --constraint constraints.txt --editable '.[dev]'
	@touch $(VENV)/.installed $@

$(AXE): Makefile | $(VENV)/bin/python
	@command -v npm >/dev/null || { echo "npm is needed to fetch $(AXE_PACKAGE): apt-get install npm"; exit 1; }
	rm -rf $(@D)
	mkdir $(@D)
	cd $(@D) && npm pack --silent $(AXE_PACKAGE)
	echo '$(AXE_SHA512)  $(@D)/$(subst @,-,$(AXE_PACKAGE)).tgz' | sha512sum --check --quiet
	tar -xzf $(@D)/*.tgz -C $(@D) --strip-components=1 package/axe.min.js
	rm $(@D)/*.tgz
	@touch $@

$(VENV4)/.installed-dev: $(SETUP) Makefile | $(VENV4)/bin/python
	grep -vE '^($(DROP4))==' constraints.txt > $(VENV4)/constraints.txt
	printf '%s\n' $(PINS4) >> $(VENV4)/constraints.txt
	$(VENV4)/bin/python $(INSTALL) --constraint $(VENV4)/constraints.txt --editable '.[dev]'
	@touch $@
