"""Times `lora-tool convert` of a large adapter beside `cp` of the same file, in turns.

    cargo build --release
    python3 benches/convert.py [FOLDER] [--rounds 5] [--layers 32] [--rank 64]

The adapter has the shapes of Llama 3.1 8B, all seven linear layers, random bf16: 336 MB at rank 64. Every command runs
without waiting for the disk, beside `cp`, and with it, beside `cp` and `sync` of the copy. Peak memory is that of the whole
process, pages of the mapped input among them.
"""

import argparse
import json
import os
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
PROGRAM = os.environ.get("LORA_TOOL", os.path.join(ROOT, "target", "release", "lora-tool"))
HIDDEN, INNER, KEY_VALUE, HEADS = 4096, 14336, 1024, 32
SHAPES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN), "self_attn.k_proj": (KEY_VALUE, HIDDEN), "self_attn.v_proj": (KEY_VALUE, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN), "mlp.gate_proj": (INNER, HIDDEN), "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}
CASES = {
    "PEFT": ["--to", "peft"],
    "GGUF": ["--to", "gguf", "--base", "BASE"],
    "MLX": ["--to", "mlx"],
    "PEFT, --normalise": ["--to", "peft", "--normalise"],
    "PEFT, --dtype f16": ["--to", "peft", "--dtype", "f16"],
    "--for sglang": ["--for", "sglang"],
}


def numbers(count):
    """Random bf16 of either sign, between 2^-9 and 2^-5, as bytes."""
    data = bytearray(os.urandom(2 * count))
    data[1::2] = data[1::2].translate(bytes(b & 0x80 | 0x3B + b % 2 for b in range(256)))
    return data


def make_base(folder, layers):
    """What tells GGUF the architecture: a config, and a tensor for form's sake."""
    os.makedirs(folder)
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_attention_heads": HEADS,
              "num_key_value_heads": HEADS * KEY_VALUE // HIDDEN, "hidden_size": HIDDEN, "num_hidden_layers": layers}
    with open(os.path.join(folder, "config.json"), "w") as file:
        json.dump(config, file)
    text = b'{"model.norm.weight":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}}'
    with open(os.path.join(folder, "model.safetensors"), "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + bytes(4))


def make(folder, layers, rank):
    os.makedirs(folder)
    header, parts, at = {}, [], 0
    for layer in range(layers):
        for name, (rows, cols) in SHAPES.items():
            for factor, shape in (("A", (rank, cols)), ("B", (rows, rank))):
                size = 2 * shape[0] * shape[1]
                key = f"base_model.model.model.layers.{layer}.{name}.lora_{factor}.weight"
                header[key] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}
                parts.append(shape[0] * shape[1])
                at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(os.path.join(folder, "adapter_model.safetensors"), "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for count in parts:
            file.write(numbers(count))
        os.fsync(file.fileno())
    modules = sorted(name.split(".")[1] for name in SHAPES)
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 16, "target_modules": modules, "task_type": "CAUSAL_LM"}
    with open(os.path.join(folder, "adapter_config.json"), "w") as file:
        json.dump(config, file)
    return at


def timed(command):
    """Seconds by the clock, of the processor, and peak resident MB."""
    began = time.monotonic()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    if status != 0:
        sys.exit(f"failed: {' '.join(command)}")
    return time.monotonic() - began, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1000


def remove(path):
    shutil.rmtree(path) if os.path.isdir(path) else os.remove(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--only", help="cases whose names have this in them")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        source, out = os.path.join(folder, "in"), os.path.join(folder, "out")
        base = os.path.join(folder, "base")
        size = make(source, args.layers, args.rank)
        make_base(base, args.layers)
        file = os.path.join(source, "adapter_model.safetensors")
        cases = {name: more for name, more in CASES.items() if (args.only or "") in name}
        commands = {("cp", False): ["cp", file, out], ("cp", True): ["sh", "-c", f"cp {file} {out} && sync {out}"]}
        for name, more in cases.items():
            more = [base if word == "BASE" else word for word in more]
            for sync in (False, True):
                commands[name, sync] = [PROGRAM, "convert", source, "-o", out, *more, *([] if sync else ["--no-sync"])]
        times = {key: [] for key in commands}
        for _ in range(args.rounds):
            for key, command in commands.items():
                os.sync()
                times[key].append(timed(command))
                remove(out)
        print(f"{size / 1e6:.0f} MB, {args.rounds} rounds, medians")
        for (name, sync), all_times in times.items():
            wall, cpu, peak = (statistics.median(column) for column in zip(*all_times))
            least = min(t[0] for t in all_times)
            copy = statistics.median(t[0] for t in times["cp", sync])
            words = "synced" if sync else ""
            print(f"{name:20}{words:8}{wall:7.2f} s (least {least:.2f}) {wall / copy:6.2f} of cp{cpu:7.2f} s CPU{peak:7.0f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
