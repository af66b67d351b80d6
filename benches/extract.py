"""Times `lora-tool extract` beside what they cannot be faster than, and beside full decompositions.

    python3 benches/make_model.py FOLDER
    cargo build --release
    target/release/lora-tool merge FOLDER/base FOLDER/adapter -o FOLDER/tuned --no-provenance
    python3 benches/extract.py FOLDER [--rounds 3] [--rank 16] [--full LAYERS]

In turns: reading both models once (`cat` into nothing), the matrix products of the decomposition at the rate that NumPy's
BLAS has for them, and the extraction of all linear layers. `--full N` also times NumPy's full singular value
decomposition of N layers' differences, each shape by itself, as tools that decompose with `torch.linalg.svd` or
`scipy.linalg.svd` have to, and scales that up to all layers. The Python that runs this needs numpy.
"""

import argparse
import json
import os
import statistics
import struct
import subprocess
import sys
import time

import numpy as np

PROGRAM = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "target", "release", "lora-tool")


def headers(folder):
    """Shapes and places of the tensors of every file."""
    for name in sorted(os.listdir(folder)):
        if name.endswith(".safetensors"):
            path = os.path.join(folder, name)
            with open(path, "rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                head = json.loads(file.read(length))
            head.pop("__metadata__", None)
            for key, about in head.items():
                yield key, about["shape"], path, 8 + length + about["data_offsets"][0], about["dtype"]


def values(entry):
    """A bf16 tensor as f32."""
    _, shape, path, start, dtype = entry
    assert dtype == "BF16", "the models of make_model.py are bf16"
    raw = np.fromfile(path, dtype=np.uint16, count=shape[0] * shape[1], offset=start)
    return (raw.astype(np.uint32) << 16).view(np.float32).reshape(shape)


def run(command):
    """Seconds, CPU seconds and peak megabytes of one run."""
    began = time.monotonic()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    if status != 0:
        sys.exit(f"failed: {' '.join(command)}")
    return time.monotonic() - began, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def products(shapes, width, passes):
    """Seconds for `passes` times D·K and Dᵀ·Y of every layer with `width` vectors, at the rate of one of each shape."""
    rng = np.random.default_rng(0)
    seconds = {}
    for shape in set(map(tuple, shapes)):
        d = rng.standard_normal(shape, dtype=np.float32)
        k = rng.standard_normal((shape[1], width), dtype=np.float32)
        y = d @ k
        best = 1e9
        for _ in range(3):
            began = time.monotonic()
            np.dot(d, k, out=y)
            d.T @ y
            best = min(best, time.monotonic() - began)
        seconds[shape] = best
    return passes * sum(seconds[tuple(s)] for s in shapes)


def full(base, tuned, count):
    """CPU seconds of full decompositions of all layers, from `count` of them."""
    by_shape = {}
    for key, entry in base.items():
        by_shape.setdefault(tuple(entry[1]), []).append(key)
    total = 0.0
    for shape, keys in by_shape.items():
        spent = []
        for key in keys[:count]:
            d = values(tuned[key]) - values(base[key])
            began = time.process_time()
            np.linalg.svd(d, full_matrices=False)
            spent.append(time.process_time() - began)
        total += statistics.mean(spent) * len(keys)
    return total


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rank", default="16")
    parser.add_argument("--full", type=int, default=0)
    options = parser.parse_args()
    base, tuned, out = (os.path.join(options.folder, name) for name in ("base", "tuned", "extracted"))
    linear = lambda folder: {e[0]: e for e in headers(folder) if len(e[1]) == 2 and "embed" not in e[0] and "lm_head" not in e[0]}
    layers = linear(base)
    shapes = [entry[1] for entry in layers.values()]
    command = [PROGRAM, "extract", base, tuned, "-o", out, "--rank", options.rank, "--force"]
    command += ["--exclude", "embed|lm_head"]
    document = json.loads(subprocess.run(command + ["--json"], check=True, capture_output=True).stdout)
    passes = statistics.mean(m["passes"] for m in document["modules"])
    vectors = statistics.mean(m["vectors"] for m in document["modules"])
    print(f"{len(shapes)} layers, {sum(a * b for a, b in shapes) / 1e9:.2f}e9 elements; {passes:.1f} readings, {vectors:.0f} vectors")
    error = document["overall"]["relative_error"]
    excess = max(m["excess"] for m in document["modules"])
    print(f"relative error {error:.4f}, said to be at most {excess:.1e} above the least")
    files = [os.path.join(f, n) for f in (base, tuned) for n in sorted(os.listdir(f)) if n.endswith(".safetensors")]
    runs = {"read both": [], "products": [], "extract": []}
    for _ in range(options.rounds):
        runs["read both"].append(run(["sh", "-c", "cat \"$@\" > /dev/null", "sh", *files]))
        runs["products"].append((products(shapes, round(vectors), 1), 0.0, 0.0))
        runs["extract"].append(run(command))
    floor = sum(statistics.median(r[0] for r in runs[name]) for name in ("read both", "products"))
    for name, measured in runs.items():
        seconds, cpu, peak = (statistics.median(column) for column in zip(*measured))
        print(f"{name:12}{seconds:8.2f} s{cpu:9.2f} s CPU{peak:8.0f} MB{seconds / floor:8.2f} of the floor")
    if options.full:
        cpu = full(layers, linear(tuned), options.full)
        ours = statistics.median(r[1] for r in runs["extract"])
        print(f"full decompositions: {cpu:.0f} s CPU, {cpu / ours:.0f} times extract")
    return 0


if __name__ == "__main__":
    sys.exit(main())
