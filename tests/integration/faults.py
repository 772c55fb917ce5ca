"""Faults that begin at a given iteration: a scorer, a parameter, a loss, a gradient."""

from contextlib import contextmanager

import torch

from mvczigal_ref.system import scorers
from mvczigal_ref.training import loop as training_loop
from mvczigal_ref.training.events import Events
from mvczigal_ref.update import pairs as accumulate


class Switch(Events):
    """Off until so many iterations have ended."""

    def __init__(self, after):
        self.after, self.on = after, False

    def iteration(self, finished, total, metrics):
        self.on = finished >= self.after


@contextmanager
def patched(place, name, value):
    """Replace an attribute for a while."""
    old = getattr(place, name)
    setattr(place, name, value)
    try:
        yield
    finally:
        setattr(place, name, old)


@contextmanager
def scorer_fault(switch, *, value=float("nan"), error=None):
    """Make the per-view judge of the second object's view 4 wrong, or let it raise."""
    build = scorers.per_view_scorer

    def faulty(name, *options, **more):
        judge = build(name, *options, **more)

        def score(images, prompts):
            scores = judge(images, prompts)
            if switch.on and error is not None:
                raise error
            if switch.on:
                scores[-1, 4] = value
            return scores

        return score

    with patched(scorers, "per_view_scorer", faulty):
        yield


def _faulty_replay(switch, harm):
    """Harm one stored step's log-density: step 0, the second object of its slice, view 2."""
    right = accumulate.replay_log_prob

    def replay(policy, sampler, trajectory, steps, *args, **kwargs):
        log_prob = right(policy, sampler, trajectory, steps, *args, **kwargs)
        if not switch.on or 0 not in steps:
            return log_prob
        place = torch.zeros_like(log_prob, dtype=torch.bool)
        place[list(steps).index(0), 1, 2] = True
        return harm(log_prob, place)

    return patched(accumulate, "replay_log_prob", replay)


def loss_fault(switch):
    """Make a log-density NaN."""
    return _faulty_replay(switch, lambda log_prob, place: log_prob.masked_fill(place, torch.nan))


def gradient_fault(switch):
    """Leave the log-density as it is, and make its gradient NaN."""

    def harm(log_prob, place):
        if log_prob.requires_grad:
            log_prob.register_hook(lambda g: g.masked_fill(place & (g != 0), torch.nan))
        return log_prob

    return _faulty_replay(switch, harm)


@contextmanager
def parameter_fault(switch):
    """Make one trained number NaN before an iteration."""
    right = training_loop.run_iteration

    def broken(system, *args, **kwargs):
        if switch.on:
            with torch.no_grad():
                next(iter(system.trained().values())).view(-1)[0] = torch.nan
        return right(system, *args, **kwargs)

    with patched(training_loop, "run_iteration", broken):
        yield
