"""Times a thousand small adapters: `lora-tool batch`, the same once more with `--resume`, and one `lora-tool convert`.

    cargo build --release
    python3 benches/batch.py [FOLDER] [--count 1000] [--rounds 3]

The adapter is one of the fixtures, 1.1 kB in 8 tensors; every copy is converted with `--normalise`. `cp -r` of all of them
stands beside it.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
PROGRAM = os.environ.get("LORA_TOOL", os.path.join(ROOT, "target", "release", "lora-tool"))
ADAPTER = os.path.join(ROOT, "fixtures", "adapters", "peft", "lora")
JOB = '[[job]]\ncommand = "convert"\nadapter = "in/*"\nout = "out/{stem}"\nto = "peft"\nnormalise = true\n'
CONVERT = [PROGRAM, "convert", "--to", "peft", "--normalise", "-o", "out"]


def timed(command, folder):
    """Seconds and peak resident MB."""
    began = time.monotonic()
    child = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    if status != 0:
        sys.exit(f"failed: {' '.join(command[:8])}")
    return time.monotonic() - began, usage.ru_maxrss / 1000


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        inputs = [os.path.join("in", f"a{number:04}") for number in range(args.count)]
        for path in inputs:
            shutil.copytree(ADAPTER, os.path.join(folder, path))
        for name, more in (("jobs", "no-sync = true\n"), ("synced", "")):
            with open(os.path.join(folder, f"{name}.toml"), "w") as file:
                file.write(JOB + more)
        time.sleep(3)  # until the times of the files tell their states apart
        batch = lambda file, *more: [PROGRAM, "batch", file, *more]
        cases = {
            "cp -r": ["cp", "-r", "in", "out"],
            "batch --jobs 1": batch("jobs.toml"),
            "batch --jobs 2": batch("jobs.toml", "--jobs", "2"),
            "  the same, --resume": batch("jobs.toml", "--jobs", "2", "--resume"),
            "batch --jobs 2 --no-record": batch("jobs.toml", "--jobs", "2", "--no-record"),
            "batch --jobs 2, synced": batch("synced.toml", "--jobs", "2"),
            "convert": [*CONVERT, "--no-sync", *inputs],
            "convert, synced": [*CONVERT, *inputs],
        }
        times = {name: [] for name in cases}
        for _ in range(args.rounds):
            for name, command in cases.items():
                if "--resume" not in command:
                    shutil.rmtree(os.path.join(folder, "out"), ignore_errors=True)
                if command[1] == "batch":
                    os.makedirs(os.path.join(folder, "out"), exist_ok=True)
                times[name].append(timed(command, folder))
        for name, all_times in times.items():
            seconds, peak = (statistics.median(column) for column in zip(*all_times))
            print(f"{name:28}{seconds:7.2f} s {args.count / seconds:8.0f} a second{peak:7.0f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
