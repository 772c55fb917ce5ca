"""Tiny random checkpoints in the published layouts, as the scorers' loaders find them."""

import json

import torch
from safetensors.torch import save_file
from transformers import BertTokenizer, BlipVisionConfig, CLIPConfig

from mvczigal_ref.models.tiny import tiny_tokenizer
from tests.unit.reward import slow_transformers as slow

SIDE = 28
PROMPTS = ["a red cube with a white nose", "a blue ball"]
LAYERS = {"text_layers": 2, "vision_layers": 2}
HEADS = {"text_heads": 2, "vision_heads": 3}
WORDS = ("a", "red", "cube", "with", "white", "nose", "blue", "ball")
BERT = {name: i for i, name in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS))}
MED = {
    "vocab_size": len(BERT) + 2,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "max_position_embeddings": 40,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
    "type_vocab_size": 2,
    "encoder_width": 768,
    "add_cross_attention": True,
}


def views(num_objects=2, num_views=3, *, side=SIDE, seed=0):
    """Images whose colours are whole bytes."""
    generator = torch.Generator().manual_seed(seed)
    size = (num_objects, num_views, 3, side, side)
    return torch.randint(0, 256, size, generator=generator) / 255.0


def clip_tokenizer():
    """CLIP's tokenizer of a few words."""
    return tiny_tokenizer(length=16)


def clip_ids(prompt):
    """Start, a token a word, end, and the end again as padding: sixteen in all."""
    vocab = clip_tokenizer().get_vocab()
    words = [vocab[f"{word}</w>"] for word in prompt.split()][:14]
    end = vocab["<|endoftext|>"]
    ids = [vocab["<|startoftext|>"], *words, end]
    return ids + [end] * (16 - len(ids)), end


def clip_tensors(seed=0):
    """A random CLIP in OpenCLIP's names."""
    shapes = slow.open_clip_shapes(
        text=(32, 2),
        vision=(48, 2),
        features=24,
        vocab=len(clip_tokenizer()),
        length=16,
        patch=7,
        tokens=17,
    )
    return slow.random_tensors(shapes, seed)


def clip_config(activation="gelu"):
    """Its size."""
    text = {"vocab_size": len(clip_tokenizer()), "max_position_embeddings": 16, "hidden_size": 32}
    vision = {"image_size": SIDE, "patch_size": 7, "hidden_size": 48, "intermediate_size": 192}
    shared = {"num_hidden_layers": 2, "hidden_act": activation, "projection_dim": 24}
    ids = {"eos_token_id": clip_tokenizer().eos_token_id, "pad_token_id": 1, "bos_token_id": 0}
    return CLIPConfig(
        text_config=shared | text | ids | {"intermediate_size": 128, "num_attention_heads": 2},
        vision_config=shared | vision | {"num_attention_heads": 3},
        projection_dim=24,
    )


def write_clip(folder, *, tensors=None, activation="gelu"):
    """Write a CLIP in transformers' layout with its tokenizer; return OpenCLIP's tensors."""
    tensors = clip_tensors() if tensors is None else tensors
    clip_config(activation).save_pretrained(folder)
    save_file(slow.as_transformers(tensors, **LAYERS), folder / "model.safetensors")
    clip_tokenizer().save_pretrained(folder)
    return tensors


def write_hps(folder, *, tensors=None):
    """Write an HPSv2 file in half precision with its tokenizer; return what it holds."""
    tensors = clip_tensors() if tensors is None else tensors
    halves = {name: value.half() for name, value in tensors.items()}
    torch.save({"state_dict": halves}, folder / "HPS_v2.1_compressed.pt")
    clip_tokenizer().save_pretrained(folder)
    return halves


def blip_config():
    """Size of the tiny ImageReward's image encoder."""
    return BlipVisionConfig(
        hidden_size=32,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=7,
        layer_norm_eps=1e-6,
    )


def image_reward_tensors(seed=0):
    """A random ImageReward in its published names."""
    shapes = slow.image_reward_shapes(
        vision=(32, 2),
        text=(24, 2, 40),
        vocab=MED["vocab_size"],
        positions=40,
        patch=7,
        tokens=17,
    )
    return slow.random_tensors(shapes, seed)


def write_image_reward(folder, *, tensors=None, extra=True):
    """Write ImageReward's two files and BERT's tokenizer; return the tensors."""
    tensors = image_reward_tensors() if tensors is None else tensors
    beside = {}
    if extra:
        beside = {
            "blip.text_encoder.embeddings.position_ids": torch.arange(40)[None],
            "blip.vision_proj.weight": torch.zeros(256, 32),
            "blip.vision_proj.bias": torch.zeros(256),
            "blip.text_proj.weight": torch.zeros(256, 24),
            "blip.text_proj.bias": torch.zeros(256),
        }
    torch.save(tensors | beside, folder / "ImageReward.pt")
    (folder / "med_config.json").write_text(json.dumps(MED))
    BertTokenizer(vocab=dict(BERT)).save_pretrained(folder)
    return tensors
