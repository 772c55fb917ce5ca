"""A run's plan: its counts by arithmetic, its costs by measuring the shapes that occur."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch

from mvczigal_ref.config import TrainConfig, scorer_weights
from mvczigal_ref.config.loading import nearest_name
from mvczigal_ref.distributed import World
from mvczigal_ref.errors import ConfigError
from mvczigal_ref.method.slices import Share
from mvczigal_ref.method.steps import check_steps
from mvczigal_ref.models.backbone import AnyComponents
from mvczigal_ref.models.components import Components
from mvczigal_ref.models.loading import cast_network
from mvczigal_ref.models.recomputation import activation_budget, free_bytes
from mvczigal_ref.preflight.costs import Costs
from mvczigal_ref.preflight.footprints import Footprint, scorer_footprint
from mvczigal_ref.preflight.meta_networks import meta_components
from mvczigal_ref.preflight.meter import storage_bytes
from mvczigal_ref.preflight.plan_record import Calls, Flops, Memory, Parameters, Plan
from mvczigal_ref.preflight.stored_plans import planned_device
from mvczigal_ref.preflight.weights import camera_encoder, network_bytes, weight_bytes
from mvczigal_ref.preflight.workload import Replay, Workload
from mvczigal_ref.reward.builders import JOINT, PER_VIEW
from mvczigal_ref.reward.registry import VIEW_MEAN, is_function, scorer_options
from mvczigal_ref.system import System, build_system
from mvczigal_ref.system.scorers import no_scorers

__all__ = ["plan"]

_META = torch.device("meta")


def plan(
    config: TrainConfig,
    *,
    world_size: int = 1,
    iteration: int = 0,
    memory: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Plan:
    r"""Count the work of one iteration, and estimate its peak memory, without a byte of weights.

    With T steps, z zigzagged ones of r rounds, and S slices per process, a rollout of pairs takes
    :math:`S(2T - 1 + 2zr)` network calls; groups, trees and branches take those of their own
    rollout. With K captions every decision is replayed 1 + K times: captions are taken to differ,
    for equal ones of a prompt cost nothing, and how many are equal is not known before. The
    functions that train are run on tensors without memory, in the run's own types and shapes;
    what torch's libraries take for themselves is not seen, nor is a language model.

    Source:
        arXiv:2505.20107, 2505.05470 and 2509.16117 for the algorithms. Ours: a pair's first call
        is made once; its arms' graphs never live together, so that each has a backward call of
        its own.

    Args:
        config: Any run. Where ``model.weights`` is no folder, sizes are the published ones.
        world_size: Processes, each with a device of its own.
        iteration: Index of the iteration, for windows that move.
        memory: Memory of the device, where `model.gradient_checkpointing` is "auto" [bytes]; None
            is what is free here, of the first GPU if there is one.
        progress: Called with the shapes that have been measured, and with all of them.

    Returns:
        Counts, operations and bytes of one process.

    Raises:
        ConfigError: If the geometry is impossible, with the nearest that is possible; if window,
            tree and grid do not fit; or if a scorer is unknown.

    Examples:
        >>> from mvczigal_ref.config import OptimConfig
        >>> one = plan(TrainConfig(optim=OptimConfig(optimizer_steps_per_epoch=1)))
        >>> one.calls.rollout, one.calls.replay, one.calls.backward
        (27, 18, 18)
    """
    share = Share.of(config, World(rank=0, size=world_size))
    footprints = _footprints(config)
    components, source = meta_components(config)
    _refuse_image_size(config, components)
    # Whatever waits elsewhere is laid out here too, and left out of the sums.
    together = replace(
        config.model, offload_frozen=False, storage_device="device", compile="none",
        gradient_checkpointing=False,
    )  # fmt: skip
    system = build_system(
        replace(config, model=together), device=_META, components=components, scorers=no_scorers()
    )
    check_steps(system, config)
    weights = weight_bytes(system, config, footprints, processes=world_size)
    parameters = _parameters(system, footprints)
    if weights["gathered"] and config.run.compute_dtype == "bf16":
        cast_network(system.backbone.network, _META, torch.bfloat16)
    device = planned_device(config)
    costs, slices = Costs(system=system, config=config, device=device), len(share.objects)
    if config.model.gradient_checkpointing == "auto":
        costs.budget = _budget(costs, weights, slices, memory=memory)
    work, views = costs.workload(iteration=iteration), system.latent_shape[0]
    _measure(costs, work, progress)
    counts = _counts(config, work, slices)
    calls, flops = _calls(config, costs, work, counts)
    prompts, pairs = config.run.objects_per_slice, config.objective.compares_pairs
    rows = prompts if pairs else prompts * work.samples  # the arms of pairs one after the other
    decode, peak, images = costs.decoded(rows)
    arms = work.samples * prompts // rows
    return Plan(
        source=source,
        processes=world_size,
        objects=config.run.objects_per_iteration,
        objects_per_process=slices * prompts,
        views=views,
        latent=system.latent_shape[1:],
        samples=work.samples,
        conditions=work.conditions,
        images=work.samples * slices * prompts * views,
        scorer_calls=dict.fromkeys(
            footprints, slices * math.ceil(work.conditions / config.reward.texts_per_call)
        ),
        optimizer_steps=_optimizer_steps(config, work),
        calls=replace(calls, rollout=slices * len(work.calls)),
        flops=replace(
            flops,
            rollout=slices * sum(costs.sampled(call)[0] for call in work.calls),
            decode=slices * arms * decode,
        ),
        parameters=parameters,
        lora_forms={
            stage: {form: forms[form] for form in ("merged", "thin")}
            for stage, forms in costs.forms.items()
            if forms.total()
        },
        device=device,
        recomputed_blocks=max((again for again, _ in costs.blocks.values()), default=None),
        blocks=max((every for _, every in costs.blocks.values()), default=None),
        memory=_memory(
            costs, work, footprints, weights=weights, slices=slices, images=arms * images,
            # Images of the arms are laid side by side.
            decoding=max((arms - 1) * images + peak, 2 * (arms - 1) * arms * images),
        ),
    )  # fmt: skip


def _budget(costs: Costs, weights: dict[str, int], slices: int, *, memory: int | None) -> int:
    """Give the memory that is left for activations, as a run would measure it [bytes]."""
    if memory is None:
        memory = free_bytes(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    resident = Memory(
        **weights, rollouts=0, sampling=0, decoding=0, scoring=0, replay=0, saved=0,
        saved_checkpointed=0, saved_plain=0, offloaded=costs.config.model.offload_frozen,
    ).resident  # fmt: skip
    stored = 0
    if costs.config.model.storage_device == "device":
        stored = _stored(costs.config, costs.workload(), slices)
    free = memory - (resident - weights["optimizer"]) - stored
    return activation_budget(free, weights["gradients"])


def _measure(costs: Costs, work: Workload, progress: Callable[[int, int], None]) -> None:
    """Measure each shape once, ahead of the sums, which find it measured."""
    checkpointed = costs.config.model.gradient_checkpointing
    measures: list[Callable[[], object]] = [
        *(partial(costs.sampled, call) for call in dict.fromkeys(work.calls)),
        *(
            partial(costs.replayed, work, shape, checkpointed=checkpointed, backward=True)
            for shape in work.replays
        ),
    ]
    for done, measure in enumerate(measures, 1):
        measure()
        progress(done, len(measures))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Counts:
    """Replays of one process in one iteration, by purpose and shape."""

    replay: Counter[Replay]
    value: Counter[Replay]
    reference: Counter[Replay]
    old: Counter[Replay]


def _counts(config: TrainConfig, work: Workload, slices: int) -> _Counts:
    """Multiply what one slice replays."""
    epochs = config.optim.epochs_per_iteration
    replay = _times(work.replays, epochs * slices)
    value = _times(work.described, slices)
    if config.objective.compares_pairs:
        # Until the first change of the parameters the stored density is the present one, but of
        # samples from before the last update.
        present = 0 if config.rollout.ahead else slices // config.optim.optimizer_steps_per_epoch
        valued = epochs * slices - present
        value = _times(work.valued, valued)
    objective = config.objective
    grouped = not objective.compares_pairs and objective.kl_weight > 0.0
    forward_process = config.objective.kind == "forward_process"
    return _Counts(
        replay=replay,
        value=value,
        reference=_times(replay, int(grouped or objective.prefers_noise)),
        old=_times(replay, int(forward_process)),
    )


def _times(counts: Counter[Replay], factor: int) -> Counter[Replay]:
    return Counter({shape: factor * count for shape, count in counts.items()})


def _calls(
    config: TrainConfig, costs: Costs, work: Workload, counts: _Counts
) -> tuple[Calls, Flops]:
    """Count calls and operations of the update."""
    checkpointed = config.model.gradient_checkpointing
    graphs = {
        shape: costs.replayed(work, shape, checkpointed=checkpointed, backward=True)
        for shape in work.replays
    }

    def flops(counter: Counter[Replay], part: str) -> int:
        return sum(count * getattr(graphs[shape], part) for shape, count in counter.items())

    replays = counts.replay.total()
    return Calls(
        rollout=0,
        value=counts.value.total(),
        replay=replays,
        recompute=sum(
            count
            for shape, count in counts.replay.items()
            if checkpointed and costs.blocks.get(shape, (1, 1))[0]
        ),
        backward=replays,
        reference=counts.reference.total(),
        old=counts.old.total(),
    ), Flops(
        rollout=0,
        decode=0,
        value=flops(counts.value, "forward"),
        replay=flops(counts.replay, "forward"),
        recompute=flops(counts.replay, "recompute"),
        backward=flops(counts.replay, "backward"),
        reference=sum(
            count * costs.reference(work, shape)
            for shape, count in counts.reference.items()
            if count
        ),
        old=flops(counts.old, "forward"),
    )


def _optimizer_steps(config: TrainConfig, work: Workload) -> int:
    """Count the parameter changes of an iteration."""
    optim = config.optim
    steps = optim.epochs_per_iteration * optim.optimizer_steps_per_epoch
    if config.objective.compares_pairs or config.objective.kind == "forward_process":
        return steps
    return steps * (work.decisions if optim.step_per_decision else 1)


def _memory(
    costs: Costs,
    work: Workload,
    footprints: dict[str, Footprint],
    *,
    weights: dict[str, int],
    slices: int,
    images: int,
    decoding: int,
) -> Memory:
    """Add up bytes by part."""
    config, system = costs.config, costs.system
    away, checkpointed = config.model.offload_frozen, config.model.gradient_checkpointing
    working = (f.working + f.weights * away for f in footprints.values())
    graphs = {
        shape: costs.replayed(work, shape, checkpointed=checkpointed, backward=True)
        for shape in work.replays
    }
    largest = max(graphs, key=lambda shape: graphs[shape].saved)
    saved = {
        again: costs.replayed(work, largest, checkpointed=again, backward=False).saved
        for again in (True, False)
    }
    stored, on_device = _stored(config, work, slices), config.model.storage_device == "device"
    ahead, several = config.rollout.ahead, slices > 1
    overlaps = ahead or config.reward.overlap  # a second thread judges a slice meanwhile
    # Under several texts at once, a scorer is shown copies of the images.
    texts = min(config.reward.texts_per_call, work.conditions)
    scoring = images * (1 + (texts if texts > 1 else 0)) + max(working, default=0)
    return Memory(
        **weights | {"host": weights["host"] + (0 if on_device else stored)},
        rollouts=stored if on_device else 0,
        sampling=max(costs.sampled(call)[1] for call in set(work.calls)),
        images=images,
        decoding=decoding + (network_bytes(system.components.vae) if away else 0),
        scoring=scoring,
        beside_decoding=scoring * (overlaps and several),
        beside_sampling=scoring * (ahead or (overlaps and several)),
        replay=max(graph.peak for graph in graphs.values()),
        saved=graphs[largest].saved,
        saved_checkpointed=saved[True],
        saved_plain=saved[False],
        offloaded=away,
    )


def _stored(config: TrainConfig, work: Workload, slices: int) -> int:
    """Size the samples that wait for an update, of two iterations where one is sampled ahead."""
    return (2 if config.rollout.ahead else 1) * slices * storage_bytes(work.stored)


def _refuse_image_size(config: TrainConfig, components: AnyComponents) -> None:
    """Refuse an image that the networks cannot cut into whole cells."""
    unit = 2 ** (len(components.vae.config.block_out_channels) - 1)
    if isinstance(components, Components):
        unit = math.lcm(unit, components.policy.camera_encoder.config.downscale_factor)
        parts = "autoencoder and camera encoder"
    else:
        unit *= getattr(components.policy, "patch_size", 1)
        parts = "autoencoder and transformer"
    size = config.model.image_size
    if size % unit:
        nearest = max(unit, round(size / unit) * unit)
        msg = (
            f"`model.image_size` must be a multiple of {unit}, by which {parts} reduce an image; "
            f"got {size}. The nearest valid value is {nearest}."
        )
        raise ConfigError(msg)


def _footprints(config: TrainConfig) -> dict[str, Footprint]:
    """Size every scorer that is asked in an iteration."""
    footprints: dict[str, Footprint] = {}
    for scorers, names in ((config.reward.per_view, PER_VIEW), (config.reward.joint, JOINT)):
        for name in scorer_weights(scorers):
            if name == VIEW_MEAN:  # no scorer: the mean of the others
                continue
            options = scorer_options(name, config.reward, device=_META, num_views=1)
            if name not in names and options.url is None and not is_function(name):
                near = nearest_name(name, names)
                raise ConfigError(f"there is no scorer {name!r}; the nearest name is {near!r}.")
            footprints[name] = scorer_footprint(name, options)
    return footprints


def _parameters(system: System, footprints: dict[str, Footprint]) -> Parameters:
    """Count the numbers that networks hold."""
    parts, backbone = system.components, system.backbone
    trained = {id(p) for p in system.trained().values()}

    def count(*modules: torch.nn.Module) -> int:
        return sum(p.numel() for m in modules for p in m.parameters() if id(p) not in trained)

    return Parameters(
        network=count(backbone.network),
        camera_encoder=count(*camera_encoder(system)),
        trained=sum(p.numel() for p in system.trained().values()),
        text_encoders=count(*backbone.text_encoders),
        vae=count(parts.vae),
        scorers=sum(f.parameters for f in footprints.values()),
    )
