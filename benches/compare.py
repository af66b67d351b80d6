"""Times `lora-tool merge` beside `cp -r` of the same base, and beside PEFT where it is installed.

    python3 benches/make_model.py FOLDER
    cargo build --release
    python3 benches/compare.py FOLDER [--rounds 5] [--peft] [--undo] [--adapter NAME]

All are run in turns, so that they meet the same state of the machine; medians and ratios to `cp -r` are printed. The
base is read once before, so that it is in the page cache. With `--peft` the Python that runs this needs torch,
transformers and peft: the model is loaded in bf16, merged and saved, as its documentation shows. With `--undo` a merge that
writes an undo record is among them, and the unmerge from it; the record's size is printed.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import time

PROGRAM = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "target", "release", "lora-tool")
PEFT = """
import sys, torch
from transformers import AutoModelForCausalLM
from peft import PeftModel
base, adapter, out = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(out, max_shard_size="1GB")
"""


def timed(command):
    """Seconds and peak resident megabytes of one run."""
    began = time.monotonic()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    if status != 0:
        sys.exit(f"failed: {' '.join(command)}")
    return time.monotonic() - began, usage.ru_maxrss / 1024


def warm(folder):
    for name in os.listdir(folder):
        with open(os.path.join(folder, name), "rb") as file:
            while file.read(1 << 24):
                pass


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peft", action="store_true")
    parser.add_argument("--undo", action="store_true")
    parser.add_argument("--adapter", default="adapter")
    options = parser.parse_args()
    names = ("base", options.adapter, "out", "back", "base.undo")
    base, adapter, out, back, record = (os.path.join(options.folder, name) for name in names)
    commands = {
        "cp -r": ["cp", "-r", base, out],
        "lora-tool": [PROGRAM, "merge", base, adapter, "-o", out],
        "lora-tool --no-sync": [PROGRAM, "merge", base, adapter, "-o", out, "--no-sync"],
        "lora-tool --threads 1": [PROGRAM, "merge", base, adapter, "-o", out, "--threads", "1"],
    }
    if options.peft:
        commands["PEFT"] = [sys.executable, "-c", PEFT, base, adapter, out]
    if options.undo:
        commands["merge --undo"] = [PROGRAM, "merge", base, adapter, "-o", out, "--undo", record]
        commands["unmerge --undo"] = [PROGRAM, "unmerge", out, "-o", back, "--undo", record]
    runs = {name: [] for name in commands}
    warm(base)
    for _ in range(options.rounds):
        for name, command in commands.items():
            if name != "unmerge --undo":  # it takes what the command before it made
                shutil.rmtree(out, ignore_errors=True)
                if os.path.exists(record):
                    os.remove(record)
            os.sync()
            runs[name].append(timed(command))
            shutil.rmtree(back, ignore_errors=True)
    if options.undo:
        size = os.path.getsize(record)
        print(f"undo record: {size / 1e6:.1f} MB")
        os.remove(record)
    shutil.rmtree(out, ignore_errors=True)
    floor = statistics.median(seconds for seconds, _ in runs["cp -r"])
    print(f"{'':24}{'median s':>10}{'min':>8}{'max':>8}{'/ cp -r':>9}{'peak MB':>9}")
    for name, measured in runs.items():
        seconds = [s for s, _ in measured]
        median = statistics.median(seconds)
        peak = max(megabytes for _, megabytes in measured)
        print(f"{name:24}{median:10.2f}{min(seconds):8.2f}{max(seconds):8.2f}{median / floor:9.2f}{peak:9.0f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
