# make demo   build, fetch ONNX Runtime if none is found, show a mesh of four devices survive a loss
# make test   everything that CI checks
# make bench  measure, and write docs/benchmarks.md (SECTIONS="defer-100 unequal": only those; FASTER=4: with four
#             times the processor shares, in less time, where the host has them); needs root
# make test-models   real models from ../shared/models (MODELS=FOLDER: others) over four devices; needs root
# make soak   simulated clusters under faults: SEEDS=20000 of them, from seed FIRST=0 on
# make lint   formatting, clippy, dependency rules

ORT_DIR := $(CURDIR)/target/onnxruntime
MESH_INFERENCE_ONNXRUNTIME ?= $(ORT_DIR)/libonnxruntime.so
export MESH_INFERENCE_ONNXRUNTIME
# Tests and benchmarks run ONNX Runtime as well, not only the daemon, which sees to this itself.
export ORT_DISABLE_TELEMETRY := 1

MODELS ?= ../shared/models
MODEL_NAMES ?= resnet50 mobilenet_v3_large densenet121 vit_b_16 bert_base
MODEL_DIR := $(CURDIR)/target/models
MODEL_PYTHON := $(CURDIR)/target/models-python

SEEDS ?= 20000
FIRST ?= 0

.PHONY: demo soak test test-models bench lint deny runtime build

runtime:
	@test -e "$(MESH_INFERENCE_ONNXRUNTIME)" || python3 scripts/fetch-onnxruntime "$(ORT_DIR)"

build: runtime
	cargo build --release -p mesh

demo: build
	./target/release/mesh demo

soak:
	cargo run --release -p mesh-tests --bin sim -- --seed $(FIRST) --seeds $(SEEDS) --quiet

lint:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	python3 scripts/check-directions
	sh scripts/check-unit

deny:
	sh scripts/cargo-deny check bans licenses sources

test: runtime lint deny
	cargo build --workspace --all-targets
	cargo test --workspace
	@test "$$(id -u)" = 0 || echo "SKIPPED without root: what needs network namespaces (rack_*, lab*)"
	@test -n "$$MESH_MODELS" || echo "SKIPPED without MESH_MODELS: real models and tritonclient (make test-models)"

$(MODEL_DIR)/%/model.onnx: | $(MODEL_PYTHON)/has-grpc
	$(MODEL_PYTHON)/bin/python $(MODELS)/materialize.py $* $(@D)

$(MODEL_PYTHON)/has-grpc:
	python3 -m venv $(MODEL_PYTHON)
	$(MODEL_PYTHON)/bin/pip install --quiet numpy 'tritonclient[http,grpc]' \
		"$$(grep -o '^onnxruntime==[0-9.]*' scripts/onnxruntime-requirements.txt)"
	touch $@

test-models: runtime $(MODEL_PYTHON)/has-grpc $(MODEL_NAMES:%=$(MODEL_DIR)/%/model.onnx)
	cargo build -p mesh -p mesh-tests --tests --bins
	MESH_MODELS=$(MODEL_DIR) MESH_PYTHON=$(MODEL_PYTHON)/bin/python \
		cargo test -p mesh -p mesh-tests --test rack_models -- --nocapture --test-threads 1

BENCH_MODELS := resnet50 mobilenet_v3_large densenet121 bert_base vit_b_16 vit_l_16

bench: build $(MODEL_PYTHON)/has-grpc $(BENCH_MODELS:%=$(MODEL_DIR)/%/model.onnx)
	cargo build --release -p mesh-tests --bins
	MESH_MODELS=$(MODEL_DIR) ./target/release/bench $(SECTIONS)
