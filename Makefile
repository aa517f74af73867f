# Everything that one does here. Two environments: .venv (server, tests; no torch) and .venv-export (torch, the export).
PYTHON ?= python3
VENV := .venv/bin
EXPORT := .venv-export/bin
# Checkouts of Triton's client and server, of which the examples and tests are run; cloned unless they are there.
TRITON_CLIENT ?= build/triton/client
TRITON_SERVER ?= build/triton/server
PIP := pip install --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help demo serve test check proto bench eval train test-export test-full-size test-setup clean \
    test-client-examples test-batcher test-perf-analyzer test-crash

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 22

.venv/run: pyproject.toml
	$(PYTHON) -m venv .venv
	$(VENV)/$(PIP) -e '.[demo]'
	@touch $@

.venv/dev: pyproject.toml .venv/run
	$(VENV)/$(PIP) -e '.[dev,openvino]'
	@touch $@

.venv-export/dev: pyproject.toml
	$(PYTHON) -m venv .venv-export
	$(EXPORT)/$(PIP) -e '.[export,openvino]' pytest pytest-asyncio pytest-timeout pytest-xdist hypothesis
	@touch $@

demo: .venv/run  ## serve the bundled encoder, import a sample catalogue, search it (DEMO_EXIT=1: then stop)
	$(VENV)/python -m clients.demo

serve: .venv/run  ## serve model_repo on ports 8001 (gRPC) and 8002 (metrics)
	$(VENV)/lookwire-server --model-repository model_repo --data-dir data

test: check  ## check, then the tests (no torch, no network)
	$(VENV)/pytest -n 2 --dist loadgroup

check: .venv/dev  ## lint, types, protos, fresh stubs
	$(VENV)/ruff check .
	$(VENV)/ruff format --check .
	$(VENV)/mypy
	$(VENV)/buf lint protos
	$(VENV)/python protos/generate.py --check
	test ! -e .git || $(VENV)/buf breaking protos --against ".git#ref=HEAD,subdir=protos"

proto: .venv/dev  ## make the stubs from the protos
	$(VENV)/python protos/generate.py

build/models/vit-b-32.safetensors: | .venv-export/dev
	mkdir -p $(@D)
	$(EXPORT)/python -c 'import open_clip, torch; from safetensors.torch import save_file; torch.manual_seed(0); \
	    save_file(open_clip.create_model("ViT-B-32-quickgelu").state_dict(), "$@")'

# A checkpoint of random weights in each precision that the CPU can compute, for the benchmarks: about 2 GB, and 6 minutes.
BF16 := $(shell grep -sqE 'avx512_bf16|amx_bf16' /proc/cpuinfo && echo bf16)
build/models/vit-b-32: build/models/vit-b-32.safetensors
	for precision in fp32 fp16 int8 $(BF16); do $(EXPORT)/lookwire-export ViT-B-32-quickgelu --pretrained $< --preprocess openai \
	    --repo $@ --name $$precision --precision $$precision --replace || exit 1; done
	@touch $@

# Photographs of many sizes, from those in scikit-image.
build/bench/photographs: | .venv-export/dev
	$(EXPORT)/python -m benchmarks.load.photographs

bench: .venv/dev $(if $(filter precision text image latency lanes overload search busy restart recall,$(NAME)),build/models/vit-b-32) \
    $(if $(filter image lanes,$(NAME)),build/bench/photographs)  ## run one benchmark: make bench NAME=batching
	$(VENV)/python -m benchmarks $(NAME)

eval: .venv/run  ## print the bundled encoder's retrieval figures on drawings that training never saw
	$(VENV)/python -m clients.evaluate

train: .venv-export/dev  ## train the bundled encoder (about 20 minutes on two cores) and export it to model_repo
	$(EXPORT)/python -m lookwire_export.train
	$(EXPORT)/lookwire-export lookwire-garments --pretrained tests/data/garments.safetensors --preprocess openai \
	    --repo model_repo --name garments --precision fp16 --replace

test-export: .venv-export/dev  ## the tests of the export (torch: about 6 GB in .venv-export)
	$(EXPORT)/pytest -n 2 tests/export

build/triton/%:
	git clone --quiet --depth 1 https://github.com/triton-inference-server/$* $@

test-crash: .venv/dev  ## kill a server 200 times while it is written to, and compare (about 15 minutes; ROUNDS=20: fewer)
	$(VENV)/python -m tests.crash $(or $(ROUNDS),200)

test-full-size: .venv-export/dev  ## export three architectures at their full size through the gate (about 20 minutes)
	$(EXPORT)/pytest -s tests/export/full_size.py

test-client-examples: .venv/dev | $(TRITON_CLIENT) $(TRITON_SERVER)  ## run the Python examples of Triton's client against this server (ports 8000-8002)
	$(VENV)/python -m tests.compatibility.client_examples $(TRITON_CLIENT) $(TRITON_SERVER)

test-batcher: .venv/dev | $(TRITON_SERVER)  ## run the batcher tests of Triton's quality assurance against this server (about 2 minutes)
	$(VENV)/python -m tests.compatibility.batcher_tests $(TRITON_SERVER)

test-perf-analyzer: .venv/dev  ## run Triton's perf_analyzer against this server (about a minute)
	$(VENV)/python -m tests.compatibility.perf_analyzer

test-setup:  ## install what tests and benchmarks use from Debian's packages: promtool, h2load, libb64
	command -v promtool >/dev/null && command -v h2load >/dev/null && ldconfig -p | grep -q libb64.so.0d \
	    || (apt-get update -qq && apt-get install -qq -y --no-install-recommends prometheus nghttp2-client libb64-0d)

clean:  ## remove environments and everything made
	rm -rf .venv .venv-export build data
