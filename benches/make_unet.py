"""Writes a folder with the U-Net of SDXL as diffusers keeps it and an adapter of kohya's for it, numbers by chance.

    python3 benches/make_unet.py FOLDER [--rank 32]
    python3 benches/compare.py FOLDER --adapter adapter.safetensors

FOLDER/base is the U-Net in f16, 5.1 GB; FOLDER/adapter.safetensors has every linear layer of its attention blocks. The
Python that runs this needs torch, diffusers and safetensors.
"""

import argparse
import os

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file

SDXL = dict(
    sample_size=128,
    block_out_channels=(320, 640, 1280),
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    transformer_layers_per_block=(1, 2, 10),
    attention_head_dim=(5, 10, 20),
    cross_attention_dim=2048,
    addition_embed_type="text_time",
    addition_time_embed_dim=256,
    projection_class_embeddings_input_dim=2816,
    use_linear_projection=True,
)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--rank", type=int, default=32)
    options = parser.parse_args()
    torch.manual_seed(0)
    pool = torch.randn(1 << 22).mul_(0.03).half()  # many times over: drawing them all takes longer than all else

    def tensor(*shape):
        count = torch.Size(shape).numel()
        return pool.repeat(-(-count // len(pool)))[:count].reshape(shape)

    with torch.device("meta"):
        model = UNet2DConditionModel(**SDXL)
    base = os.path.join(options.folder, "base")
    model.save_config(base)
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    save_file({key: tensor(*shape) for key, shape in shapes.items()}, f"{base}/diffusion_pytorch_model.safetensors")
    adapter = {}
    for key, shape in shapes.items():
        if ".attentions." in key and key.endswith(".weight") and len(shape) == 2:
            name = "lora_unet_" + key.removesuffix(".weight").replace(".", "_")
            adapter[f"{name}.lora_down.weight"] = tensor(options.rank, shape[1])
            adapter[f"{name}.lora_up.weight"] = tensor(shape[0], options.rank)
            adapter[f"{name}.alpha"] = torch.tensor(options.rank / 2, dtype=torch.float16)
    save_file(adapter, os.path.join(options.folder, "adapter.safetensors"))


if __name__ == "__main__":
    main()
