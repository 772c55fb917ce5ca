"""Networks and scorers of a configuration with random weights, made where they compute.

Sizes are those of the files that the configuration names; no weights are read. What a random
network paints means nothing; its seconds, its bytes and its rounding are those of a trained one.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import CLIPModel

from mvczigal_ref.config import TrainConfig, scorer_weights
from mvczigal_ref.models.components import Components
from mvczigal_ref.models.tiny import tiny_tokenizer
from mvczigal_ref.preflight.meta_networks import meta_multiview_components
from mvczigal_ref.reward.builders import ScorerOptions
from mvczigal_ref.reward.clip_score import PickScore
from mvczigal_ref.reward.hpsv2 import vit_h_14
from mvczigal_ref.reward.hyperscore import HyperScore
from mvczigal_ref.reward.hyperscore_network import HyperScoreNetwork, HyperScoreSize
from mvczigal_ref.reward.mixture import Mixture
from mvczigal_ref.reward.registry import scorer_options
from mvczigal_ref.system import System, build_system
from mvczigal_ref.system.offloaded import Offloaded
from mvczigal_ref.system.rig import rig_of

__all__ = ["cheap_scorers", "materialise", "random_components", "random_scorers", "random_system"]

TOKENS = 77  # of a prompt, in CLIP's text encoders


def materialise(module: nn.Module, device: torch.device, *, seed: int = 0) -> nn.Module:
    """Give a module on the meta device memory and random values, each layer its own usual ones.

    Drawn on the device, so that billions take seconds there. The global generators stay where
    they were.
    """
    if device.type == "meta":
        return module
    module.to_empty(device=device)
    cards = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cards), torch.no_grad():
        torch.default_generator.manual_seed(seed)
        for card in cards:
            with torch.cuda.device(card):
                torch.cuda.manual_seed(seed)
        covered: set[int] = set()
        for layer in module.modules():
            if hasattr(layer, "reset_parameters"):
                layer.reset_parameters()
                covered |= {id(p) for p in layer.parameters(recurse=False)}
        for parameter in module.parameters():
            if id(parameter) not in covered:
                parameter.normal_(std=0.02)
        for buffer in module.buffers():
            if buffer.is_floating_point():
                buffer.normal_(std=0.02)
            else:  # positions, the only integers that these networks hold
                buffer.copy_(torch.arange(buffer.shape[-1], device=device).expand_as(buffer))
    return module


def random_components(config: TrainConfig, device: torch.device, *, seed: int = 0) -> Components:
    """Build every network of a run; tokenizers are the tiny ones, at the real length."""
    parts, _ = meta_multiview_components(config)
    parts = replace(
        parts,
        tokenizer=tiny_tokenizer(length=parts.text_encoder.config.max_position_embeddings),
        tokenizer_2=tiny_tokenizer(
            pad_token="!", length=parts.text_encoder_2.config.max_position_embeddings
        ),
    )
    networks = (parts.text_encoder, parts.text_encoder_2, parts.vae, parts.policy)
    for index, network in enumerate(networks):
        materialise(network, device, seed=seed + index).eval()
    if device.type == "meta":
        return parts
    channels = parts.vae.config.latent_channels
    return replace(
        parts,
        latent_mean=torch.zeros(channels, device=device),
        latent_std=torch.ones(channels, device=device),
    )


def random_scorers(config: TrainConfig, device: torch.device) -> dict[str, Any]:
    """Build the scorers of the published recipes, PickScore and HyperScore, at their sizes."""
    views = rig_of(config.model).num_views

    def scorer(name: str, build: Any) -> Any:
        options = scorer_options(name, config.reward, device=device, num_views=views)
        built = build(name, options)
        return Offloaded(built.to("cpu"), device) if config.model.offload_frozen else built

    def of(setting: Any, build: Any) -> Mixture:
        weights = scorer_weights(setting)
        return Mixture(scorers={name: scorer(name, build) for name in weights}, weights=weights)

    return {
        "per_view": of(config.reward.per_view, _pickscore),
        "joint": of(config.reward.joint, _hyperscore),
    }


def _pickscore(name: str, options: ScorerOptions) -> PickScore:
    _only("pickscore", name)
    with torch.device("meta"):
        network = CLIPModel(vit_h_14()).to(options.dtype)
    network = materialise(network, torch.device(options.device)).eval()
    words = tiny_tokenizer(length=TOKENS)
    return PickScore(network, words, chunk_size=options.images_per_chunk)


def _hyperscore(name: str, options: ScorerOptions) -> HyperScore:
    _only("hyperscore.overall", name)
    with torch.device("meta"):
        network = HyperScoreNetwork(HyperScoreSize())
    network = materialise(network, torch.device(options.device)).eval()
    return HyperScore(
        network, tiny_tokenizer(length=TOKENS), num_views=options.num_views,
        images_at_once=options.images_per_chunk, dtype=options.dtype,
    )  # fmt: skip


def _only(known: str, name: str) -> None:
    if name != known:
        msg = f"random weights are known for {known!r} alone; got {name!r}."
        raise ValueError(msg)


def cheap_scorers() -> dict[str, Any]:
    """Judge by the mean colour: a measurement then is the network's alone."""
    return {
        "per_view": lambda images, prompts: images.mean((2, 3, 4)),
        "joint": lambda images, prompts: images.mean((1, 2, 3, 4)),
    }


def random_system(
    config: TrainConfig, device: torch.device, scorers: dict[str, Any] | None = None
) -> System:
    """Build a run's system around random networks; cheap scorers if none are given."""
    components = random_components(config, device)
    return build_system(
        config, device=device, components=components, scorers=scorers or cheap_scorers()
    )
