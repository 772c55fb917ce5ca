"""HPSv3 written out in plain tensor operations, in float64, and tiny files of its layout.

Shares no code with the package nor with the library's model: every tensor is spelled out by its
published name, an image is cut value by value, attention is a loop over heads.
"""

import json
import math

import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from mvczigal_ref.reward.hpsv3_network import INSTRUCTION_FILE
from tests.unit.reward.slow_transformers import affine, attend, gelu, norm, random_tensors

SPECIAL = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
BEFORE, AFTER = "\nRate it. Text - {text_prompt}\n", " Rating: <|Reward|> END "
PIXELS = 56 * 56
WORDS = 256 + len(SPECIAL) + 1  # every byte, the special tokens, the reward token
WIDTH, INNER, LAYERS, HEADS, THETA = 32, 40, 2, 2, 1e6
SEEN, SEEN_HEADS = 32, 2  # of the image encoder
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def hpsv3_shapes():
    """Names and shapes of the published file, at toy width."""
    head = WIDTH // HEADS
    shapes = {
        "visual.patch_embed.proj.weight": (SEEN, 3, 2, 14, 14),
        "visual.merger.ln_q.weight": (SEEN,),
        "visual.merger.ln_q.bias": (SEEN,),
        "visual.merger.mlp.0.weight": (4 * SEEN, 4 * SEEN),
        "visual.merger.mlp.0.bias": (4 * SEEN,),
        "visual.merger.mlp.2.weight": (WIDTH, 4 * SEEN),
        "visual.merger.mlp.2.bias": (WIDTH,),
        "model.embed_tokens.weight": (WORDS, WIDTH),
        "model.norm.weight": (WIDTH,),
        "lm_head.weight": (WORDS, WIDTH),
    }
    for part, shape in (
        ("norm1", (SEEN,)),
        ("norm2", (SEEN,)),
        ("attn.qkv", (3 * SEEN, SEEN)),
        ("attn.proj", (SEEN, SEEN)),
        ("mlp.fc1", (2 * SEEN, SEEN)),
        ("mlp.fc2", (SEEN, 2 * SEEN)),
    ):
        shapes |= {
            f"visual.blocks.0.{part}.weight": shape,
            f"visual.blocks.0.{part}.bias": shape[:1],
        }
    for layer in range(LAYERS):
        at = f"model.layers.{layer}"
        shapes |= {
            f"{at}.input_layernorm.weight": (WIDTH,),
            f"{at}.post_attention_layernorm.weight": (WIDTH,),
            f"{at}.self_attn.o_proj.weight": (WIDTH, WIDTH),
            f"{at}.mlp.gate_proj.weight": (INNER, WIDTH),
            f"{at}.mlp.up_proj.weight": (INNER, WIDTH),
            f"{at}.mlp.down_proj.weight": (WIDTH, INNER),
        }
        for part, rows in (("q", WIDTH), ("k", head), ("v", head)):
            shapes |= {f"{at}.self_attn.{part}_proj.weight": (rows, WIDTH)}
            shapes |= {f"{at}.self_attn.{part}_proj.bias": (rows,)}
    for index, rows, columns in ((0, 1024, WIDTH), (3, 16, 1024), (5, 2, 16)):
        shapes |= {f"rm_head.{index}.weight": (rows, columns), f"rm_head.{index}.bias": (rows,)}
    return shapes


def hpsv3_tensors():
    """A random HPSv3 in its published names."""
    return random_tensors(hpsv3_shapes(), seed=0)


def in_newer_names(tensors):
    """The same under the names that newer versions of the library give."""
    renamed = {}
    for name, value in tensors.items():
        for old, new in (("visual.", "model.visual."), ("model.", "model.language_model.")):
            if name.startswith(old):
                name = new + name.removeprefix(old)
                break
        renamed[name] = value
    return renamed


def write_hpsv3(folder):
    """Write weights, instruction, configuration and tokenizer."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "model_type": "qwen2_vl",
        "architectures": ["Qwen2VLForConditionalGeneration"],
        # The published one leaves room for words that do not exist.
        "vocab_size": 300,
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": 1,
        "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-6,
        "rope_theta": THETA,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
        "image_token_id": tokenizer.token_to_id("<|image_pad|>"),
        "vision_config": {
            "depth": 1,
            "embed_dim": SEEN,
            "mlp_ratio": 2,
            "num_heads": SEEN_HEADS,
            "in_chans": 3,
            "hidden_size": WIDTH,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "temporal_patch_size": 2,
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / INSTRUCTION_FILE).write_bytes((BEFORE + AFTER).encode())
    save_file(hpsv3_tensors(), folder / "HPSv3.safetensors")


def slow_patches(image):
    """One image's patches, value by value: resized, normalised, in blocks of two by two."""
    height, width = image.shape[-2:]
    # Both sides whole multiples of 28, no fewer pixels than asked for.
    factor = math.sqrt(PIXELS / (height * width))
    size = [math.ceil(side * factor / 28) * 28 for side in (height, width)]
    rounded = [round(side / 28) * 28 for side in (height, width)]
    assert rounded[0] * rounded[1] < PIXELS
    pixels = (image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    flat = Image.fromarray(pixels).resize((size[1], size[0]), Image.Resampling.BICUBIC).tobytes()

    def value(c, y, x):
        return (flat[3 * (y * size[1] + x) + c] / 255 - MEAN[c]) / STD[c]

    rows, places = [], []
    for block_y in range(0, size[0] // 14, 2):
        for block_x in range(0, size[1] // 14, 2):
            for place in [(block_y + y, block_x + x) for y in (0, 1) for x in (0, 1)]:
                patch = []
                for c in range(3):
                    colour = [
                        value(c, 14 * place[0] + y, 14 * place[1] + x)
                        for y in range(14)
                        for x in range(14)
                    ]
                    patch += colour + colour  # a still image fills both frames of a patch
                rows.append(patch)
                places.append(place)
    return torch.tensor(rows, dtype=torch.float64), places


def frequencies(width, base):
    """Of a rotation of so many numbers; the released code had rounded them to bfloat16."""
    exact = [base ** (-2 * k / width) for k in range(width // 2)]
    return torch.tensor(exact).bfloat16().double()


def rotated(heads, angle):
    """Turn the two halves of every head's numbers against each other."""
    one, other = heads.chunk(2, dim=-1)
    return torch.cat(
        [one * angle.cos() - other * angle.sin(), other * angle.cos() + one * angle.sin()], dim=-1
    )


def turned(rows, count, angle):
    """The same for rows that hold so many heads side by side."""
    return torch.cat([rotated(part, angle) for part in rows.chunk(count, dim=-1)], dim=-1)


def root_mean_square(x, weight):
    """Scale rows to a mean square of one, then by a weight each."""
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight


def slow_hpsv3(folder, tensors, image, prompt):
    """The whole message through the whole network; what follows the reward token too."""
    t = {name: value.double() for name, value in tensors.items()}
    patches, places = slow_patches(image)
    x = patches @ t["visual.patch_embed.proj.weight"].flatten(1).T
    bands = frequencies(SEEN // SEEN_HEADS // 2, 1e4)
    angle = torch.stack([torch.cat([y * bands, x_ * bands]) for y, x_ in places])
    at = "visual.blocks.0"
    parts = affine(norm(x, t, f"{at}.norm1", 1e-6), t, f"{at}.attn.qkv").chunk(3, dim=-1)
    query, key = (turned(part, SEEN_HEADS, angle) for part in parts[:2])
    x = x + affine(attend(query, key, parts[2], SEEN_HEADS), t, f"{at}.attn.proj")
    inside = affine(norm(x, t, f"{at}.norm2", 1e-6), t, f"{at}.mlp.fc1")
    x = x + affine(inside * torch.sigmoid(1.702 * inside), t, f"{at}.mlp.fc2")
    merged = norm(x, t, "visual.merger.ln_q", 1e-6).reshape(-1, 4 * SEEN)
    seen = affine(gelu(affine(merged, t, "visual.merger.mlp.0")), t, "visual.merger.mlp.2")

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens(["<|Reward|>"])
    text = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
    text += "<|vision_start|>" + "<|image_pad|>" * len(seen) + "<|vision_end|>"
    text += (BEFORE + AFTER).replace("{text_prompt}", prompt)
    text += "<|im_end|>\n<|im_start|>assistant\n"
    ids = torch.tensor(tokenizer.encode(text).ids)
    y = t["model.embed_tokens.weight"][ids]
    y[ids == tokenizer.token_to_id("<|image_pad|>")] = seen
    # Image tokens are counted like words.
    angle = torch.arange(len(ids))[:, None] * frequencies(WIDTH // HEADS, THETA)
    for layer in range(LAYERS):
        at = f"model.layers.{layer}"
        inside = root_mean_square(y, t[f"{at}.input_layernorm.weight"])
        query, key, val = (affine(inside, t, f"{at}.self_attn.{part}_proj") for part in "qkv")
        # All heads ask the one head of keys and values.
        key, val = rotated(key, angle).repeat(1, HEADS), val.repeat(1, HEADS)
        found = attend(turned(query, HEADS, angle), key, val, HEADS, causal=True)
        y = y + found @ t[f"{at}.self_attn.o_proj.weight"].T
        inside = root_mean_square(y, t[f"{at}.post_attention_layernorm.weight"])
        gate = inside @ t[f"{at}.mlp.gate_proj.weight"].T
        up = inside @ t[f"{at}.mlp.up_proj.weight"].T
        y = y + (gate * torch.sigmoid(gate) * up) @ t[f"{at}.mlp.down_proj.weight"].T
    y = root_mean_square(y, t["model.norm.weight"])
    values = y[ids == tokenizer.token_to_id("<|Reward|>")]
    for index in (0, 3, 5):
        values = affine(values, t, f"rm_head.{index}")
        values = values if index == 5 else values.clamp(min=0.0)
    return float(values[0, 0])
