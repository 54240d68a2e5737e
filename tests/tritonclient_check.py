#!/usr/bin/env python3
"""Asks a Mesh device with tritonclient (HTTP with binary tensors, or gRPC) and compares with a whole-model session.

    tritonclient_check.py [--grpc] [--url HOST:PORT] [--digits NAME FOLDER] [--model NAME FILE.onnx]

`--digits` sends the 360 test images of FOLDER (test.npz) to the deployment NAME, one by one and all at once;
`--model` sends random inputs to the deployment NAME of FILE.onnx, at two batch sizes and two lengths where these are
dynamic. Needs `pip install 'tritonclient[http,grpc]' onnxruntime`. Ends 0 when every answer is within 1e-5 of the
whole model's, relative to the largest magnitude of the output.
"""

import argparse
import pathlib
import sys

import numpy as np
import onnxruntime
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

TOLERANCE = 1e-5
DTYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64}


def difference(found, expected):
    """Largest difference, as a part of the largest magnitude expected."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        sys.exit(f"FAILED: {found.dtype} {found.shape} for {expected.dtype} {expected.shape}")
    return float(np.abs(found - expected).max() / np.abs(expected).max())


class Http:
    """A client over HTTP, with binary tensors."""

    def __init__(self, url):
        import tritonclient.http

        self.triton = tritonclient.http
        self.client = tritonclient.http.InferenceServerClient(url, network_timeout=120)

    def ask(self, model, inputs, outputs, compression=None):
        """One request, the answers in the outputs' order."""
        tensors = []
        for name, array in inputs.items():
            tensor = self.triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
            tensor.set_data_from_numpy(array, binary_data=True)
            tensors.append(tensor)
        wanted = [self.triton.InferRequestedOutput(name, binary_data=True) for name in outputs]
        options = {"request_compression_algorithm": compression, "response_compression_algorithm": compression}
        result = self.client.infer(model, tensors, outputs=wanted, **(options if compression else {}))
        return [result.as_numpy(name) for name in outputs]

    def metadata(self, model):
        return self.client.get_model_metadata(model)


class Grpc:
    """A client over gRPC. What it sends is raw; `ask_typed` sends the protocol's lists."""

    def __init__(self, url):
        import grpc
        import tritonclient.grpc

        self.triton = tritonclient.grpc
        self.client = tritonclient.grpc.InferenceServerClient(url)
        self.stub = tritonclient.grpc.service_pb2_grpc.GRPCInferenceServiceStub(grpc.insecure_channel(url))

    def ask(self, model, inputs, outputs, compression=None):
        """One request, the answers in the outputs' order."""
        tensors = []
        for name, array in inputs.items():
            tensor = self.triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
            tensor.set_data_from_numpy(array)
            tensors.append(tensor)
        wanted = [self.triton.InferRequestedOutput(name) for name in outputs]
        options = {"client_timeout": 120, "compression_algorithm": compression}
        result = self.client.infer(model, tensors, outputs=wanted, **options)
        return [result.as_numpy(name) for name in outputs]

    def ask_typed(self, model, name, array):
        """One request of one float input, the first output's answer."""
        request = self.triton.service_pb2.ModelInferRequest(model_name=model)
        tensor = request.inputs.add(name=name, datatype="FP32", shape=array.shape)
        tensor.contents.fp32_contents.extend(array.ravel().tolist())
        answer = self.stub.ModelInfer(request, timeout=120)
        return np.frombuffer(answer.raw_output_contents[0], np.float32).reshape(answer.outputs[0].shape)

    def metadata(self, model):
        return self.client.get_model_metadata(model, as_json=True)


def digits(device, model, folder):
    data = np.load(folder / "test.npz")
    images = (data["images"].astype(np.float32) / 16).reshape(-1, 1, 8, 8)
    single = [device.ask(model, {"image": image[None]}, ["logits"])[0] for image in images]
    worst = difference(np.concatenate(single), data["logits"])
    (batch,) = device.ask(model, {"image": images}, ["logits"])
    worst = max(worst, difference(batch, data["logits"]))
    for algorithm in ("gzip", "deflate"):
        (packed,) = device.ask(model, {"image": images}, ["logits"], compression=algorithm)
        worst = max(worst, difference(packed, data["logits"]))
    if isinstance(device, Grpc):
        worst = max(worst, difference(device.ask_typed(model, "image", images), data["logits"]))
    right = int((batch.argmax(axis=1) == data["labels"]).sum())
    print(f"{model}: {right} of {len(images)} right, largest difference {worst:.1e}")
    return worst


def random_inputs(ports, batch, length, random):
    """Arrays for all inputs; None when the batch is fixed to something else."""
    inputs = {}
    for port in ports:
        shape = [d if isinstance(d, int) else (batch if i == 0 else length) for i, d in enumerate(port.shape)]
        if shape[0] != batch:
            return None
        dtype = DTYPES[port.type]
        if dtype is np.int64:
            inputs[port.name] = random.integers(0, 30000 if port.name == "input_ids" else 2, shape, dtype)
        else:
            inputs[port.name] = random.standard_normal(shape, dtype)
        if "mask" in port.name:
            inputs[port.name][:, 0], inputs[port.name][:, -1] = 1, 0
    return inputs


def real_model(device, model, file):
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    outputs = [port.name for port in session.get_outputs()]
    check_metadata(device, model, session)
    random, worst = np.random.default_rng(5), 0.0
    dynamic = any(isinstance(d, str) for port in session.get_inputs() for d in port.shape[1:])
    for batch in (1, 4):
        for length in (16, 77) if dynamic else (0,):
            inputs = random_inputs(session.get_inputs(), batch, length, random)
            if inputs is None:
                continue
            found = device.ask(model, inputs, outputs)
            pairs = zip(found, session.run(outputs, inputs))
            here = max(difference(a, b) for a, b in pairs)
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in inputs.items())
            print(f"{model}: {shapes}: largest difference {here:.1e}")
            worst = max(worst, here)
    return worst


def check_metadata(device, model, session):
    metadata = device.metadata(model)
    for found, ports in (metadata["inputs"], session.get_inputs()), (metadata["outputs"], session.get_outputs()):
        if [port["name"] for port in found] != [port.name for port in ports]:
            sys.exit(f"FAILED: the metadata of {model} names {found}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grpc", action="store_true", help="over gRPC instead of HTTP")
    parser.add_argument("--url", help="default: 127.0.0.1, port 7401 for HTTP and 7402 for gRPC")
    parser.add_argument("--digits", nargs=2, metavar=("NAME", "FOLDER"))
    parser.add_argument("--model", nargs=2, metavar=("NAME", "FILE"))
    args = parser.parse_args()
    url = args.url or ("127.0.0.1:7402" if args.grpc else "127.0.0.1:7401")
    device = Grpc(url) if args.grpc else Http(url)
    if not (device.client.is_server_live() and device.client.is_server_ready()):
        sys.exit(f"FAILED: {url} is not ready")
    worst = 0.0
    for chosen, check in (args.digits, digits), (args.model, real_model):
        if chosen:
            if not device.client.is_model_ready(chosen[0]):
                sys.exit(f"FAILED: {chosen[0]} is not ready")
            worst = max(worst, check(device, chosen[0], pathlib.Path(chosen[1])))
    try:
        device.metadata("no-such-model")
        sys.exit("FAILED: a model that is not there has metadata")
    except InferenceServerException as error:
        print(f"an unknown model: {error}")
    if not worst <= TOLERANCE:
        sys.exit(f"FAILED: an answer differs by {worst:.1e}")
    print("tritonclient gets the whole model's answers")


if __name__ == "__main__":
    main()
