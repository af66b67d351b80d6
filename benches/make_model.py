"""Writes a Llama-shaped bf16 model in shards, and a rank-16 PEFT adapter on all its linear layers. Standard library only.

    python3 benches/make_model.py FOLDER [--layers 16] [--rank 16] [--shard-bytes 1000000000] [--change 0.01]

FOLDER gets `base` and `adapter`. The default is the shape of Llama-3.2-1B: 2.4 GB. Values are seeded and of a
trained model's size; blocks of them repeat, which no program here can profit from.
"""

import argparse
import array
import json
import os
import random
import struct
import sys

HIDDEN, INNER, HEADS, KV_HEADS, HEAD, VOCABULARY = 2048, 8192, 32, 8, 64, 128256
BLOCK = 1 << 20


def bf16(value):
    return struct.unpack("<I", struct.pack("<f", value))[0] >> 16


def block(seed, deviation):
    """A block of seeded normal values as bf16."""
    rng = random.Random(seed)
    return array.array("H", (bf16(rng.gauss(0.0, deviation)) for _ in range(BLOCK))).tobytes()


def write(path, tensors, metadata):
    """Tensors are (name, shape, block of values); the block is repeated."""
    header, at = {"__metadata__": metadata}, 0
    for name, shape, _ in tensors:
        size = 2
        for extent in shape:
            size *= extent
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, _, values in tensors:
            start, end = header[name]["data_offsets"]
            left = end - start
            while left > 0:
                file.write(values[: min(left, len(values))])
                left -= len(values)
    return at


def linears(layers):
    for i in range(layers):
        prefix = f"model.layers.{i}"
        yield f"{prefix}.self_attn.q_proj", HEADS * HEAD, HIDDEN
        yield f"{prefix}.self_attn.k_proj", KV_HEADS * HEAD, HIDDEN
        yield f"{prefix}.self_attn.v_proj", KV_HEADS * HEAD, HIDDEN
        yield f"{prefix}.self_attn.o_proj", HIDDEN, HEADS * HEAD
        yield f"{prefix}.mlp.gate_proj", INNER, HIDDEN
        yield f"{prefix}.mlp.up_proj", INNER, HIDDEN
        yield f"{prefix}.mlp.down_proj", HIDDEN, INNER


def base(folder, layers, shard_bytes):
    weights, norms = block(1, 0.02), block(2, 0.1)
    tensors = [("model.embed_tokens.weight", [VOCABULARY, HIDDEN], weights)]
    tensors += [(f"{name}.weight", [out, inputs], weights) for name, out, inputs in linears(layers)]
    for i in range(layers):
        tensors.append((f"model.layers.{i}.input_layernorm.weight", [HIDDEN], norms))
        tensors.append((f"model.layers.{i}.post_attention_layernorm.weight", [HIDDEN], norms))
    tensors.append(("model.norm.weight", [HIDDEN], norms))
    shards, size = [[]], 0
    for tensor in tensors:
        own = 2 * tensor[1][0] * (tensor[1][1] if len(tensor[1]) > 1 else 1)
        if size + own > shard_bytes and shards[-1]:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += own
    os.makedirs(folder, exist_ok=True)
    weight_map, total = {}, 0
    for i, shard in enumerate(shards):
        name = f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        total += write(os.path.join(folder, name), shard, {"format": "pt"})
        weight_map.update({tensor[0]: name for tensor in shard})
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN,
        "intermediate_size": INNER, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": HEAD,
        "num_hidden_layers": layers, "vocab_size": VOCABULARY, "tie_word_embeddings": True, "dtype": "bfloat16",
        "rms_norm_eps": 1e-05, "hidden_act": "silu", "max_position_embeddings": 131072,
    }
    for name, value in [("model.safetensors.index.json", index), ("config.json", config)]:
        with open(os.path.join(folder, name), "w") as file:
            json.dump(value, file, indent=2)


def adapter(folder, layers, rank, change):
    # A change has the elements 2 · Σ b · a, with 2 the scale; weights deviate by 0.02, a as well.
    a, b = block(3, 0.02), block(4, change / (2 * rank**0.5) if change else 0.01)
    tensors = []
    for name, out, inputs in linears(layers):
        tensors.append((f"base_model.model.{name}.lora_A.weight", [rank, inputs], a))
        tensors.append((f"base_model.model.{name}.lora_B.weight", [out, rank], b))
    os.makedirs(folder, exist_ok=True)
    write(os.path.join(folder, "adapter_model.safetensors"), tensors, {"format": "pt"})
    leaves = sorted({name.rsplit(".", 1)[1] for name, _, _ in linears(1)})
    config = {
        "peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": leaves, "bias": "none",
        "task_type": "CAUSAL_LM", "base_model_name_or_path": "base", "inference_mode": True,
    }
    with open(os.path.join(folder, "adapter_config.json"), "w") as file:
        json.dump(config, file, indent=2)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--shard-bytes", type=int, default=1_000_000_000)
    parser.add_argument("--change", type=float, help="norm of the changes, as a share of that of their weights")
    options = parser.parse_args()
    base(os.path.join(options.folder, "base"), options.layers, options.shard_bytes)
    adapter(os.path.join(options.folder, "adapter"), options.layers, options.rank, options.change)
    return 0


if __name__ == "__main__":
    sys.exit(main())
