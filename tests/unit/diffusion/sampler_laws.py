"""Laws that several samplers keep."""

import itertools

import torch

from mvczigal_ref.diffusion.gaussian import log_prob, sample
from tests.compare import assert_equal_to
from tests.strategies import randn


def assert_steps_are_alone(sampler, shape):
    """One call over steps, objects and views gives the bits of one call per latent."""
    batch = torch.broadcast_shapes(shape, {(1, 3): (2, 3), (2, 1): (2, 3)}.get(shape, shape))
    step = torch.arange(24)[: torch.Size(shape).numel()].reshape(shape) % 4
    output, latent = randn(2, *batch, 3, 2, 5, dtype=torch.float64)
    together = sampler.transition(output, latent, step)
    raised = sampler.invert(output, latent, step)
    spread = together.std.expand(batch)
    for i in itertools.product(*map(range, batch)):
        at = int(step.expand(batch)[i])
        alone = sampler.transition(output[i], latent[i], at)

        assert torch.equal(alone.mean, together.mean[i])
        assert torch.equal(alone.std, spread[i])
        assert torch.equal(alone.denoised, together.denoised[i])
        assert torch.equal(sampler.invert(output[i], latent[i], at), raised[i])


def assert_the_last_step_is_clean(sampler):
    """Of four steps the last draws nothing and ends at the image."""
    output, latent = randn(2, 1, 2, 2, dtype=torch.float64)
    last = sampler.transition(output, latent, 3)

    assert sampler.num_density_steps == 3
    assert sampler.last_action_is_image_independent
    assert torch.equal(last.mean, last.denoised)
    assert last.std.item() == 0.0
    assert all(sampler.transition(output, latent, step).std > 0 for step in range(3))


def assert_inversion_undoes(sampler, step):
    """Without noise and with one prediction of it, up and down again is the identity."""
    noise, latent = randn(2, 1, 2, 2, dtype=torch.float64)
    up = sampler.invert(noise, latent, step)

    assert sampler.num_density_steps == 0
    torch.testing.assert_close(
        sampler.transition(noise, up, step).mean, latent, rtol=1e-10, atol=1e-10
    )


def assert_gradients_flow(sampler):
    """To output and latent at both of two steps, by finite differences; none to the spread."""
    output, latent = randn(2, 2, 1, 2, 2, dtype=torch.float64, requires_grad=True)

    def down(o, x):
        step = sampler.transition(o, x, torch.tensor([0, 1]))
        assert not step.std.requires_grad
        return step.mean, step.denoised

    assert torch.autograd.gradcheck(down, (output, latent))


def assert_golden_draws(step, output, wanted, relative):
    """Compare draws, both log-densities and the gradient of one with a golden file's."""
    drawn, given = (
        log_prob(wanted[action], mean=step.mean, std=step.std, reduction="mean")
        for action in ("prev_drawn", "prev_given")
    )
    (gradient,) = torch.autograd.grad(given.sum(), output)

    assert_equal_to(
        sample(step.mean, step.std, wanted["noise"]), wanted["prev_drawn"], relative, axes=3
    )
    assert_equal_to(drawn, wanted["log_prob_drawn"], relative)
    assert_equal_to(given, wanted["log_prob_given"], relative)
    assert_equal_to(gradient, wanted["grad_given"], relative, axes=3)
