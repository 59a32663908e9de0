# Users need `make demo`, `make demo-video` and `make test`. CONTRIBUTING.md explains the other targets. Variables:
#   ACCEL=cpu|tpu|cuda13   the JAX build that `make setup` installs (default: cpu)
#   PYTHON=python3.12      the Python interpreter (default: python3)
#   VENV=.venv             the directory of the virtual environment

ACCEL ?= cpu
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready-$(ACCEL)
PIP := $(if $(shell command -v uv),VIRTUAL_ENV=$(VENV) uv pip,$(BIN)/python -m pip \
	--disable-pip-version-check)

.PHONY: setup demo demo-video test lint parity golden check-datasets check-video check-stream \
	check-long-clips check-cuda-hlo fuzz

setup: $(STAMP)

$(STAMP): requirements.txt requirements-libtpu.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet -r requirements.txt -e '.[all,demo,dev$(if $(filter-out cpu,$(ACCEL)),$(comma)$(ACCEL))]'
	rm -rf $(VENV)/libtpu && $(PIP) install --quiet --target $(VENV)/libtpu -r requirements-libtpu.txt
	rm -f $(VENV)/.ready-* && touch $@

comma := ,

demo: setup
	$(BIN)/python -m experiments.demo

demo-video: setup
	$(BIN)/python -m experiments.demo_video

test: setup
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# A separate environment .venv-NAME with the packages of requirements-NAME.txt.
.venv-%/.ready: requirements-%.txt requirements.txt
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet -r $<
	touch $@

parity: .venv-parity/.ready
	PYTHONPATH=. JAX_PLATFORMS=cpu .venv-parity/bin/python tests/parity/run.py
	PYTHONPATH=. JAX_PLATFORMS=cpu .venv-parity/bin/python tests/parity/run_video.py
	PYTHONPATH=. JAX_PLATFORMS=cpu .venv-parity/bin/python tests/parity/sgd.py
	PYTHONPATH=. JAX_PLATFORMS=cpu .venv-parity/bin/python tests/parity/augmentation.py
	PYTHONPATH=. JAX_PLATFORMS=cpu .venv-parity/bin/python tests/parity/video_transforms.py
	PYTHONPATH=. JAX_PLATFORMS=cpu .venv-parity/bin/python tests/parity/throughput.py
	PYTHONPATH=. JAX_PLATFORMS=cpu .venv-parity/bin/python tests/parity/blocks.py
	PYTHONPATH=. JAX_PLATFORMS=cpu .venv-parity/bin/python tests/parity/half_precision.py

golden: .venv-parity/.ready
	PYTHONPATH=. JAX_PLATFORMS=cpu .venv-parity/bin/python tests/parity/write_golden.py

check-datasets: setup
	$(BIN)/python -m tests.data.check_datasets --output=experiments/results/datasets.md

check-video: setup
	$(BIN)/python -m tests.models.check_video_steps --output=experiments/results/video_steps.md

check-stream: setup
	$(BIN)/python -m tests.models.check_stream --output=experiments/results/stream.md

check-long-clips: setup
	$(BIN)/python -m tests.train.check_long_clips

fuzz: setup
	$(BIN)/python -m tests.fuzz --output=experiments/results/fuzzing.md

check-cuda-hlo: .venv-cuda-hlo/.ready
	PYTHONPATH=. JAX_PLATFORMS=cpu .venv-cuda-hlo/bin/python tests/cuda/check_hlo.py
