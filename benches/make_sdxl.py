"""Writes a checkpoint of SDXL in one file and an adapter of kohya's for its U-Net and both text encoders, numbers by chance.

    python3 benches/make_sdxl.py FOLDER [--rank 32]
    python3 benches/compare.py FOLDER --adapter adapter.safetensors

FOLDER/base has it, 6.9 GB in f16: U-Net, both text encoders and an autoencoder of their real sizes. Names and shapes are
those of fixtures/diffusion. The Python that runs this needs numpy.
"""

import argparse
import json
import os
import re

import numpy

NAMES = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "fixtures", "diffusion")


def expand(name):
    found = re.search(r"\{([^}]*)\}", name)
    if not found:
        return [name]
    numbers = []
    for piece in found.group(1).split(","):
        first, _, last = piece.partition("-")
        numbers += range(int(first), int(last or first) + 1)
    return [one for n in numbers for one in expand(name[: found.start()] + str(n) + name[found.end() :])]


def modules(model, side):
    for line in open(os.path.join(NAMES, f"{model}.tsv")):
        kind, name, shape = line.rstrip("\n").split("\t")
        if kind == side:
            yield from ((one, [int(n) for n in shape.split()]) for one in expand(name))


def write(path, shapes, alpha):
    """A safetensors file in f16, a tensor at a time: numbers by chance, many times over, and `alpha` for single ones."""
    pool = (numpy.random.default_rng(0).standard_normal(1 << 22) * 0.03).astype(numpy.float16)
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 2 * int(numpy.prod(shape, dtype=numpy.int64))
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for shape in shapes.values():
            left = int(numpy.prod(shape, dtype=numpy.int64))
            if not shape:
                file.write(numpy.float16(alpha).tobytes())
                continue
            while left:
                count = min(left, len(pool))
                file.write(pool[:count].tobytes())
                left -= count


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--rank", type=int, default=32)
    options = parser.parse_args()
    os.makedirs(os.path.join(options.folder, "base"), exist_ok=True)
    base, adapter = {}, {}
    tensor = lambda *shape: shape

    def put(prefix, name, shape):
        if name.endswith("!"):
            base[f"{prefix}{name[:-1]}"] = tensor(*shape)
        elif name.endswith("_"):
            base[f"{prefix}{name}weight"] = tensor(*shape)
            base[f"{prefix}{name}bias"] = tensor(shape[0])
        else:
            base[f"{prefix}{name}.weight"] = tensor(*shape)
            base[f"{prefix}{name}.bias"] = tensor(shape[0])

    def adapt(name, rows, columns):
        adapter[f"{name}.lora_down.weight"] = tensor(options.rank, columns)
        adapter[f"{name}.lora_up.weight"] = tensor(rows, options.rank)
        adapter[f"{name}.alpha"] = ()

    for name, shape in modules("sdxl", "N"):
        put("model.diffusion_model.", name, shape)
        if "transformer_blocks" in name and len(shape) == 2:
            adapt("lora_unet_" + name.replace(".", "_"), *shape)
    for name, shape in modules("clip_l", "D"):
        put("conditioner.embedders.0.transformer.text_model.", name, shape)
    for name, shape in modules("clip_g", "N"):
        put("conditioner.embedders.1.model.", name, shape)
    for encoder, model in (("lora_te1", "clip_l"), ("lora_te2", "clip_g")):
        for name, shape in modules(model, "D"):
            if "layers." in name and len(shape) == 2:
                adapt(f"{encoder}_text_model_" + name.removeprefix("text_model.").replace(".", "_"), *shape)
    for number in range(16):
        base[f"first_stage_model.decoder.up.{number}.conv.weight"] = tensor(760, 760, 3, 3)
    write(os.path.join(options.folder, "base", "sdxl.safetensors"), base, options.rank / 2)
    write(os.path.join(options.folder, "adapter.safetensors"), adapter, options.rank / 2)


if __name__ == "__main__":
    main()
