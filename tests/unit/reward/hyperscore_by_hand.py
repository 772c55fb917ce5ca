"""HyperScore once more, slowly, from the published names: one image, token and axis at a time.

Shares no code with the package. Everything is float64.
"""

import math
from itertools import pairwise

import torch

HEAD_WIDTH = 64
AXES = 4
CONTEXT = 12
TARGET = (224, 112, 56, 28, 1)


def random_checkpoint(size, *, seed):
    """Draw every tensor of a published file for a network of this size."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}

    def draw(name, *shape, scale=None, around=0.0):
        scale = scale if scale is not None else math.prod(shape[1:]) ** -0.5
        tensors[name] = around + scale * torch.randn(shape, generator=generator)

    def normalisation(name, width):
        draw(f"{name}.weight", width, scale=0.2, around=1.0)
        draw(f"{name}.bias", width, scale=0.2)

    def linear(name, into, out):
        draw(f"{name}.weight", out, into)
        draw(f"{name}.bias", out, scale=0.2)

    def blocks(name, width, count):
        for i in range(count):
            block = f"{name}.resblocks.{i}"
            draw(f"{block}.attn.in_proj_weight", 3 * width, width)
            draw(f"{block}.attn.in_proj_bias", 3 * width, scale=0.2)
            linear(f"{block}.attn.out_proj", width, width)
            linear(f"{block}.mlp.c_fc", width, 4 * width)
            linear(f"{block}.mlp.c_proj", 4 * width, width)
            normalisation(f"{block}.ln_1", width)
            normalisation(f"{block}.ln_2", width)

    wide, text = size.vision_width, size.text_width
    patches = (size.image_size // size.patch_size) ** 2
    draw("clip_model.visual.class_embedding", wide, scale=0.5)
    draw("clip_model.visual.positional_embedding", patches + 1, wide, scale=0.5)
    draw("clip_model.visual.proj", wide, size.embed_dim, scale=wide**-0.5)
    draw("clip_model.visual.conv1.weight", wide, 3, size.patch_size, size.patch_size)
    normalisation("clip_model.visual.ln_pre", wide)
    blocks("clip_model.visual.transformer", wide, size.vision_layers)
    normalisation("clip_model.visual.ln_post", wide)
    draw("clip_model.positional_embedding", size.context_length, text, scale=0.5)
    draw("clip_model.text_projection", text, size.embed_dim, scale=text**-0.5)
    blocks("clip_model.transformer", text, size.text_layers)
    normalisation("clip_model.ln_final", text)
    tensors["clip_model.logit_scale"] = torch.tensor(4.6)
    for name in list(tensors):
        own = name.removeprefix("clip_model.")
        if not own.startswith(("visual.", "logit_scale")):
            tensors[f"text_encoder.{own}"] = tensors[name]
    draw("clip_model.token_embedding.weight", size.vocab_size, text, scale=1.0)
    draw("prompt_learner.ctx", AXES, CONTEXT, text, scale=1.0)
    draw("prompt_learner.token_prefix", AXES, 1, text, scale=1.0)
    draw("prompt_learner.token_suffix", AXES, size.context_length - 13, text, scale=1.0)
    linear("fc_quality", size.embed_dim, 224)
    linear("fc_condition", size.embed_dim, 112 * 7 * 7)
    for i, (into, out) in enumerate(pairwise(TARGET), start=1):
        if out > 1:
            draw(f"hypernet.fc{i}w_conv.weight", into * out // 49, 112, 3, 3, scale=0.01)
            draw(f"hypernet.fc{i}w_conv.bias", into * out // 49, scale=into**-0.5)
        else:
            linear(f"hypernet.fc{i}w_fc", 112, into)
        linear(f"hypernet.fc{i}b_fc", 112, out)
    return tensors


def slow_scores(tensors, images, ids):
    """Score normalised images (object, view, 3, side, side) with token ids, axis by axis."""
    t = {name: value.double() for name, value in tensors.items()}
    table = [[0.0] * AXES for _ in ids]
    for b, row in enumerate(ids):
        patches = [patch for image in images[b] for patch in patch_features(t, image)]
        tokens = text_features(t, t["clip_model.token_embedding.weight"][row])
        end = tokens[row.index(max(row))]
        for axis in range(AXES):
            learned = condition(t, axis)
            logits = []
            for patch in patches:
                logits.append(sum(cosine(x, patch) * cosine(x, learned) for x in tokens))
            total = sum(math.exp(x) for x in logits)
            fused = sum(
                (math.exp(x) / total) * patch for x, patch in zip(logits, patches, strict=True)
            )
            table[b][axis] = target_network(t, learned, affine(t, "fc_quality", fused * end))
    return torch.tensor(table, dtype=torch.float64)


def patch_features(t, image):
    """Return a list of every patch's feature, row by row."""
    kernel = t["clip_model.visual.conv1.weight"]
    p = kernel.shape[-1]
    tokens = [t["clip_model.visual.class_embedding"]]
    for y in range(0, image.shape[-2], p):
        for x in range(0, image.shape[-1], p):
            tokens.append(kernel.flatten(1) @ image[:, y : y + p, x : x + p].flatten())
    hidden = torch.stack(tokens) + t["clip_model.visual.positional_embedding"]
    hidden = transformer(t, "clip_model.visual", layer_norm(t, "clip_model.visual.ln_pre", hidden))
    hidden = layer_norm(t, "clip_model.visual.ln_post", hidden[1:])
    return list(hidden @ t["clip_model.visual.proj"])


def text_features(t, embedded):
    """Return a list of every token's feature."""
    hidden = embedded + t["text_encoder.positional_embedding"]
    hidden = transformer(t, "text_encoder", hidden, causal=True)
    return list(layer_norm(t, "text_encoder.ln_final", hidden) @ t["text_encoder.text_projection"])


def condition(t, axis):
    """Return the feature of an axis's learned prompt: start, name, learned tokens, the rest."""
    suffix = t["prompt_learner.token_suffix"][axis]
    start, learned = t["prompt_learner.token_prefix"][axis], t["prompt_learner.ctx"][axis]
    # A full stop and the end of text follow: places 15 and 16.
    return text_features(t, torch.cat([start, suffix[:2], learned, suffix[2:]]))[16]


def transformer(t, name, hidden, *, causal=False):
    """Run residual blocks, attention by query and head."""
    width = hidden.shape[-1]
    heads = max(1, width // HEAD_WIDTH)
    step = width // heads
    i = 0
    while f"{name}.transformer.resblocks.{i}.ln_1.bias" in t:
        block = f"{name}.transformer.resblocks.{i}"
        x = layer_norm(t, f"{block}.ln_1", hidden)
        joint = x @ t[f"{block}.attn.in_proj_weight"].T + t[f"{block}.attn.in_proj_bias"]
        query, key, value = joint[:, :width], joint[:, width : 2 * width], joint[:, 2 * width :]
        mixed = torch.zeros_like(hidden)
        for head in range(heads):
            part = slice(head * step, (head + 1) * step)
            for place in range(len(hidden)):
                seen = slice(0, place + 1 if causal else len(hidden))
                weight = (key[seen, part] @ query[place, part] / math.sqrt(step)).exp()
                mixed[place, part] = (weight[:, None] * value[seen, part]).sum(0) / weight.sum()
        hidden = hidden + affine(t, f"{block}.attn.out_proj", mixed)
        x = affine(t, f"{block}.mlp.c_fc", layer_norm(t, f"{block}.ln_2", hidden))
        hidden = hidden + affine(t, f"{block}.mlp.c_proj", x / (1 + (-1.702 * x).exp()))
        i += 1
    return hidden


def target_network(t, learned, hidden):
    """Let an axis's feature write a network of four layers, and run it."""
    image = affine(t, "fc_condition", learned).reshape(112, 7, 7)
    pooled = image.flatten(1).mean(1)
    for i, (into, out) in enumerate(pairwise(TARGET), start=1):
        if out > 1:
            weight = convolved(t, f"hypernet.fc{i}w_conv", image).reshape(out, into)
        else:
            weight = affine(t, f"hypernet.fc{i}w_fc", pooled).reshape(1, into)
        hidden = weight @ hidden + affine(t, f"hypernet.fc{i}b_fc", pooled)
        if out > 1:
            hidden = hidden.clamp(min=0)
    return hidden.item()


def convolved(t, name, image):
    """Cross-correlate with a border of zeros, one place at a time."""
    framed = torch.zeros(112, 9, 9, dtype=image.dtype)
    framed[:, 1:8, 1:8] = image
    kernel = t[f"{name}.weight"].flatten(1)
    places = [
        kernel @ framed[:, y : y + 3, x : x + 3].flatten() for y in range(7) for x in range(7)
    ]
    return torch.stack(places, dim=1) + t[f"{name}.bias"][:, None]


def affine(t, name, x):
    """Multiply and add."""
    return x @ t[f"{name}.weight"].T + t[f"{name}.bias"]


def layer_norm(t, name, x):
    """Centre and scale every row."""
    centred = x - x.mean(-1, keepdim=True)
    spread = (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return centred / spread * t[f"{name}.weight"] + t[f"{name}.bias"]


def cosine(a, b):
    """Angle between two features."""
    return float(a @ b / (a @ a).sqrt() / (b @ b).sqrt())
