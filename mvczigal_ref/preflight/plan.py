"""A run's plan: its counts by arithmetic, its costs by measuring the shapes that occur."""

import math
from collections import Counter
from dataclasses import replace

import torch

from mvczigal_ref.config import TrainConfig, scorer_weights
from mvczigal_ref.config.loading import nearest_name
from mvczigal_ref.distributed import World
from mvczigal_ref.errors import ConfigError
from mvczigal_ref.method.slices import Share
from mvczigal_ref.models.components import Components
from mvczigal_ref.preflight.costs import Costs
from mvczigal_ref.preflight.footprints import Footprint, scorer_footprint
from mvczigal_ref.preflight.measure import storage_bytes
from mvczigal_ref.preflight.meta_networks import meta_components
from mvczigal_ref.preflight.plan_record import Calls, Flops, Memory, Parameters, Plan
from mvczigal_ref.records import PairedRollout
from mvczigal_ref.reward.builders import JOINT, PER_VIEW
from mvczigal_ref.reward.registry import VIEW_MEAN, scorer_options
from mvczigal_ref.system import System, build_system
from mvczigal_ref.system.scorers import no_scorers

__all__ = ["plan"]

_META = torch.device("meta")


def plan(config: TrainConfig, *, world_size: int = 1) -> Plan:
    r"""Count what one iteration takes, and estimate its peak memory, without a byte of weights.

    With T steps, z zigzagged ones of r rounds, and S slices a process, a rollout takes
    :math:`S(2T - 1 + 2zr)` network calls. The functions that train are run on tensors without
    memory, in the run's own types and shapes; what torch's libraries take for themselves is not
    seen.

    Source:
        arXiv:2505.20107 for the algorithm. Ours: the pair's first call is made once; the arms'
        graphs never live together, so that each has a backward call of its own.

    Args:
        config: A run over pairs of the multi-view UNet. Where ``model.weights`` is no folder, sizes
            are those of the published SDXL.
        world_size: Processes, each with a device of its own.

    Returns:
        Counts, operations and bytes of one process.

    Raises:
        ConfigError: If the geometry is impossible, with the nearest that is possible; if a scorer
            is unknown; or if the run is none over pairs of the multi-view UNet.

    Examples:
        >>> from mvczigal_ref.config import OptimConfig
        >>> found = plan(TrainConfig(optim=OptimConfig(optimizer_steps_per_epoch=1)))
        >>> found.calls.rollout, found.calls.replay, found.calls.backward
        (27, 18, 18)
    """
    _refuse_others(config)
    share = Share.of(config, World(rank=0, size=world_size))
    footprints = _footprints(config)
    components, source = meta_components(config)
    _refuse_image_size(config, components)
    # Whatever waits elsewhere is laid out here too, and left out of the sums.
    together = replace(config.model, offload_frozen=False, storage_device="device", compile="none")
    system = build_system(
        replace(config, model=together), device=_META, components=components, scorers=no_scorers()
    )
    away = config.model.offload_frozen
    costs, slices = Costs(system=system, config=config), len(share.objects)
    pair, sampled = costs.rollout()
    pieces = _pieces(config, system.sampler.last_action_is_image_independent)
    epochs, steps = config.optim.epochs_per_iteration, config.optim.optimizer_steps_per_epoch
    # Until the first change of the parameters the stored density is the present one.
    valued = epochs * slices - slices // steps
    checkpointed = config.model.gradient_checkpointing
    graphs = {
        shape: costs.replayed(pair, *shape, checkpointed=checkpointed, backward=True)
        for shape in pieces
    }
    decode, decode_peak, images = costs.decoded()
    replays = 2 * epochs * slices * pieces.total()
    stored = slices * storage_bytes(_stored(pair))

    def summed(part: str) -> int:
        return sum(count * getattr(graphs[shape], part) for shape, count in pieces.items())

    views, latent = system.latent_shape[0], system.latent_shape[1:]
    own = slices * config.run.objects_per_slice
    return Plan(
        source=source,
        processes=world_size,
        objects=config.run.objects_per_iteration,
        objects_per_process=own,
        views=views,
        latent=latent,
        images=2 * own * views,
        scorer_calls=dict.fromkeys(footprints, 2 * slices),
        optimizer_steps=epochs * steps,
        calls=Calls(
            rollout=slices * len(sampled),
            value=valued * pieces.total(),
            replay=replays,
            recompute=replays if checkpointed else 0,
            backward=replays,
        ),
        flops=Flops(
            rollout=slices * sum(costs.sampled(call)[0] for call in sampled),
            value=valued * summed("forward"),
            replay=2 * epochs * slices * summed("forward"),
            recompute=2 * epochs * slices * summed("recompute"),
            backward=2 * epochs * slices * summed("backward"),
            decode=2 * slices * decode,
        ),
        parameters=_parameters(system, footprints),
        memory=Memory(
            **_weights(system, footprints, away=away),
            rollouts=stored if config.model.storage_device == "device" else 0,
            sampling=max(costs.sampled(call)[1] for call in set(sampled)),
            decoding=images + decode_peak + (_bytes(components.vae) if away else 0),
            scoring=2 * images
            + max((f.working + f.weights * away for f in footprints.values()), default=0),
            replay=max(graph.peak for graph in graphs.values()),
            saved=max(graph.saved for graph in graphs.values()),
            **_saved(costs, pair, max(pieces)),
            offloaded=away,
        ),
    )


def _refuse_others(config: TrainConfig) -> None:
    """Say what is not counted."""
    if config.model.network != "multiview" or config.rollout.kind != "pair":
        msg = (
            "a plan counts pairs of the multi-view UNet; got `model.network` = "
            f'"{config.model.network}" and `rollout.kind` = "{config.rollout.kind}".'
        )
        raise ConfigError(msg)


def _refuse_image_size(config: TrainConfig, components: Components) -> None:
    """Refuse an image that autoencoder and camera encoder cannot both cut into whole cells."""
    halvings = len(components.vae.config.block_out_channels) - 1
    unit = math.lcm(2**halvings, components.policy.camera_encoder.config.downscale_factor)
    size = config.model.image_size
    if size % unit:
        nearest = max(unit, round(size / unit) * unit)
        msg = (
            f"`model.image_size` must be a multiple of {unit}, by which autoencoder and camera "
            f"encoder reduce an image; got {size}. The nearest valid value is {nearest}."
        )
        raise ConfigError(msg)


def _footprints(config: TrainConfig) -> dict[str, Footprint]:
    """Size every scorer that is asked in an iteration."""
    found: dict[str, Footprint] = {}
    for scorers, known in ((config.reward.per_view, PER_VIEW), (config.reward.joint, JOINT)):
        for name in scorer_weights(scorers):
            if name == VIEW_MEAN:  # no scorer: the mean of the others
                continue
            options = scorer_options(name, config.reward, device=_META, num_views=1)
            if name not in known and options.url is None:
                near = nearest_name(name, known)
                raise ConfigError(f"there is no scorer {name!r}; the nearest name is {near!r}.")
            found[name] = scorer_footprint(name, options)
    return found


def _pieces(config: TrainConfig, last_is_free: bool) -> Counter[tuple[int, int]]:
    """Count a slice's microbatches by objects and steps; :func:`update_policy` cuts them so."""
    steps, objects = config.sampler.num_steps, config.run.objects_per_slice
    if last_is_free and not config.objective.train_last_action:
        steps -= 1
    size = min(config.run.replay_objects_per_slice or objects, objects)
    return Counter(
        (o, s) for o in _cut(objects, size) for s in _cut(steps, config.optim.steps_per_microbatch)
    )


def _cut(whole: int, size: int) -> list[int]:
    return [min(size, whole - first) for first in range(0, whole, size)]


def _stored(pair: PairedRollout) -> list[torch.Tensor]:
    return [
        getattr(arm, name)
        for arm in (pair.zigzag, pair.standard)
        for name in ("state", "action", "log_prob", "denoised")
    ]


def _parameters(system: System, footprints: dict[str, Footprint]) -> Parameters:
    parts = system.components
    trained = {id(p) for p in system.trained().values()}

    def count(*modules: torch.nn.Module) -> int:
        return sum(p.numel() for m in modules for p in m.parameters() if id(p) not in trained)

    return Parameters(
        unet=count(parts.policy.unet),
        camera_encoder=count(parts.policy.camera_encoder),
        trained=sum(p.numel() for p in system.trained().values()),
        text_encoders=count(parts.text_encoder, parts.text_encoder_2),
        vae=count(parts.vae),
        scorers=sum(f.parameters for f in footprints.values()),
    )


def _weights(system: System, footprints: dict[str, Footprint], *, away: bool) -> dict[str, int]:
    """Bytes that do not depend on what is computed."""
    parts, trained = system.components, list(system.trained().values())
    ours = storage_bytes(trained)
    gradients = sum(p.numel() * p.element_size() for p in trained)
    cameras = _bytes(parts.policy.camera_encoder)
    return {
        "unet": _bytes(parts.policy) - ours - (cameras if away else 0),
        "trained": ours,
        "text_encoders": _bytes(parts.text_encoder) + _bytes(parts.text_encoder_2),
        "vae": _bytes(parts.vae),
        "scorers": sum(f.weights for f in footprints.values()),
        "features": storage_bytes(system.camera_features),
        "gradients": gradients,
        "optimizer": 2 * gradients,  # AdamW's two moments
    }


def _bytes(network: torch.nn.Module) -> int:
    return storage_bytes([*network.parameters(), *network.buffers()])


def _saved(costs: Costs, pair: PairedRollout, shape: tuple[int, int]) -> dict[str, int]:
    """What a graph keeps with and without checkpointing, whatever is configured."""
    return {
        name: costs.replayed(pair, *shape, checkpointed=checkpointed, backward=False).saved
        for name, checkpointed in (("saved_checkpointed", True), ("saved_plain", False))
    }
