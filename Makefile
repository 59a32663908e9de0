# Users need `make demo`, `make demo-video` and `make test`. CONTRIBUTING.md explains the other targets. Variables:
#   ACCEL=cpu|tpu|cuda13   the JAX build that `make setup` installs (default: cpu)
#   PYTHON=python3.12      the Python interpreter (default: python3)
#   VENV=.venv             the directory of the virtual environment

ACCEL ?= cpu
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SYSTEM := $(shell uname -sm)
STAMP := $(VENV)/.ready-$(ACCEL)
PIP := $(if $(shell command -v uv),VIRTUAL_ENV=$(VENV) uv pip,$(BIN)/python -m pip \
	--disable-pip-version-check)

.PHONY: setup libtpu demo demo-video test lint parity golden check-datasets check-video check-stream \
	check-long-clips check-cuda-hlo check-lower-bounds fuzz pods

$(if $(filter cpu tpu cuda13,$(ACCEL)),,$(error ACCEL is $(ACCEL); use cpu, tpu or cuda13))

setup: $(STAMP)

$(STAMP): requirements.txt pyproject.toml
	@echo "Installing the packages of requirements.txt in $(VENV): 400 MB to download, 1.6 GB on disk."
	@command -v $(PYTHON) >/dev/null || { echo "there is no $(PYTHON); set PYTHON to Python 3.11 or newer"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is older than 3.11; run: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet -r requirements.txt -e '.[all,demo,dev$(if $(filter-out cpu,$(ACCEL)),$(comma)$(ACCEL))]'
	rm -f $(VENV)/.ready-* && touch $@
	@echo "Done. To activate the environment, run: source $(BIN)/activate"

comma := ,

# The TPU compiler of `experiments.compile`, which exists for x86-64 Linux only.
libtpu: $(VENV)/libtpu/.ready

$(VENV)/libtpu/.ready: requirements-libtpu.txt | setup
	@echo "Installing the TPU compiler in $(@D): 210 MB to download, 680 MB on disk."
	rm -rf $(@D) && $(PIP) install --quiet --target $(@D) -r requirements-libtpu.txt
	touch $@

demo: setup
	$(BIN)/python -m experiments.demo

demo-video: setup
	$(BIN)/python -m experiments.demo_video

# Without the TPU compiler, the tests that need it are skipped.
test: setup $(if $(filter-out Linux x86_64,$(SYSTEM)),,libtpu)
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

check-long-clips: libtpu
	$(BIN)/python -m tests.train.check_long_clips

pods: .venv-pods/.ready
	PYTHONPATH=. JAX_PLATFORMS=cpu .venv-pods/bin/python -m tests.pods --output=experiments/results/pods.md

fuzz: setup
	$(BIN)/python -m tests.fuzz --output=experiments/results/fuzzing.md

# Runs some tests with the oldest versions that pyproject.toml allows. Only uv can install them. Such
# versions may warn of each other.
LOWER := .venv-lower-bounds
check-lower-bounds:
	test -x $(LOWER)/bin/python || $(PYTHON) -m venv $(LOWER)
	$(LOWER)/bin/python -m pip install --quiet uv
	VIRTUAL_ENV=$(LOWER) $(LOWER)/bin/uv pip install --resolution=lowest-direct -e '.[all,demo,dev,gcs]'
	$(LOWER)/bin/python -m pytest -o filterwarnings=default tests/blocks/test_interface.py \
		tests/convert/test_checkpoints.py tests/data/test_cache.py tests/data/test_images.py \
		tests/data/test_pipeline.py tests/experiments/test_evaluate_predict.py \
		tests/experiments/test_predict_videos.py tests/experiments/test_train_command.py \
		tests/test_leaves.py tests/train/test_tensorboard.py tests/visualize

check-cuda-hlo: .venv-cuda-hlo/.ready
	PYTHONPATH=. JAX_PLATFORMS=cpu .venv-cuda-hlo/bin/python tests/cuda/check_hlo.py
