"""Check of a run on this machine: every attempt, and its findings."""

import time
from collections.abc import Callable

import torch

from mvczigal_ref.config import TrainConfig
from mvczigal_ref.distributed import World
from mvczigal_ref.method.slices import Share
from mvczigal_ref.method.steps import check_grid, check_steps
from mvczigal_ref.models.backbone import AnyComponents
from mvczigal_ref.preflight.attempts import ATTEMPTS, CheckResult, Finding
from mvczigal_ref.preflight.snapshots import put_back
from mvczigal_ref.preflight.trial import Trial
from mvczigal_ref.preflight.trial_forward import ForwardTrial
from mvczigal_ref.preflight.trial_groups import GroupTrial
from mvczigal_ref.preflight.trial_noised_pairs import NoisedPairTrial
from mvczigal_ref.preflight.trial_pairs import PairTrial
from mvczigal_ref.system import System, build_system
from mvczigal_ref.system.scorers import no_scorers
from mvczigal_ref.update.parameters import parameter_copies

__all__ = ["Progress", "check", "check_system", "trial_of"]

Progress = Callable[[int, int], None]
"""Function that is told how many parts are done, and how many there are."""


def check(
    config: TrainConfig,
    *,
    device: torch.device,
    components: AnyComponents | None = None,
    objects: int = 1,
    progress: Progress | None = None,
) -> CheckResult:
    r"""Try on this machine what training relies on, with the run's own network and settings.

    The first ratio :math:`p_\theta(a|s) / p_{\theta'}(a|s)` is 1 at every step; the same replay
    gives the same bits; a zero advantage gives a zero gradient, and one of 1 a gradient that is
    that of fp32 and makes its samples likelier in one optimiser step, at the weight that an
    element has in a run of one process: a pair's first arm against its second, of a group the
    first member. What does not train stays as it was; a saved state comes back to the bit. The
    forward process has no density, so that the error of its fit stands for it. No scorer is
    loaded and nothing is kept.

    Source:
        arXiv:2505.20107, section 2 of the unified decision process: these follow from it.

    Args:
        config: Any run.
        device: Device on which the network computes.
        components: Models already loaded, changed in place; read from ``model.weights`` if absent.
        objects: Objects sampled together [objects]; one takes least time.
        progress: Called with the parts that are done and all, of which loading is the first.

    Returns:
        A finding for each, with its cause in plain words where it fails, and with the reason
        where it makes no sense for the run.

    Raises:
        ConfigError: If training would refuse the run: its slices, or its windows and trees.
        CheckpointError: If weights cannot be read.

    Examples:
        >>> from mvczigal_ref.config import from_dict
        >>> from mvczigal_ref.models.tiny import tiny_components
        >>> config = from_dict(
        ...     {"sampler": {"num_steps": 2}, "optim": {"optimizer_steps_per_epoch": 1}}
        ... )
        >>> check(
        ...     config,
        ...     device=torch.device("cpu"),
        ...     components=tiny_components(seed=0, channels=(16, 16, 16), num_heads=(1, 1, 1)),
        ... ).passed
        True
    """
    Share.of(config, World())
    check_grid(config)
    system = build_system(config, device=device, components=components, scorers=no_scorers())
    return check_system(system, config, objects=objects, progress=progress)


def check_system(
    system: System, config: TrainConfig, *, objects: int = 1, progress: Progress | None = None
) -> CheckResult:
    """Try a system that is already built; see :func:`check`.

    Args:
        system: System whose trained parameters are changed, and put back.
        config: The run that it was built for.
        objects: Objects sampled together [objects].
        progress: As in :func:`check`.

    Returns:
        The findings.

    Raises:
        ConfigError: If window, tree and grid do not fit.
    """
    if not config.objective.compares_pairs:
        check_steps(system, config)
    started, trial = time.monotonic(), trial_of(system, config, objects)
    before = parameter_copies(system.trained())
    findings: list[Finding] = []
    for done, (names, attempt) in enumerate(ATTEMPTS, start=1):
        if progress is not None:
            progress(done, 1 + len(ATTEMPTS))
        try:
            findings += attempt(trial)
        except (RuntimeError, ValueError, ArithmeticError, OSError) as error:
            reason = f"stopped by {type(error).__name__}: {str(error).partition(chr(10))[0]}"
            findings += [
                Finding(name=name.format(goal=trial.goal), passed=False, reason=reason)
                for name in names
            ]
        finally:
            put_back(system.trained(), before)
    return CheckResult(findings=tuple(findings), seconds=time.monotonic() - started)


def trial_of(system: System, config: TrainConfig, objects: int) -> Trial:
    """Choose the trial of a run's objective.

    Args:
        system: System whose trained parameters will be changed.
        config: The run that it was built for.
        objects: Objects sampled together [objects].

    Returns:
        A trial of pairs, of groups or of the forward process.
    """
    if config.objective.compares_pairs:
        pairs = NoisedPairTrial if config.objective.prefers_noise else PairTrial
        return pairs(system, config, objects)
    kind = ForwardTrial if config.objective.kind == "forward_process" else GroupTrial
    return kind(system, config, objects)
