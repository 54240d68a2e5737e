# make demo   build, fetch ONNX Runtime if none is found, show a mesh of four devices survive a loss
# make test   everything that CI checks
# make bench  measure, and write docs/benchmarks.md
# make lint   formatting, clippy, dependency rules

ORT_DIR := $(CURDIR)/target/onnxruntime
MESH_INFERENCE_ONNXRUNTIME ?= $(ORT_DIR)/libonnxruntime.so
export MESH_INFERENCE_ONNXRUNTIME

.PHONY: demo test bench lint deny runtime build

runtime:
	@test -e "$(MESH_INFERENCE_ONNXRUNTIME)" || python3 scripts/fetch-onnxruntime "$(ORT_DIR)"

build: runtime
	cargo build --release -p mesh

demo: build
	./target/release/mesh demo

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
