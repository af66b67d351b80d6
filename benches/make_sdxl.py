"""Writes a checkpoint of SDXL in one file and an adapter of kohya's for its U-Net and both text encoders, numbers by chance.

    python3 benches/make_sdxl.py FOLDER [--rank 32]
    python3 benches/compare.py FOLDER --adapter adapter.safetensors

FOLDER/base has it, 6.9 GB in f16: U-Net, both text encoders and an autoencoder of their real sizes. Names and shapes are
those of fixtures/diffusion. The Python that runs this needs torch and safetensors.
"""

import argparse
import os
import re

import torch
from safetensors.torch import save_file

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


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--rank", type=int, default=32)
    options = parser.parse_args()
    os.makedirs(os.path.join(options.folder, "base"), exist_ok=True)
    torch.manual_seed(0)
    pool = torch.randn(1 << 22).mul_(0.03).half()  # many times over: drawing them all takes longer than all else

    def tensor(*shape):
        count = torch.Size(shape).numel()
        return pool.repeat(-(-count // len(pool)))[:count].reshape(shape)

    base, adapter = {}, {}

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
        adapter[f"{name}.alpha"] = torch.tensor(options.rank / 2, dtype=torch.float16)

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
    save_file(base, os.path.join(options.folder, "base", "sdxl.safetensors"))
    save_file(adapter, os.path.join(options.folder, "adapter.safetensors"))


if __name__ == "__main__":
    main()
