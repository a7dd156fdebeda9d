# make demo | make test    each sets up .venv first; at once when nothing changed.
# make test-fast           the tests for every save: tests/fast.py says what it leaves out
# make docs                builds docs/_build/html and looks it over; sets up .venv likewise
#   PYTHON=python3.11      which interpreter .venv is made from
#   NOVENV=1               use that interpreter as it is: no .venv, nothing installed
# make format              mend layout and what ruff can fix

PYTHON ?= python3

ifeq ($(filter-out 0,$(NOVENV)),)
run := .venv/bin/python
demo := .venv/bin/resid-theory demo
set_up := "$(PYTHON)" bootstrap.py
else
run := PYTHONPATH="$(CURDIR)" "$(PYTHON)"
demo := $(run) -m resid_theory.cli demo
set_up := "$(PYTHON)" bootstrap.py --no-venv
endif

# $(call has,module): whether the interpreter could import it, without importing it
has = $(run) -c 'import importlib.util as u, sys; sys.exit(u.find_spec("$(1)") is None)'
skipped = echo "$(1) is not importable by $(PYTHON): skipped."
# Two, or one where there is one core; a file stays in one process, which makes its fixtures once.
processes = --numprocesses logical --maxprocesses 2 --dist loadfile --max-worker-restart 1
# They fill the cores: threads of theirs would only wait for each other.
test test-fast: export OMP_NUM_THREADS ?= 1
# A test that hangs ends its process, which prints where it stood; others go on in a new one.
bounded = -o faulthandler_timeout=300 -o faulthandler_exit_on_timeout=true

.PHONY: demo test test-fast docs format set-up set-up-for-tests set-up-for-docs interpreter

demo: set-up
	@$(demo)

# A failed lint does not stop the tests, so that one run shows everything; pytest speaks last.
# The first time, a process beside the lint imports what the tests do, so that it is compiled once.
test: set-up-for-tests
	@status=0; \
	test -d tests/__pycache__ || $(run) -m pytest --collect-only -qq >/dev/null 2>&1 & \
	if $(call has,ruff); then $(run) -m ruff check . || status=1; else $(call skipped,ruff); fi; \
	if $(call has,mypy); then $(run) -m mypy || status=1; else $(call skipped,mypy); fi; \
	wait; together=; \
	if $(call has,xdist); then together="$(processes)"; else $(call skipped,pytest-xdist); fi; \
	$(run) -m pytest $(bounded) $$together || status=$$?; \
	exit $$status

test-fast: set-up-for-tests
	@together=; if $(call has,xdist); then together="$(processes)"; fi; \
	$(run) -m pytest -q --fast $$together

# Every warning is an error. What is built before stays, so that only changed pages are built again.
docs: set-up-for-docs
	@$(run) -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@$(run) docs/check.py docs/_build/html

format: set-up-for-tests
	@$(run) -m ruff check --fix . ; $(run) -m ruff format .

set-up: interpreter
	@$(set_up)

set-up-for-tests: interpreter
	@$(set_up) --tests

set-up-for-docs: interpreter
	@$(set_up) --docs

interpreter:
	@command -v "$(PYTHON)" >/dev/null || { \
	echo "$(PYTHON) was not found: install Python 3.11 or newer, or name it, as in 'make test PYTHON=python3.11'." >&2; \
	exit 1; }
