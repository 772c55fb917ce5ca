"""Network calls of a published recipe, ours against the released trainer's."""

from mvczigal_ref.config import load_config
from mvczigal_ref.preflight.costs import Costs
from mvczigal_ref.preflight.measure import GraphCost
from mvczigal_ref.preflight.plan import plan
from mvczigal_ref.recipes import recipe
from tests.unit.preflight.small import folder


def test_an_iteration_of_lcm_sdxl_simple_makes_fewer_calls(monkeypatch):
    """130 against 178 per process of four, and 408 sampled view batches against 432.

    Released, 4 prompts per process at 8 steps: sampling 8 + 10 calls of 24 views; training 4 x 8
    x 2 forward calls of 6 views, as many recomputed, and 4 x 8 backward calls through both arms.
    Ours, 2 slices of 12 views: sampling 2 x (2 x 8 - 1 + 2), the pair's first call made once;
    training 2 x 8 x 2 forward, as many recomputed, as many backward. In training both pass 384
    views forward.
    """
    steps, prompts, views = 8, 4, 6
    released = (steps + steps + 2, prompts * steps * 2, prompts * steps * 2, prompts * steps)
    # Calls are counted; what each of them costs would take longer to find out.
    nothing = GraphCost(forward=0, recompute=0, backward=0, saved=0, peak=0)
    monkeypatch.setattr(Costs, "replayed", lambda *_, **__: nothing)
    monkeypatch.setattr(Costs, "sampled", lambda *_: (0, 0))
    monkeypatch.setattr(Costs, "decoded", lambda *_: (0, 0, 0))
    words = (f"model.weights={folder()}", "model.image_size=32")
    config = load_config(recipe("lcm_sdxl_simple"), overrides=words)
    found = plan(config, world_size=4)
    calls, together = found.calls, config.run.objects_per_slice * views

    assert (config.sampler.num_steps, found.objects_per_process, found.views) == (8, 4, 6)
    assert sum(released) == 178
    assert calls.total == 130
    assert calls.rollout * together == 408 < released[0] * prompts * views == 432
    assert calls.replay * together == released[1] * views == 384
