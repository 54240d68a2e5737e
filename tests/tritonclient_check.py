#!/usr/bin/env python3
"""Asks a Mesh device with tritonclient (HTTP, binary tensors) and compares with a whole-model session.

    tritonclient_check.py [--url HOST:PORT] [--digits NAME FOLDER] [--model NAME FILE.onnx]

`--digits` sends the 360 test images of FOLDER (test.npz) to the deployment NAME, one by one and all at once;
`--model` sends random inputs to the deployment NAME of FILE.onnx, at two batch sizes and two lengths where these are
dynamic. Needs `pip install 'tritonclient[http]' onnxruntime`. Ends 0 when every answer is within 1e-5 of the whole
model's, relative to the largest magnitude of the output.
"""

import argparse
import pathlib
import sys

import numpy as np
import onnxruntime
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

TOLERANCE = 1e-5
DTYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64}


def difference(found, expected):
    """Largest difference, as a part of the largest magnitude expected."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        sys.exit(f"FAILED: {found.dtype} {found.shape} for {expected.dtype} {expected.shape}")
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def ask(client, model, inputs, outputs, **options):
    """One request with binary tensors, the answers in the outputs' order."""
    tensors = []
    for name, array in inputs.items():
        tensor = triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        tensor.set_data_from_numpy(array, binary_data=True)
        tensors.append(tensor)
    wanted = [triton.InferRequestedOutput(name, binary_data=True) for name in outputs]
    result = client.infer(model, tensors, outputs=wanted, **options)
    return [result.as_numpy(name) for name in outputs]


def digits(client, model, folder):
    data = np.load(folder / "test.npz")
    images = (data["images"].astype(np.float32) / 16).reshape(-1, 1, 8, 8)
    single = [ask(client, model, {"image": image[None]}, ["logits"])[0] for image in images]
    worst = difference(np.concatenate(single), data["logits"])
    (batch,) = ask(client, model, {"image": images}, ["logits"])
    worst = max(worst, difference(batch, data["logits"]))
    for algorithm in ("gzip", "deflate"):
        options = {"request_compression_algorithm": algorithm, "response_compression_algorithm": algorithm}
        (packed,) = ask(client, model, {"image": images}, ["logits"], **options)
        worst = max(worst, difference(packed, data["logits"]))
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


def real_model(client, model, file):
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    outputs = [port.name for port in session.get_outputs()]
    check_metadata(client, model, session)
    random, worst = np.random.default_rng(5), 0.0
    dynamic = any(isinstance(d, str) for port in session.get_inputs() for d in port.shape[1:])
    for batch in (1, 4):
        for length in (16, 77) if dynamic else (0,):
            inputs = random_inputs(session.get_inputs(), batch, length, random)
            if inputs is None:
                continue
            found = ask(client, model, inputs, outputs)
            pairs = zip(found, session.run(outputs, inputs))
            here = max(difference(a, b) for a, b in pairs)
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in inputs.items())
            print(f"{model}: {shapes}: largest difference {here:.1e}")
            worst = max(worst, here)
    return worst


def check_metadata(client, model, session):
    metadata = client.get_model_metadata(model)
    for found, ports in (metadata["inputs"], session.get_inputs()), (metadata["outputs"], session.get_outputs()):
        if [port["name"] for port in found] != [port.name for port in ports]:
            sys.exit(f"FAILED: the metadata of {model} names {found}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="127.0.0.1:7401")
    parser.add_argument("--digits", nargs=2, metavar=("NAME", "FOLDER"))
    parser.add_argument("--model", nargs=2, metavar=("NAME", "FILE"))
    args = parser.parse_args()
    client = triton.InferenceServerClient(args.url, network_timeout=120)
    if not (client.is_server_live() and client.is_server_ready()):
        sys.exit(f"FAILED: {args.url} is not ready")
    worst = 0.0
    for chosen, check in (args.digits, digits), (args.model, real_model):
        if chosen:
            if not client.is_model_ready(chosen[0]):
                sys.exit(f"FAILED: {chosen[0]} is not ready")
            worst = max(worst, check(client, chosen[0], pathlib.Path(chosen[1])))
    try:
        client.get_model_metadata("no-such-model")
        sys.exit("FAILED: a model that is not there has metadata")
    except InferenceServerException as error:
        print(f"an unknown model: {error}")
    if not worst <= TOLERANCE:
        sys.exit(f"FAILED: an answer differs by {worst:.1e}")
    print("tritonclient gets the whole model's answers")


if __name__ == "__main__":
    main()
