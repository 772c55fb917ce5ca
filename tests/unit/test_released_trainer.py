"""The released trainer's numbers, step for step: an iteration against a slow transcription.

The transcription follows the released code, not this package: one prompt and one timestep at a
time, both arms in one graph, standard minus zigzag, a threshold that starts when it is not
positive, and a loss that is averaged over micro-steps. Only the network and the rollouts are
shared; everything else is plain arithmetic on their numbers.
"""

import math
from dataclasses import replace

import pytest
import torch

from mvczigal_ref.constraint import ConstraintState
from mvczigal_ref.diffusion.lcm import LcmSampler
from mvczigal_ref.distributed import World
from mvczigal_ref.iteration import run_iteration
from mvczigal_ref.method import pairs
from mvczigal_ref.recipes import recipe
from mvczigal_ref.system.networks import DTYPES
from mvczigal_ref.training.prompt_batch import prompt_batch
from mvczigal_ref.training.tracking import StageTimer
from tests.analytic_system import PROMPTS, CoupledPolicy, analytic_system
from tests.iterations import staged
from tests.oracles import scaled_linear_alpha_bar

ITERATIONS = 3
LEVEL = scaled_linear_alpha_bar(1000, 0.00085, 0.012)


class ReleasedTrainer:
    """What the released trainer does after its rollouts."""

    def __init__(self, policy, *, guidance, clip=1e-4):
        self.policy, self.guidance, self.clip = policy, guidance, clip
        self.optimizer = torch.optim.AdamW(
            list(policy.parameters()), lr=1e-4, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-4
        )
        self.multiplier = self.threshold = 0.0

    def constrain(self, joint):
        """Move the threshold to the mean, then the multiplier to the new threshold."""
        mean = joint.mean().item()
        if self.threshold > 0:
            self.threshold = 0.99 * self.threshold + 0.01 * mean
        else:
            self.threshold = mean
        violation = self.threshold - mean
        rate = 0.1 if violation > 0 else 0.01
        self.multiplier = min(max(self.multiplier + rate * violation, 0.0), 5.0)

    def log_prob(self, x, y, t, s, conditioning):
        """Score actions y at states x of one prompt: the mean over channels and pixels."""
        epsilon = self.policy(
            x, torch.tensor(t), conditioning, guidance_scale=self.guidance, camera_scale=1.0
        )
        clean = (x - math.sqrt(1 - LEVEL[t]) * epsilon) / math.sqrt(LEVEL[t])
        scaled = 10.0 * t
        c_skip = 0.25 / (scaled**2 + 0.25)
        c_out = scaled / math.sqrt(scaled**2 + 0.25)
        mean = math.sqrt(LEVEL[s]) * (c_out * clean + c_skip * x)
        variance = 1 - LEVEL[s]
        density = -((y - mean) ** 2) / (2 * variance)
        density = density - 0.5 * math.log(variance) - 0.5 * math.log(2 * math.pi)
        return density.mean(dim=(1, 2, 3))

    def update(self, standard, zigzag, rewards, conditionings, timesteps):
        """Train on one iteration; return loss, KL, clip fraction, gradient and its norm."""
        reward1, reward2, joint1, joint2 = rewards
        self.constrain(torch.cat([joint1, joint2]))
        advantage = _standardised(torch.cat([reward1, reward2]))
        joint = _standardised(torch.cat([joint1, joint2]))
        count = len(reward1)
        prompts, steps = range(count), range(len(timesteps))
        losses, kls, fractions, gaps = [], [], [], []
        self.optimizer.zero_grad()
        for item in prompts:
            difference = advantage[item] - advantage[count + item]
            joint_difference = joint[item] - joint[count + item]
            gap = (difference + self.multiplier * joint_difference) / (1 + self.multiplier)
            gaps.append(gap)
            for step in steps:
                t = timesteps[step]
                s = timesteps[min(step + 1, len(timesteps) - 1)]
                change = []
                for arm in (standard, zigzag):
                    x, y = arm.state[step, item], arm.action[step, item]
                    new = self.log_prob(x, y, t, s, conditionings[item])
                    change.append(new - arm.log_prob[step, item])
                near = [torch.clamp(r, -self.clip, self.clip) for r in change]
                unclipped = (change[0] - change[1] - gap) ** 2
                clipped = (near[0] - near[1] - gap) ** 2
                loss = torch.maximum(unclipped, clipped).mean()
                (loss / (count * len(timesteps))).backward()
                both = torch.stack(change).detach()
                losses.append(loss.item())
                kls.append(0.5 * both.square().mean().item())
                fractions.append((both.abs() > self.clip).double().mean().item())
        norm = torch.nn.utils.clip_grad_norm_(list(self.policy.parameters()), 5.0)
        gradient = torch.cat([p.grad.flatten() for p in self.policy.parameters()])
        self.optimizer.step()
        return {
            "loss": sum(losses) / len(losses),
            "approx_kl": sum(kls) / len(kls),
            "clip_fraction": sum(fractions) / len(fractions),
            "grad_norm": norm.item(),
            "gradient": gradient,
            "gap": torch.stack(gaps),
        }


def _standardised(reward):
    """Over everything, by the population's deviation."""
    return (reward - reward.mean()) / (reward.std(unbiased=False) + 1e-8)


class KeepsGradients(torch.optim.AdamW):
    """Remembers the gradient of every step."""

    def step(self, closure=None):
        """Note and step."""
        held = [p.grad.flatten().clone() for group in self.param_groups for p in group["params"]]
        self.seen = [*getattr(self, "seen", []), torch.cat(held)]
        return super().step(closure)


@pytest.fixture(scope="module")
def runs():
    """Run the recipe in fp64, and the transcription on its rollouts, iteration by iteration."""
    config = recipe("tiny_released")
    config = replace(
        config,
        sampler=replace(config.sampler, prediction_type="epsilon"),
        run=replace(config.run, objects_per_iteration=4, objects_per_slice=2),
    )
    ours, theirs = [], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DTYPES, "fp32", torch.float64)
        system = analytic_system(config)
        system = replace(
            system,
            sampler=_fp64_sampler(config),
            per_view=_wide(system.per_view),
            joint=_wide(system.joint),
        )
        released = ReleasedTrainer(CoupledPolicy(), guidance=config.sampler.guidance_scale)
        trained = list(system.trained().values())
        optimizer = KeepsGradients(
            trained,
            lr=config.optim.lr,
            betas=config.optim.betas,
            eps=config.optim.eps,
            weight_decay=config.optim.weight_decay,
        )
        state = ConstraintState()
        for index in range(ITERATIONS):
            prompts = prompt_batch(PROMPTS, seed=0, iteration=index, count=4)
            stages = staged(system, config, index=index, prompts=prompts)
            result = run_iteration(
                system,
                optimizer,
                state,
                prompts,
                iteration=index,
                config=config,
                world=World(),
                timer=StageTimer(),
            )
            state = result.constraint
            ((gap,),) = pairs.compare(
                stages.rewards, stages.samples, stages.here, multiplier=state.multiplier
            )
            ours.append(
                {
                    **result.metrics,
                    "gradient": optimizer.seen[-1],
                    "gap": gap,
                    "parameters": torch.cat([p.detach().flatten() for p in trained]),
                }
            )
            per_view, joint = stages.rewards.per_view_total()[0], stages.rewards.joint_total()[0]
            measured = released.update(
                _joined([part.pair.standard for part in stages.samples]),
                _joined([part.pair.zigzag for part in stages.samples]),
                (per_view[:, 1], per_view[:, 0], joint[:, 1], joint[:, 0]),
                [system.conditioning([prompt]) for prompt in prompts],
                system.sampler.timesteps.tolist(),
            )
            after = [p.detach().flatten() for p in released.policy.parameters()]
            theirs.append(
                {
                    **measured,
                    "multiplier": released.multiplier,
                    "threshold": released.threshold,
                    "parameters": torch.cat(after),
                }
            )
    return config, ours, theirs


def _fp64_sampler(config):
    """Tables that are not rounded to fp32, as the transcription's are not."""
    return LcmSampler.create(
        num_steps=config.sampler.num_steps,
        alpha_bar=torch.tensor(LEVEL, dtype=torch.float64),
        prediction_type="epsilon",
    )


def _wide(scorer):
    """Score in fp64."""
    return lambda images, prompts: scorer(images, prompts).double()


def _joined(arms):
    """Put the slices' trajectories together again."""
    return replace(
        arms[0],
        **{
            name: torch.cat([getattr(arm, name) for arm in arms], dim=1)
            for name in ("state", "action", "log_prob")
        },
        denoised=torch.cat([arm.denoised for arm in arms]),
    )


def test_the_recipe_is_the_released_configuration(runs):
    """What the transcription takes for granted; the terminal action is trained."""
    config, _, _ = runs

    assert (config.objective.clip_range, config.objective.clip) == (1e-4, True)
    assert (config.objective.reduction, config.objective.temperature) == ("mean", 1.0)
    assert config.objective.train_last_action
    assert config.objective.pairing == "zigzag"
    assert (config.optim.optimizer_steps_per_epoch, config.optim.epochs_per_iteration) == (1, 1)
    assert (config.optim.betas, config.optim.eps) == ((0.9, 0.999), 1e-8)
    assert (config.optim.weight_decay, config.optim.max_grad_norm) == (1e-4, 5.0)
    assert config.optim.lr == 1e-4
    assert (config.sampler.num_steps, config.sampler.guidance_scale) == (8, 7.0)


@pytest.mark.parametrize("index", range(ITERATIONS))
def test_advantages_are_the_released_ones(runs, index):
    """Turned round: ours is zigzag minus standard."""
    _, ours, theirs = runs

    torch.testing.assert_close(ours[index]["gap"], -theirs[index]["gap"], rtol=1e-10, atol=1e-10)
    assert ours[index]["gap"].abs().max() > 0.1


@pytest.mark.parametrize("index", range(ITERATIONS))
def test_multiplier_and_threshold_are_the_released_ones(runs, index):
    """From the same raw rewards; the multiplier leaves zero."""
    _, ours, theirs = runs
    for name in ("multiplier", "threshold"):
        assert ours[index][name] == pytest.approx(theirs[index][name], rel=1e-12, abs=1e-12)
    assert max(table["multiplier"] for table in theirs) > 0


@pytest.mark.parametrize("index", range(ITERATIONS))
@pytest.mark.parametrize("name", ["loss", "approx_kl", "clip_fraction", "grad_norm"])
def test_metrics_are_the_released_ones(runs, index, name):
    """Means over prompts, timesteps and views, on the sampling parameters."""
    _, ours, theirs = runs

    # The transcription's log-density is written another way: its ratio is 1 but for rounding.
    assert ours[index][name] == pytest.approx(theirs[index][name], rel=1e-9, abs=1e-20)


@pytest.mark.parametrize("index", range(ITERATIONS))
def test_gradients_are_the_released_ones(runs, index):
    """Each entry of the clipped gradient, as the mean of the micro-steps'."""
    _, ours, theirs = runs
    expected = theirs[index]["gradient"]

    assert expected.abs().min() > 0
    torch.testing.assert_close(ours[index]["gradient"], expected, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("index", range(ITERATIONS))
def test_parameters_are_the_released_ones(runs, index):
    """After AdamW's step of each iteration."""
    _, ours, theirs = runs

    torch.testing.assert_close(
        ours[index]["parameters"], theirs[index]["parameters"], rtol=1e-10, atol=1e-12
    )
