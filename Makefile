# Two targets do everything on a fresh Debian or Ubuntu machine, as root:
#
#   make demo     two shaped providers of 10 and 20 Mbit/s, working as one of 30
#   make test     the whole test suite
#
# Whatever is missing is installed first: Debian packages by apt, Python packages into .venv/.
# The second time there is nothing to install, and nothing is.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS += --no-print-directory
# A root shell that was opened by a plain `su` does not look into these.
export PATH := $(PATH):/usr/local/sbin:/usr/sbin:/sbin

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

APT_PACKAGES := build-essential python3-dev python3-venv libnetfilter-queue-dev libxxhash-dev \
	nftables iptables iproute2 conntrack iperf3 ethtool iputils-ping procps libcap2-bin \
	util-linux valgrind ca-certificates dnsmasq-base udhcpc openssl libndpi-dev

# Most tests wait for packets and timers: on two cores, four at a time keep both busy.
JOBS ?= 4

SOURCES := setup.py $(wildcard cext/*.h cext/*.pyx cext/*.pxi)

.PHONY: build demo test check bench soak man clean

build: $(VENV)/.built

demo: build
	@$(BIN)/evenlink demo $(ARGS)

test: build check
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(ARGS)

check: build
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/cython-lint cext
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/python -m pytest --quiet tests/unit/test_docs.py

bench: build
	@$(BIN)/python -m bench all $(ARGS)

# Each part of it lasts MINUTES. Parts and a seed by ARGS: make soak ARGS='flapping --seed 7',
# or ARGS='overflow overflow-short': a constant load must not make the choice swing.
MINUTES ?= 5
soak: build
	@$(BIN)/python -m tests.soak --minutes $(MINUTES) $(ARGS)

# evenlink(8) and evenlink.toml(5) into build/man/; needs pandoc.
man:
	@$(MAKE) -C docs/man

clean:
	rm -rf $(VENV) build dist *.egg-info cext/*.c dataplane/*.so bench/results
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# apt is called only if dpkg does not know one of the packages as installed.
$(VENV)/.packages: Makefile
	@missing=""; \
	for package in $(APT_PACKAGES); do \
		dpkg-query -W -f='$${db:Status-Status}' "$$package" 2>/dev/null | grep -qx installed \
			|| missing="$$missing $$package"; \
	done; \
	if [ -n "$$missing" ]; then \
		if [ "$$(id -u)" != 0 ]; then \
			echo "make: root is needed to install:$$missing" >&2; exit 1; \
		fi; \
		echo "installing Debian packages:$$missing"; \
		apt-get update -qq; \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
			$$missing >/dev/null; \
	fi; \
	mkdir -p $(VENV); \
	touch $@

# Built against the packages in .venv/, not in isolation: NetfilterQueue is compiled once.
$(VENV)/.python: $(VENV)/.packages pyproject.toml
	@echo "installing Python packages into $(VENV)/ and building the extension"
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV)
	@$(PIP) install 'setuptools>=77' 'Cython>=3.1' 'NetfilterQueue>=1.1'
	@$(PIP) install --no-build-isolation --editable '.[dev]'
	@touch $@

$(VENV)/.built: $(VENV)/.python $(SOURCES)
	@$(BIN)/python setup.py --quiet build_ext --inplace
	@touch $@
