"""Times `lora-tool extract` and `merge` of a whole model on a CUDA device, beside the CPU of the same machine, the bus,
and `torch.svd_lowrank` on the same device.

    cargo build --release
    python3 benches/device.py FOLDER [--layers 32] [--rank 64] [--rounds 3] [--hidden 4096]

Makes in FOLDER a Llama-shaped bf16 model and one tuned from it, unless they are there: random weights, a change in every
linear layer whose singular values fall as k^-1 and noise (32 layers of 8B: 14 GB each, kept in the page cache). Then, in turns:

- copies of as many bytes from pinned memory to the device, which is the least that both models take on the bus;
- `extract --rank R --device cuda`, the same with `--tf32`, and once with `--device cpu`;
- `torch.svd_lowrank` of every difference on the device, with as many iterations as its error takes to be no more than a
  hundredth above that of `extract`;
- `merge` of the extracted adapter with `--device cuda` and `--device cpu`.

Without a device what needs one is skipped. The Python that runs this needs torch and safetensors.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

import torch
from safetensors import safe_open
from safetensors.torch import save_file

PROGRAM = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "target", "release", "lora-tool")


def shapes(hidden):
    inner, keys = hidden * 7 // 2, hidden // 4
    return {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }


def make(folder, layers, hidden, device):
    """Both models, a file for each layer."""
    torch.manual_seed(1)
    places = [os.path.join(folder, name) for name in ("base", "tuned")]
    if all(os.path.exists(os.path.join(place, "config.json")) for place in places):
        return places
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": hidden, "num_hidden_layers": layers}
    maps = [{}, {}]
    for place in places:
        os.makedirs(place, exist_ok=True)
    for layer in range(layers):
        before, after = {}, {}
        for name, (rows, cols) in shapes(hidden).items():
            key = f"model.layers.{layer}.{name}.weight"
            weight = torch.randn(rows, cols, device=device) * 0.02
            count = min(256, rows, cols)
            falling = torch.arange(1, count + 1, device=device) ** -1.0
            left = torch.linalg.qr(torch.randn(rows, count, device=device))[0]
            right = torch.linalg.qr(torch.randn(cols, count, device=device))[0]
            change = (left * falling) @ right.T + torch.randn(rows, cols, device=device) * 2e-5
            before[key] = weight.bfloat16().cpu()
            after[key] = (before[key].to(device).float() + change).bfloat16().cpu()
        file = f"model-{layer + 1:05}-of-{layers:05}.safetensors"
        for place, tensors, where in zip(places, (before, after), maps):
            save_file(tensors, os.path.join(place, file), metadata={"format": "pt"})
            where.update({key: file for key in tensors})
    for place, where in zip(places, maps):
        with open(os.path.join(place, "model.safetensors.index.json"), "w") as out:
            json.dump({"metadata": {}, "weight_map": where}, out)
        with open(os.path.join(place, "config.json"), "w") as out:
            json.dump(config, out)
    return places


def files(place):
    return sorted(os.path.join(place, name) for name in os.listdir(place) if name.endswith(".safetensors"))


def run(command):
    """Seconds, and the JSON document that was printed."""
    began = time.monotonic()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    took = time.monotonic() - began
    if done.returncode != 0:
        sys.exit(f"failed: {' '.join(command)}")
    return took, json.loads(done.stdout)


def bus(count):
    """Seconds for so many bytes from pinned memory."""
    pinned = torch.empty(64 << 20, dtype=torch.uint8).pin_memory()
    there = torch.empty_like(pinned, device="cuda")
    torch.cuda.synchronize()
    began = time.monotonic()
    copies = max(1, min(256, count // pinned.numel()))
    for _ in range(copies):
        there.copy_(pinned, non_blocking=True)
    torch.cuda.synchronize()
    return (time.monotonic() - began) * count / (copies * pinned.numel())


def lowrank(places, rank, most, iterations):
    """Seconds of torch.svd_lowrank over all layers, loading included and not, and how often the error was too large."""
    torch.backends.cuda.matmul.allow_tf32 = False
    whole, computing, above = 0.0, 0.0, 0
    for one, other in zip(files(places[0]), files(places[1])):
        with safe_open(one, "pt") as before, safe_open(other, "pt") as after:
            for key in before.keys():
                began = time.monotonic()
                difference = after.get_tensor(key).cuda().float() - before.get_tensor(key).cuda().float()
                torch.cuda.synchronize()
                loaded = time.monotonic()
                u, s, v = torch.svd_lowrank(difference, q=rank + 8, niter=iterations)
                u, s, v = u[:, :rank].cpu(), s[:rank].cpu(), v[:, :rank].cpu()
                torch.cuda.synchronize()
                done = time.monotonic()
                whole += done - began
                computing += done - loaded
                # What it is compared by is no part of the time.
                error = (difference - (u.cuda() * s.cuda()) @ v.cuda().T).norm() / difference.norm()
                above += int(error.item() > most[key] * 1.01)
    return whole, computing, above


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--program", default=PROGRAM)
    options = parser.parse_args()
    has_device = torch.cuda.is_available()
    places = make(options.folder, options.layers, options.hidden, "cuda" if has_device else "cpu")
    count = sum(os.path.getsize(file) for place in places for file in files(place))
    subprocess.run(["sh", "-c", 'cat "$@" > /dev/null', "sh", *files(places[0]), *files(places[1])], check=True)
    print(f"{count / 1e9:.1f} GB in both models, rank {options.rank}")
    if has_device:
        print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {os.cpu_count()} cores")

    adapter = os.path.join(options.folder, "adapter")
    extract = [options.program, "extract", *places, "-o", adapter, "--rank", str(options.rank), "--json", "--no-sync", "--force"]
    kinds = {"cuda": ["--device", "cuda"], "cuda --tf32": ["--device", "cuda", "--tf32"], "cpu": ["--device", "cpu"]}
    listed = json.loads(subprocess.run([options.program, "kernels", "--json"], stdout=subprocess.PIPE).stdout)
    if not any(k["name"] == "cuda" and k["present"] for k in listed["kernels"]):
        print("skipped: no device for lora-tool")
        kinds = {"cpu": kinds["cpu"]}
    times = {name: [] for name in [*kinds, "bus"]}
    documents = {}
    for turn in range(options.rounds):
        if has_device:
            times["bus"].append(bus(count))
        for name, flags in kinds.items():
            if name != "cpu" or turn == 0:
                took, documents[name] = run(extract + flags)
                times[name].append(took)
    for name, runs in times.items():
        if runs:
            error = documents.get(name, {}).get("overall", {}).get("relative_error")
            shown = f", relative error {error:.6f}" if error is not None else ""
            print(f"extract, {name:12} {statistics.median(runs):8.2f} s (best {min(runs):.2f}){shown}")
    if "cuda" in kinds:
        median = statistics.median(times["cuda"])
        against = [f"{statistics.median(times['cpu']) / median:.1f} times as fast as the CPU"]
        if times["bus"]:
            against.append(f"{median / statistics.median(times['bus']):.2f} x the bus")
        print("extract on the device:", ", ".join(against))
    if has_device and "cuda" in kinds:
        most = {f"{m['module']}.weight": m["relative_error"] for m in documents["cuda"]["modules"]}
        lowrank(places, options.rank, most, 0)  # warms up
        for iterations in range(0, 9):
            whole, computing, above = lowrank(places, options.rank, most, iterations)
            print(f"torch.svd_lowrank, niter {iterations}: {whole:.2f} s, {computing:.2f} s without loading, {above} layers above")
            if above == 0:
                print(f"extract on the device is {whole / median:.1f} times as fast ({computing / median:.1f} without loading)")
                break
    merged = os.path.join(options.folder, "merged")
    for name, flags in kinds.items():
        if name == "cuda --tf32":
            continue
        merge = [options.program, "merge", places[0], adapter, "-o", merged, "--json", "--no-sync", "--force"]
        runs = [run(merge + flags)[0] for _ in range(options.rounds)]
        rate = count / 2 / min(runs) / 1e9
        print(f"merge, {name:4} {statistics.median(runs):8.2f} s (best {min(runs):.2f}, {rate:.1f} GB/s of the base)")


main()
