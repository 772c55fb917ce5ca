"""`recipes.sdxl`: the published hyper-parameters, and launchers that accelerate reads."""

from importlib.resources import files
from pathlib import Path

import pytest
from accelerate.commands.launch import _validate_launch_command, launch_command_parser

from mvczigal_ref.distributed import World
from mvczigal_ref.method.slices import Share
from mvczigal_ref.recipes import recipe

PROCESSES = 4
LAUNCHERS = {"single": "NO", "ddp": "MULTI_GPU"}

# Published: steps, rank, rate, prompts a process and round, rounds, accumulation, iterations.
PUBLISHED = {
    "lcm_sdxl_simple": (8, 16, 1e-4, 4, 1, 32, 700),
    "lcm_sdxl_mate3d": (8, 16, 5e-5, 4, 4, 64, 1000),
    "sdxl_simple": (16, 4, 5e-5, 2, 2, 64, 700),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_hyper_parameters_are_the_published_ones(name):
    """Each of the table, and what the three have in common."""
    config = recipe(name)
    steps, rank, rate, prompts, rounds, _, iterations = PUBLISHED[name]

    assert config.sampler.num_steps == steps
    assert (config.model.lora_rank, config.model.lora_alpha) == (rank, rank)
    assert (config.optim.lr, config.run.iterations) == (rate, iterations)
    assert config.run.objects_per_iteration == PROCESSES * prompts * rounds
    assert (config.sampler.guidance_scale, config.objective.clip_range) == (7.0, 1e-4)
    assert (config.sampler.snr_shift, config.sampler.prediction_type) == (8.0, "epsilon")
    optim, constraint = config.optim, config.constraint
    assert (optim.betas, optim.eps, optim.weight_decay) == ((0.9, 0.999), 1e-8, 1e-4)
    assert optim.max_grad_norm == 5.0
    assert (constraint.threshold_decay, constraint.multiplier_max) == (0.99, 5.0)
    assert (constraint.step_size_violated, constraint.step_size_satisfied) == (0.1, 0.01)
    assert (config.run.seed, config.model.image_size, config.model.dtype) == (42, 768, "fp16")
    assert config.model.gradient_checkpointing
    assert config.model.views_per_decode == 2  # all views at once would need 10 GiB
    assert config.objective.train_last_action


@pytest.mark.parametrize("name", PUBLISHED)
def test_accumulation_is_the_published_number_of_timesteps(name):
    """Counted from what four processes really share out: objects of a change, times steps."""
    config = recipe(name)
    share = Share.of(config, World(rank=0, size=PROCESSES))
    objects = sum(len(part) for part in share.objects)

    timesteps = objects * config.sampler.num_steps / config.optim.optimizer_steps_per_epoch
    assert timesteps == PUBLISHED[name][5]


def test_guidance_leads_away_from_the_published_negative_prompt():
    """Where the network has no embedding of the guidance."""
    config = recipe("sdxl_simple")

    assert (config.sampler.kind, config.sampler.eta) == ("ddim", 1.0)
    assert config.sampler.negative_prompt == (
        "watermark, ugly, deformed, noisy, blurry, low contrast"
    )


def launched(name):
    """Read a launcher's file as `accelerate launch` does."""
    path = Path(str(files("mvczigal_ref.recipes") / "accelerate" / f"{name}.yaml"))
    arguments = launch_command_parser().parse_args(["--config_file", str(path), "train.py"])
    read, defaults, _ = _validate_launch_command(arguments)
    return read, defaults


@pytest.mark.parametrize("name", LAUNCHERS)
def test_accelerate_reads_the_launchers(name):
    """It refuses unknown keys itself; types stay the run's own."""
    read, defaults = launched(name)

    assert defaults.distributed_type.value == LAUNCHERS[name]
    assert read.mixed_precision == "no"
    assert not read.use_cpu
    assert read.multi_gpu == (name == "ddp")
