"""Writes bases in 8-bit floats in the shapes of FLUX.1, without and with scales, and an adapter of kohya's for them.

    python3 benches/make_eight_bit.py FOLDER
    time cp -r FOLDER/plain FOLDER/out; rm -r FOLDER/out
    time lora-tool merge FOLDER/plain FOLDER/adapter.safetensors -o FOLDER/out --no-sync

FOLDER/plain and FOLDER/scaled hold 3.4 GB of e4m3 each, 96 layers, numbers by chance. The Python that runs this needs numpy.
"""

import json
import os
import sys

import numpy

D, RANK = 3072, 16


def write(path, tensors):
    """A safetensors file of (dtype, shape, bytes of a pool that are repeated)."""
    header, end = {}, 0
    size = lambda dtype, shape: int(numpy.prod(shape, dtype=numpy.int64)) * {"F8_E4M3": 1, "F16": 2, "F32": 4}[dtype]
    for name, (dtype, shape, _) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + size(dtype, shape)]}
        end += size(dtype, shape)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for dtype, shape, pool in tensors.values():
            left = size(dtype, shape)
            while left:
                left -= file.write(pool[: min(left, len(pool))])


def main():
    folder = sys.argv[1]
    chance = numpy.random.default_rng(0)
    count = 1 << 22
    bits = chance.integers(0, 0x60, count, dtype=numpy.uint8) | chance.integers(0, 2, count, dtype=numpy.uint8) << 7
    eight = bits.tobytes()
    half = (chance.standard_normal(count) * 0.02).astype(numpy.float16).tobytes()
    shapes = {}
    for n in range(9):
        for stream in ("img", "txt"):
            block = f"double_blocks.{n}.{stream}"
            shapes.update({f"{block}_attn.qkv": (3 * D, D), f"{block}_attn.proj": (D, D)})
            shapes.update({f"{block}_mlp.0": (4 * D, D), f"{block}_mlp.2": (D, 4 * D)})
    for n in range(12):
        shapes.update({f"single_blocks.{n}.linear1": (7 * D, D), f"single_blocks.{n}.linear2": (D, 5 * D)})
    plain = {f"{name}.weight": ("F8_E4M3", shape, eight) for name, shape in shapes.items()}
    scales = {f"{name}.scale_weight": ("F32", (1,), numpy.float32(0.001).tobytes()) for name in shapes}
    adapter = {}
    for name, (rows, columns) in shapes.items():
        key = "lora_unet_" + name.replace(".", "_")
        adapter[f"{key}.lora_down.weight"] = ("F16", (RANK, columns), half)
        adapter[f"{key}.lora_up.weight"] = ("F16", (rows, RANK), half)
    for kind, tensors in (("plain", plain), ("scaled", {**plain, **scales, "scaled_fp8": ("F8_E4M3", (2,), b"\0\0")})):
        os.makedirs(os.path.join(folder, kind), exist_ok=True)
        write(os.path.join(folder, kind, "model.safetensors"), tensors)
    write(os.path.join(folder, "adapter.safetensors"), adapter)


if __name__ == "__main__":
    main()
