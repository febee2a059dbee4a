# The commands of the project; `make` alone lists them.
PYTHON ?= python3
PORT ?= 8080
USERS ?= 8
TIME ?= 30s
MINUTES ?= 30
SHAPE ?= steady
MIX ?= load_tests/mix.toml
SLO ?= load_tests/slo.toml
TARGET ?= slim
DEVICE ?= gpu

VENV := .venv
PY := $(VENV)/bin/python
UV := $(or $(shell command -v uv),.uv/bin/uv)
TORCH ?= $(if $(wildcard $(VENV)/.synced-cpu),cpu,cuda)
ENV := $(VENV)/.synced-$(or $(filter cuda cpu,$(TORCH)),$(error TORCH must be cuda or cpu, got $(TORCH)))
SYNC = $(UV) pip sync --quiet --compile-bytecode --python $(PY) --require-hashes
COMPILE = $(UV) pip compile --quiet --upgrade --universal --generate-hashes --no-annotate --no-header --python-version 3.11
EXTRAS := serve serve-cpu train load dev
SERVING := $(PY) -m serving
TRAINING := $(PY) -m training
DEMO_BUNDLES := model_store/digits-mda/1 model_store/mnist-mda/1 model_store/flowers12-mda/1
SAMPLES := data/samples

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help env demo stop test test-avx2 check format load capacity soak growth bench-peers bench-serve bench-batch bench-beside gpu-check image-check lock clean

help:
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /  make \1\t/' | expand -t 21

env: $(ENV) ## create .venv from the lock; fetches uv when it is missing (TORCH=cpu: without CUDA; stays so until TORCH=cuda)

demo: $(ENV) model_store/digits-mda/1/bundle.json ## train, export, package, serve and classify real images
	@$(TRAINING) samples digits --count 5 --out $(SAMPLES)/digits >/dev/null
	@$(TRAINING) samples mnist --count 5 --seed 1 --out $(SAMPLES)/mnist >/dev/null
	@$(TRAINING) samples photos --out $(SAMPLES)/photos >/dev/null
	@trap '$(SERVING) stop; exit 130' INT TERM; \
	if $(SERVING) status >/dev/null 2>&1; then echo "the server is up already"; else \
	  $(SERVING) package $(DEMO_BUNDLES) && \
	  $(SERVING) start --models digits-mda,mnist-mda,flowers12-mda --port $(PORT) || exit 1; fi; \
	{ $(SERVING) classify $(SAMPLES)/digits/*.png --model digits-mda && \
	  $(SERVING) classify $(SAMPLES)/mnist/*.png --model mnist-mda && \
	  echo && echo "photos of none of the twelve flowers that flowers12-mda knows:" && \
	  $(SERVING) classify $(SAMPLES)/photos/* --model flowers12-mda && \
	  echo && echo "one answer as JSON:" && \
	  $(SERVING) classify $$(ls $(SAMPLES)/mnist/*.png | head -1) --model mnist-mda --json; \
	} || { $(SERVING) stop; exit 1; }; \
	echo; $(SERVING) status; echo "It stays up; make stop ends it."

model_store/digits-mda/1/bundle.json: | $(ENV)
	@rm -rf runs/digits-mda/demo
	$(TRAINING) train digits-mda --id demo
	$(TRAINING) export runs/digits-mda/demo

stop: $(ENV) ## end the server that make demo left up
	@$(SERVING) stop

test: $(ENV) ## run the tests, a real TorchServe included
	$(VENV)/bin/pytest

test-avx2: $(ENV) ## the tests that depend on the CPU's instructions once more, with torch as on a CPU that has AVX2 only
	ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 $(VENV)/bin/pytest -m isa

check: $(ENV) ## ruff format, ruff, mypy --strict
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

format: $(ENV) ## format and fix what ruff can
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

load: $(ENV) ## load test: every kind of request, each answer checked (SHAPE=steady USERS=8 TIME=30s MIX=FILE SLO=FILE)
	@mkdir -p load_tests/results
	@trap '$(SERVING) stop; exit 130' INT TERM; ours=; \
	if ! $(SERVING) status >/dev/null 2>&1; then \
	  $(SERVING) package model_store/mnist-mda/1 && \
	  $(SERVING) start --models mnist-mda --port $(PORT) || exit 1; ours=1; fi; \
	$(VENV)/bin/locust -f load_tests/locustfile.py --headless --host http://127.0.0.1:$(PORT) \
	  --shape $(SHAPE) --mix $(MIX) --slo $(SLO) --users $(USERS) --spawn-rate $(USERS) --run-time $(TIME) \
	  --only-summary --loglevel WARNING --html load_tests/results/load.html \
	  --summary load_tests/results/load.json; code=$$?; \
	if [ -n "$$ours" ]; then $(SERVING) stop; fi; exit $$code

capacity: $(ENV) ## how many requests a second a server holds, by an open loop; a quarter of an hour; needs wrk
	@$(PY) -m load_tests capacity --precision float32 --precision int8 \
	  --out load_tests/results/capacity.json --plot load_tests/results/capacity.svg

soak: $(ENV) ## a server under load while all that can befall it does, each promise checked (MINUTES=30)
	@$(PY) -m load_tests soak --minutes $(MINUTES) --out load_tests/results/soak.json --report load_tests/results/soak.html

growth: $(ENV) ## how cost grows with models, classes, pixels, connections, images and cores; needs wrk
	@$(PY) -m load_tests growth --out load_tests/results/growth.json --plot load_tests/results/growth.svg

bench-peers: $(ENV) ## what else one would serve the same model with, beside ours; most of an hour; needs wrk
	@$(PY) -m load_tests peers --precision float32 --precision int8 --out load_tests/results/peers.json

bench-serve: $(ENV) ## answers a second through HTTP against the bare graph; needs wrk
	@$(PY) -m load_tests serve --precision float32 --precision int8 --out load_tests/results/bench-serve.json
	@$(PY) -m load_tests serve --bundle model_store/flowers12-mda/1 --image shape --image photo --image camera \
	  --out load_tests/results/bench-photos.json

bench-batch: $(ENV) ## offline scoring against the bare graph, bare decoding, Ray Data and a DataLoader; most of an hour
	@$(PY) -m load_tests batch --out load_tests/results/bench-batch.json

bench-beside: $(ENV) ## what offline scoring does to the latency of a server on the same cores; needs wrk
	@$(PY) -m load_tests beside --out load_tests/results/bench-beside.json

gpu-check: $(ENV) ## on a GPU: both runtimes compute the same there, every worker uses it, and how fast it answers
	$(VENV)/bin/pytest -q tests/test_runtimes.py -k gpu_computes
	$(PY) -m load_tests serve --device gpu --precision float32 --precision float16 --out load_tests/results/gpu-check.json

image-check: $(ENV) ## build the image, run it locked down, ask it, stop it under load (TARGET=slim, or full with DEVICE=gpu|cpu)
	@$(PY) -m serving.deploy.image_check --target $(TARGET) --device $(DEVICE)

lock: | $(UV) ## renew requirements/*.txt from the ranges in pyproject.toml
	@for extra in $(EXTRAS); do $(COMPILE) --extra $$extra pyproject.toml -o requirements/$$extra.txt || exit 1; done
	@$(COMPILE) requirements/uv.in -o requirements/uv.txt
	@for lock in requirements requirements-gpu server; do \
	  $(COMPILE) --no-config serving/triton/$$lock.in -o serving/triton/$$lock.txt || exit 1; done

clean: ## remove the environment, runs, cached features, archives and samples; bundles stay
	rm -rf $(VENV) .uv runs cache data/samples model_store/*.mar

.uv/bin/uv:
	$(PYTHON) -m venv .uv
	.uv/bin/pip install --quiet uv

$(ENV): requirements/dev.txt | $(UV)
	$(UV) venv --quiet --allow-existing --python $(PYTHON) $(VENV)
	@rm -f $(VENV)/.synced*  # torch is always installed anew: one of its builds would be taken for the other
ifeq ($(TORCH),cpu)
	$(PYTHON) requirements/without_cuda.py requirements/dev.txt > $(VENV)/cpu.txt
	$(PYTHON) requirements/without_cuda.py --torch requirements/dev.txt > $(VENV)/torch.txt
	$(SYNC) $(VENV)/cpu.txt
	$(UV) pip install --quiet --compile-bytecode --python $(PY) --no-deps --torch-backend cpu -r $(VENV)/torch.txt
else
	$(SYNC) --reinstall-package torch --reinstall-package torchvision requirements/dev.txt
endif
	@touch $@
