# make run · make test · make test-trixie · make check · make bench
# Every target installs what it needs first; on Debian, apt packages too (as root, or by sudo).

VENV := .venv
BIN := $(VENV)/bin
LISTEN ?= 127.0.0.1:7080

.PHONY: run test test-trixie test-systemd chaos parity parity-trixie parity-long check docs install install-system system bench clean

run: install
	@echo; echo "A map:  http://$(LISTEN)/ows/p/world?SERVICE=WMS&VERSION=1.3.0&REQUEST=GetMap&LAYERS=world&STYLES=&CRS=EPSG:4326&BBOX=-90,-180,90,180&WIDTH=1200&HEIGHT=600&FORMAT=image/png"; echo
	QGISD_HTTP__LISTEN=$(LISTEN) $(BIN)/qgisd serve -c examples/qgisd.toml

test: install
	./scripts/system-packages test
	$(BIN)/python -m pytest $(ARGS)

# The same on Debian 13, as root: a tree of its own, made once, below ~/.cache/qgisd.
test-trixie:
	./scripts/test-trixie $(ARGS)

# A booted Debian 13: installed, behind nginx, reloaded and restarted under load. Only root can.
test-systemd:
	./scripts/system-packages systemd
	/usr/bin/python3 scripts/test-systemd

# A service of this machine: /opt/qgisd, units, user.
install-system:
	./scripts/install-system

# The long run of the chaos suite; the short one is part of `make test`.
chaos: install
	./scripts/system-packages test
	CHAOS_SECONDS=$${CHAOS_SECONDS:-1800} $(BIN)/python -m pytest tests/chaos -s --timeout=7200 $(ARGS)

# The parity suite, whose results go into docs/parity.md.
parity: install
	./scripts/system-packages test
	PARITY_RESULTS=docs/parity $(BIN)/python -m pytest tests/parity $(ARGS)
	$(BIN)/python -m tests.parity.table

# The same on Debian 13, as root.
parity-trixie: install
	PARITY_RESULTS=docs/parity ./scripts/test-trixie tests/parity $(ARGS)
	$(BIN)/python -m tests.parity.table

# 10,000 random requests while workers are killed; ARGS='--requests 1000' for fewer.
parity-long: install
	./scripts/system-packages test
	$(BIN)/python -m tests.parity.long $(ARGS)

check: install docs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# The site, in build/docs. A warning is an error.
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --site-dir build/docs

bench: install
	./scripts/system-packages bench
	$(BIN)/python -m bench $(ARGS)

install: $(VENV)/.installed

# PyQGIS belongs to the interpreter of the distribution, so the environment is made from that one.
$(VENV)/.installed: setup.cfg pyproject.toml scripts/system-packages
	./scripts/system-packages run
	/usr/bin/python3 -m venv --system-site-packages $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV) *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
