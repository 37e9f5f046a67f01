# make install | demo | priors | studies | test | docs | validate-real | constraints | clean
#
# Needs python3 (3.11 or newer) with venv, nothing else. The environment is .venv; it is made by whichever target comes
# first, and brought up to date when pyproject.toml or the constraints have changed.

PYTHON ?= python3
# processes that run tests, each on one thread
JOBS ?= 2
# the versions that were tested; CONSTRAINTS=/dev/null takes the newest that pyproject.toml allows
CONSTRAINTS ?= constraints.txt
RUN := OMP_NUM_THREADS=1 .venv/bin/python
PIP := .venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS) --editable

.PHONY: install demo priors test docs studies validate-real constraints clean

install: .venv/.installed

# what sampling needs, and no more
.venv/.sampling: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON): Python 3.11 or newer is needed; name one, as in: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "$(PYTHON) has no venv; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@.venv/bin/python -c '' 2>/dev/null || $(PYTHON) -m venv --clear .venv
	$(PIP) .
	@touch $@

# and what developing it needs
.venv/.installed: .venv/.sampling
	$(PIP) '.[dev]'
	@touch $@

# the tiny tier's weights from nothing, hours of a CPU: run it again and it goes on. MINUTES is the
# limit of each prior in one run; with an accelerator, see docs/training.md
MINUTES ?= 240
TRAIN ?=
priors: .venv/.sampling
	.venv/bin/python -m d2 train prior=tiny_autoencoder
	for prior in multiview video; do \
	  .venv/bin/python -m d2 train prior=tiny_$$prior max_minutes=$(MINUTES) $(TRAIN) \
	    autoencoder=outputs/tiny_autoencoder/tiny_autoencoder.safetensors || exit $$?; \
	done

demo: .venv/.sampling
	.venv/bin/python -m d2 sample
	@echo "The page: $(CURDIR)/outputs/sample/index.html"

test: install
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m pyright
	$(RUN) -m mkdocs build --strict --quiet
	$(RUN) -m pytest -n $(JOBS)

docs: install
	$(RUN) docs/tables.py
	$(RUN) -m mkdocs build --strict --quiet
	@echo "The site: $(CURDIR)/build/site/index.html"

# what was tested: run after `make install CONSTRAINTS=/dev/null` and `make test` in a clean clone
constraints: install
	$(RUN) -m pip freeze --exclude-editable | sed -n 's/^\([A-Za-z0-9._-]*==[A-Za-z0-9.]*\).*/\1/p' > constraints.txt

# every study on the weights that ship; STUDY_MINUTES=60 stops after an hour, and the same line goes on
STUDY_MINUTES ?= 1000000
studies: install
	$(RUN) experiments/studies.py --minutes $(STUDY_MINUTES)

# what only the published weights and a GPU can tell, into outputs/validate-real/report.md: docs/real-clip.md
REAL ?= preset=official video=svd_xt multiview=sv3d_p precision=bf16 sampler.sequences_per_call=3 \
  sampler.decode_chunk=8
validate-real: .venv/.sampling
	.venv/bin/python benchmarks/validate_real.py outputs/validate-real $(REAL)

clean:
	rm -rf .venv build dist outputs multirun .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
