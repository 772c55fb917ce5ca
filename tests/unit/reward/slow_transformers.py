"""Published networks written out head by head in plain tensor operations, and tiny files of them.

Shares no code with the package: names of tensors are spelled out, attention is a loop.
"""

import math

import torch

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def random_tensors(shapes, seed):
    """Draw tensors that neither vanish nor saturate; norms and biases are not trivial."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=generator)
        is_norm = len(shape) == 1 and name.endswith("weight")
        scale = 0.3 if len(shape) < 2 else 1.5 * math.prod(shape[1:]) ** -0.5
        tensors[name] = 1.0 + 0.3 * noise if is_norm else scale * noise
    return tensors


# -- CLIP in OpenCLIP's names ------------------------------------------------------------


def open_clip_shapes(*, text, vision, features, vocab, length, patch, tokens):
    """Names and shapes; ``text`` and ``vision`` are (width, layers)."""
    shapes = {
        "positional_embedding": (length, text[0]),
        "text_projection": (text[0], features),
        "logit_scale": (),
        "visual.class_embedding": (vision[0],),
        "visual.positional_embedding": (tokens, vision[0]),
        "visual.proj": (vision[0], features),
        "visual.conv1.weight": (vision[0], 3, patch, patch),
        "token_embedding.weight": (vocab, text[0]),
    }
    for norm, width in (("visual.ln_pre", vision[0]), ("visual.ln_post", vision[0])):
        shapes |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
    shapes |= {"ln_final.weight": (text[0],), "ln_final.bias": (text[0],)}
    for prefix, (width, layers) in (("visual.", vision), ("", text)):
        for layer in range(layers):
            at = f"{prefix}transformer.resblocks.{layer}"
            shapes |= {
                f"{at}.ln_1.weight": (width,),
                f"{at}.ln_1.bias": (width,),
                f"{at}.attn.in_proj_weight": (3 * width, width),
                f"{at}.attn.in_proj_bias": (3 * width,),
                f"{at}.attn.out_proj.weight": (width, width),
                f"{at}.attn.out_proj.bias": (width,),
                f"{at}.ln_2.weight": (width,),
                f"{at}.ln_2.bias": (width,),
                f"{at}.mlp.c_fc.weight": (4 * width, width),
                f"{at}.mlp.c_fc.bias": (4 * width,),
                f"{at}.mlp.c_proj.weight": (width, 4 * width),
                f"{at}.mlp.c_proj.bias": (width,),
            }
    return shapes


def as_transformers(tensors, *, text_layers, vision_layers):
    """The same CLIP under the names of transformers' published files."""
    named = {
        "logit_scale": tensors["logit_scale"],
        "text_projection.weight": tensors["text_projection"].T.contiguous(),
        "visual_projection.weight": tensors["visual.proj"].T.contiguous(),
        "text_model.embeddings.token_embedding.weight": tensors["token_embedding.weight"],
        "text_model.embeddings.position_embedding.weight": tensors["positional_embedding"],
        "vision_model.embeddings.class_embedding": tensors["visual.class_embedding"],
        "vision_model.embeddings.patch_embedding.weight": tensors["visual.conv1.weight"],
        "vision_model.embeddings.position_embedding.weight": tensors["visual.positional_embedding"],
    }
    for kind in ("weight", "bias"):
        named[f"text_model.final_layer_norm.{kind}"] = tensors[f"ln_final.{kind}"]
        named[f"vision_model.pre_layrnorm.{kind}"] = tensors[f"visual.ln_pre.{kind}"]
        named[f"vision_model.post_layernorm.{kind}"] = tensors[f"visual.ln_post.{kind}"]
        for ours, theirs, layers in (
            ("text_model", "", text_layers),
            ("vision_model", "visual.", vision_layers),
        ):
            for layer in range(layers):
                to = f"{ours}.encoder.layers.{layer}"
                at = f"{theirs}transformer.resblocks.{layer}"
                query, key, value = tensors[f"{at}.attn.in_proj_{kind}"].chunk(3)
                named[f"{to}.self_attn.q_proj.{kind}"] = query.clone()
                named[f"{to}.self_attn.k_proj.{kind}"] = key.clone()
                named[f"{to}.self_attn.v_proj.{kind}"] = value.clone()
                named[f"{to}.self_attn.out_proj.{kind}"] = tensors[f"{at}.attn.out_proj.{kind}"]
                named[f"{to}.layer_norm1.{kind}"] = tensors[f"{at}.ln_1.{kind}"]
                named[f"{to}.layer_norm2.{kind}"] = tensors[f"{at}.ln_2.{kind}"]
                named[f"{to}.mlp.fc1.{kind}"] = tensors[f"{at}.mlp.c_fc.{kind}"]
                named[f"{to}.mlp.fc2.{kind}"] = tensors[f"{at}.mlp.c_proj.{kind}"]
    return named


def clip_cosine(tensors, image, ids, *, end, text_heads, vision_heads, activation):
    """Cosine of one normalised image and one prompt's ids, in float64."""
    t = {name: value.double() for name, value in tensors.items()}
    seen = clip_seen(tensors, image, vision_heads=vision_heads, activation=activation)
    y = t["token_embedding.weight"][ids] + t["positional_embedding"]
    y = clip_blocks(y, t, "transformer", text_heads, activation, causal=True)
    read = norm(y[ids.index(end)], t, "ln_final", 1e-5) @ t["text_projection"]
    return float((seen @ read) / (read @ read).sqrt())


def clip_seen(tensors, image, *, vision_heads, activation):
    """Features of one normalised image, of length one, in float64."""
    t = {name: value.double() for name, value in tensors.items()}
    x = torch.cat([t["visual.class_embedding"][None], patches(image, t["visual.conv1.weight"])])
    x = norm(x + t["visual.positional_embedding"], t, "visual.ln_pre", 1e-5)
    x = clip_blocks(x, t, "visual.transformer", vision_heads, activation, causal=False)
    seen = norm(x[0], t, "visual.ln_post", 1e-5) @ t["visual.proj"]
    return seen / (seen @ seen).sqrt()


def clip_blocks(x, t, prefix, heads, activation, *, causal):
    """All residual blocks of one of CLIP's towers."""
    layer = 0
    while f"{prefix}.resblocks.{layer}.ln_1.weight" in t:
        at = f"{prefix}.resblocks.{layer}"
        inside = norm(x, t, f"{at}.ln_1", 1e-5)
        weights, biases = t[f"{at}.attn.in_proj_weight"], t[f"{at}.attn.in_proj_bias"]
        width = x.shape[-1]
        parts = [
            inside @ weights[i * width : (i + 1) * width].T + biases[i * width : (i + 1) * width]
            for i in range(3)
        ]
        x = x + affine(attend(*parts, heads, causal=causal), t, f"{at}.attn.out_proj")
        inside = affine(norm(x, t, f"{at}.ln_2", 1e-5), t, f"{at}.mlp.c_fc")
        x = x + affine(ACTIVATIONS[activation](inside), t, f"{at}.mlp.c_proj")
        layer += 1
    return x


# -- ImageReward in its published names --------------------------------------------------


def image_reward_shapes(*, vision, text, vocab, positions, patch, tokens):
    """Names and shapes; ``vision`` is (width, layers), ``text`` (width, layers, inner width)."""
    image, read = "blip.visual_encoder", "blip.text_encoder"
    wide, width, inner = vision[0], text[0], text[2]
    shapes = {
        f"{image}.cls_token": (1, 1, wide),
        f"{image}.pos_embed": (1, tokens, wide),
        f"{image}.patch_embed.proj.weight": (wide, 3, patch, patch),
        f"{image}.patch_embed.proj.bias": (wide,),
        f"{image}.norm.weight": (wide,),
        f"{image}.norm.bias": (wide,),
        f"{read}.embeddings.word_embeddings.weight": (vocab, width),
        f"{read}.embeddings.position_embeddings.weight": (positions, width),
        f"{read}.embeddings.LayerNorm.weight": (width,),
        f"{read}.embeddings.LayerNorm.bias": (width,),
    }
    for layer in range(vision[1]):
        at = f"{image}.blocks.{layer}"
        for part, shape in (
            ("norm1", (wide,)),
            ("attn.qkv", (3 * wide, wide)),
            ("attn.proj", (wide, wide)),
            ("norm2", (wide,)),
            ("mlp.fc1", (4 * wide, wide)),
            ("mlp.fc2", (wide, 4 * wide)),
        ):
            shapes |= {f"{at}.{part}.weight": shape, f"{at}.{part}.bias": shape[:1]}
    for layer in range(text[1]):
        at = f"{read}.encoder.layer.{layer}"
        parts = [("intermediate.dense", (inner, width)), ("output.dense", (width, inner))]
        parts += [("output.LayerNorm", (width,))]
        for kind, source in (("attention", width), ("crossattention", wide)):
            parts += [
                (f"{kind}.self.query", (width, width)),
                (f"{kind}.self.key", (width, source)),
                (f"{kind}.self.value", (width, source)),
                (f"{kind}.output.dense", (width, width)),
                (f"{kind}.output.LayerNorm", (width,)),
            ]
        for part, shape in parts:
            shapes |= {f"{at}.{part}.weight": shape, f"{at}.{part}.bias": shape[:1]}
    widths = (width, 1024, 128, 64, 16, 1)
    for index, before, after in zip((0, 2, 4, 6, 7), widths[:-1], widths[1:], strict=True):
        shapes |= {f"mlp.layers.{index}.weight": (after, before)}
        shapes |= {f"mlp.layers.{index}.bias": (after,)}
    return shapes


def image_reward(tensors, image, ids, *, vision_heads, text_heads):
    """Standardised score of one normalised image and one prompt's ids, padding 0, in float64."""
    t = {name: value.double() for name, value in tensors.items()}
    at = "blip.visual_encoder"
    x = patches(image, t[f"{at}.patch_embed.proj.weight"]) + t[f"{at}.patch_embed.proj.bias"]
    x = torch.cat([t[f"{at}.cls_token"][0], x]) + t[f"{at}.pos_embed"][0]
    layer = 0
    while f"{at}.blocks.{layer}.norm1.weight" in t:
        block = f"{at}.blocks.{layer}"
        joined = affine(norm(x, t, f"{block}.norm1", 1e-6), t, f"{block}.attn.qkv")
        x = x + affine(attend(*joined.chunk(3, dim=-1), vision_heads), t, f"{block}.attn.proj")
        inside = gelu(affine(norm(x, t, f"{block}.norm2", 1e-6), t, f"{block}.mlp.fc1"))
        x = x + affine(inside, t, f"{block}.mlp.fc2")
        layer += 1
    seen = norm(x, t, f"{at}.norm", 1e-6)
    # Padding is left out rather than masked: no token sees it, and it is not read.
    ids = [token for token in ids if token != 0]
    at = "blip.text_encoder.embeddings"
    y = t[f"{at}.word_embeddings.weight"][ids]
    y = norm(y + t[f"{at}.position_embeddings.weight"][: len(ids)], t, f"{at}.LayerNorm", 1e-12)
    layer = 0
    while f"blip.text_encoder.encoder.layer.{layer}.output.dense.weight" in t:
        at = f"blip.text_encoder.encoder.layer.{layer}"
        for kind in ("attention", "crossattention"):
            source = y if kind == "attention" else seen
            part = f"{at}.{kind}"
            mixed = attend(
                affine(y, t, f"{part}.self.query"),
                affine(source, t, f"{part}.self.key"),
                affine(source, t, f"{part}.self.value"),
                text_heads,
            )
            y = norm(
                affine(mixed, t, f"{part}.output.dense") + y, t, f"{part}.output.LayerNorm", 1e-12
            )
        inside = gelu(affine(y, t, f"{at}.intermediate.dense"))
        y = norm(affine(inside, t, f"{at}.output.dense") + y, t, f"{at}.output.LayerNorm", 1e-12)
        layer += 1
    score = y[0]
    for index in (0, 2, 4, 6, 7):
        score = affine(score, t, f"mlp.layers.{index}")
    return (score.item() - 0.16717362830052426) / 1.0333394966054072


# -- what both are made of ---------------------------------------------------------------


def normalised(image):
    """Subtract CLIP's mean and divide by its deviation, a colour at a time."""
    return torch.stack([(image[c].double() - CLIP_MEAN[c]) / CLIP_STD[c] for c in range(3)])


def patches(image, kernel):
    """Multiply every patch, row by row, with the kernel."""
    image, side = image.double(), kernel.shape[-1]
    rows, columns = image.shape[-2] // side, image.shape[-1] // side
    return torch.stack(
        [
            kernel.flatten(1)
            @ image[:, i * side : (i + 1) * side, j * side : (j + 1) * side].flatten()
            for i in range(rows)
            for j in range(columns)
        ]
    )


def attend(query, key, value, heads, *, causal=False):
    """Softmax attention, one head and one token after another."""
    width = query.shape[-1] // heads
    rows = []
    for i in range(len(query)):
        last = i + 1 if causal else len(key)
        row = []
        for head in range(heads):
            at = slice(head * width, (head + 1) * width)
            weight = torch.exp(key[:last, at] @ query[i, at] / math.sqrt(width))
            row.append((weight / weight.sum()) @ value[:last, at])
        rows.append(torch.cat(row))
    return torch.stack(rows)


def affine(x, t, name):
    """Multiply by a weight and add a bias."""
    return x @ t[f"{name}.weight"].T + t[f"{name}.bias"]


def norm(x, t, name, eps):
    """Standardise the last axis, then scale and shift."""
    centred = x - x.mean(dim=-1, keepdim=True)
    deviation = (centred.square().mean(dim=-1, keepdim=True) + eps).sqrt()
    return centred / deviation * t[f"{name}.weight"] + t[f"{name}.bias"]


def gelu(x):
    """The exact Gaussian error linear unit."""
    return x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0)))


ACTIVATIONS = {"gelu": gelu, "quick_gelu": lambda x: x / (1.0 + torch.exp(-1.702 * x))}
