"""Sentences of a run's page: what came of it, what was run, and how to run it again."""

import json
import shlex
from collections.abc import Mapping

from mvczigal_ref.config import TrainConfig
from mvczigal_ref.evaluation.digits import plus_minus
from mvczigal_ref.evaluation.durations import duration
from mvczigal_ref.evaluation.scores import PairedGain
from mvczigal_ref.recipes import RECIPES, recipe_names
from mvczigal_ref.report.run_content import RunContent, changed_settings

__all__ = ["error_removed", "facts", "headline", "repeating_command", "run_facts"]

_CLEAR = 2.0  # standard errors above which a change is called one
_ANY = next(iter(RECIPES))  # a settings file that sets everything starts from any recipe


def headline(gains: Mapping[str, PairedGain], *, finished: int, unit: str) -> str:
    """Say in a sentence what training did to the held-out scores.

    Args:
        gains: Gains by name of the score; empty while there is nothing to compare.
        finished: Finished iterations.
        unit: Unit of the scores; may be empty.

    Returns:
        The sentence.

    Examples:
        >>> gain = PairedGain(before=10.0, after=11.0, gain=1.0, standard_error=0.1)
        >>> headline({"joint view": gain}, finished=60, unit="dB")
        'The joint-view score rose by 1.00 ± 0.10 dB in 60 iterations.'
    """
    done = "1 iteration" if finished == 1 else f"{finished} iterations"
    if not gains:
        return f"Nothing to compare yet: {done} done, no held-out scores after training."
    parts = []
    for name, gain in gains.items():
        error = gain.standard_error
        if abs(gain.gain) > _CLEAR * error:  # False where the error is NaN
            change = "rose by " if gain.gain > 0 else "fell by "
            change += f"{plus_minus(abs(gain.gain), error)}{unit and ' ' + unit}"
        else:
            size = plus_minus(gain.gain, error, sign=True)
            change = f"did not change clearly ({size}{unit and ' ' + unit})"
        parts.append(f"the {name.replace(' ', '-')} score {change}")
    text = " and ".join(parts)
    return f"{text[0].upper()}{text[1:]} in {done}."


def error_removed(gain: float) -> str:
    """Say what a gain in decibels means for the squared error.

    Args:
        gain: Change of a score [dB].

    Returns:
        Words such as ``20 % less error``.

    Examples:
        >>> error_removed(0.95), error_removed(-1.0)
        ('20 % less error', '26 % more error')
    """
    share = 10 ** (-gain / 10) - 1
    return f"{abs(share):.0%} {'more' if share > 0 else 'less'} error".replace("%", " %")


def facts(config: TrainConfig, finished: int) -> list[str]:
    """Describe a run's settings, in a few words per fact.

    Args:
        config: Settings of the run.
        finished: Finished iterations.

    Returns:
        The facts.
    """
    sampler, model, run = config.sampler, config.model, config.run
    kind = sampler.kind if sampler.is_flow or sampler.is_plugin else sampler.kind.upper()
    trained = f"LoRA of rank {model.lora_rank}" if model.finetune == "lora" else "every weight"
    return [
        f"{finished} of {run.iterations} iterations",
        f"{run.objects_per_iteration} {_sampled(config)}",
        f"advantage: {config.advantage.mode.replace('_', ' ')}"
        + (", shuffled" if config.advantage.shuffle else ""),
        f"{kind}, {sampler.num_steps} steps, guidance {sampler.guidance_scale:g}",
        f"trains {trained}, learning rate {config.optim.lr:g}",
        f"seed {run.seed}",
    ]


def _sampled(config: TrainConfig) -> str:
    """Describe what is sampled of each prompt."""
    rollout = config.rollout
    if rollout.kind == "pair":
        zigzag = config.objective.pairing == "zigzag"
        return f"pairs per iteration ({'zigzag against standard' if zigzag else 'two standard'})"
    if rollout.kind == "tree":
        steps = ", ".join(map(str, rollout.split_steps))
        return f"trees per iteration, which divide at steps {steps}"
    if rollout.kind == "branches":
        branches = f"{rollout.members} branches of {rollout.trunks} trunks at every step"
        return f"prompts per iteration, {branches}"
    enhancer = config.condition.enhancer
    captions = "" if enhancer == "none" else f", captions: {enhancer}"
    return f"groups of {rollout.members} per iteration{captions}"


def repeating_command(run: RunContent) -> str:
    """Write the command that repeats a run.

    Args:
        run: The run.

    Returns:
        A command line.
    """
    if run.config.recipe not in recipe_names():
        return shlex.join(["mvczigal", "train", _ANY, "--config", str(run.folder / "config.json")])
    words = [
        f"{path}={value if isinstance(value, str) else json.dumps(value)}"
        for path, (_, value) in changed_settings(run.config).items()
    ]
    return shlex.join(["mvczigal", "train", run.config.recipe, *words])


def run_facts(run: RunContent) -> dict[str, str]:
    """Name command, time, machine and versions of a run, start by start where they differ.

    Args:
        run: The run.

    Returns:
        Facts by their name; empty for a run that recorded none.
    """
    starts = run.starts
    if not starts:
        return {}
    seconds = [start["seconds"] for start in starts]
    total = sum((s for s in seconds if s is not None), 0.0)
    took = duration(total) + ("" if None not in seconds else ", and a start that has not ended")
    several = f" in {len(starts)} starts" if len(starts) > 1 else ""
    columns = {
        "typed": [start["command"] or "called from Python" for start in starts],
        "began": [f"{start['began'].replace('T', ' ').removesuffix('+00:00')} UTC"
                  for start in starts],
        "machine": [start["machine"] for start in starts],
        "processes": [f"{start['processes']} on {start['device']}, threads per process: "
                      f"{start['threads']}" for start in starts],
        "versions": [", ".join(f"{name} {number}" for name, number in start["versions"].items())
                     for start in starts],
    }  # fmt: skip
    words = {name: "; then ".join(dict.fromkeys(values)) for name, values in columns.items()}
    return {**words, "took": took + several}
