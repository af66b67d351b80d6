"""Times `lora-tool batch` over a thousand small adapters: conversions with `--normalise`, then the same once more with `--resume`.

    cargo build --release
    python3 benches/batch.py [--count 1000]
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
PROGRAM = os.path.join(ROOT, "target", "release", "lora-tool")
ADAPTER = os.path.join(ROOT, "fixtures", "adapters", "peft", "lora")
JOBS = '[[job]]\ncommand = "convert"\nadapter = "in/*"\nout = "out-{stem}"\nto = "peft"\nnormalise = true\nno-sync = true\n'


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1000)
    count = parser.parse_args().count
    with tempfile.TemporaryDirectory() as folder:
        for number in range(count):
            shutil.copytree(ADAPTER, os.path.join(folder, "in", f"a{number:04}"))
        with open(os.path.join(folder, "jobs.toml"), "w") as file:
            file.write(JOBS)
        for more in (["--jobs", "1"], ["--jobs", "2", "--resume"]):
            began = time.monotonic()
            done = subprocess.run([PROGRAM, "batch", "jobs.toml", *more], cwd=folder, stdout=subprocess.DEVNULL)
            if done.returncode != 0:
                return done.returncode
            print(f"{' '.join(more):20}{count / (time.monotonic() - began):8.0f} a second")
    return 0


if __name__ == "__main__":
    sys.exit(main())
