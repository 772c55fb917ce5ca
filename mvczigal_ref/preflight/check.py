"""Try all of it, and collect what was found."""

import time

import torch

from mvczigal_ref.config import TrainConfig
from mvczigal_ref.errors import ConfigError
from mvczigal_ref.models.components import Components
from mvczigal_ref.preflight.attempts import ATTEMPTS, Finding, Verdict
from mvczigal_ref.preflight.trial import Trial, copies, put_back
from mvczigal_ref.system import System, build_system
from mvczigal_ref.system.scorers import no_scorers

__all__ = ["check", "check_system"]


def check(
    config: TrainConfig,
    *,
    device: torch.device,
    components: Components | None = None,
    objects: int = 1,
) -> Verdict:
    r"""Try on this machine what training relies on, with the run's own network and settings.

    The first ratio :math:`p_\theta(a|s) / p_{\theta'}(a|s)` is 1 at every step; the same replay
    gives the same bits; a zero advantage gives a zero gradient, and one of 1 a gradient that is
    that of fp32 and raises the first arm's log-density over the second's in one optimiser step,
    at the weight that an element has in a run of one process; what does not train stays as it
    was; a saved state comes back to the bit. No scorer is loaded and nothing is kept.

    Source:
        arXiv:2505.20107, section 2 of the unified decision process: these follow from it.

    Args:
        config: A run over pairs with the reward-difference loss.
        device: Where the network computes.
        components: Models already loaded, changed in place; read from ``model.weights`` if absent.
        objects: Objects sampled together [objects]; one takes least time.

    Returns:
        A finding for each, with its cause in plain words where it fails.

    Raises:
        ConfigError: If the run is of another kind.
        CheckpointError: If weights cannot be read.

    Examples:
        >>> from mvczigal_ref.config import from_dict
        >>> from mvczigal_ref.models.tiny import tiny_components
        >>> check(
        ...     from_dict({"sampler": {"num_steps": 2}}),
        ...     device=torch.device("cpu"),
        ...     components=tiny_components(seed=0, channels=(16, 16, 16), num_heads=(1, 1, 1)),
        ... ).passed
        True
    """
    system = build_system(config, device=device, components=components, scorers=no_scorers())
    return check_system(system, config, objects=objects)


def check_system(system: System, config: TrainConfig, *, objects: int = 1) -> Verdict:
    """Try a system that is already built; see :func:`check`.

    Args:
        system: Its trained parameters are changed, and put back.
        config: The run that it was built for.
        objects: Objects sampled together [objects].

    Returns:
        The findings.

    Raises:
        ConfigError: If the run is of another kind.
    """
    if config.rollout.kind != "pair" or config.objective.kind != "reward_difference":
        msg = (
            "a check tries pairs with the reward-difference loss; got `rollout.kind` = "
            f'"{config.rollout.kind}" and `objective.kind` = "{config.objective.kind}".'
        )
        raise ConfigError(msg)
    started, trial = time.monotonic(), Trial(system, config, objects)
    before = copies(system.trained())
    findings: list[Finding] = []
    for names, attempt in ATTEMPTS:
        try:
            findings += attempt(trial)
        except (RuntimeError, ValueError, ArithmeticError, OSError) as error:
            told = f"stopped by {type(error).__name__}: {str(error).partition(chr(10))[0]}"
            findings += [Finding(name=name, passed=False, told=told) for name in names]
        finally:
            put_back(system.trained(), before)
    return Verdict(findings=tuple(findings), seconds=time.monotonic() - started)
