"""`training.low_bit`: moments of 8 bits, taken apart and put together."""

import importlib.util

import pytest
import torch

from mvczigal_ref.config import OptimConfig, load_config
from mvczigal_ref.errors import ConfigError
from mvczigal_ref.training import low_bit
from mvczigal_ref.training.low_bit import check_optimizer
from mvczigal_ref.training.optimizer import build_optimizer, set_rate
from mvczigal_ref.training.optimizer_state import restore_optimizer, split_optimizer_state

needs_torchao = pytest.mark.skipif(
    importlib.util.find_spec("torchao") is None, reason="needs the extra `lowbit`"
)
# What the package and torch warn of while it is imported.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def weights():
    """Make one tensor that is cut into blocks, and one that is too small."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"large": (64, 128), "small": (10,)}
    return {
        name: torch.nn.Parameter(torch.randn(shape, generator=generator))
        for name, shape in shapes.items()
    }


def train(optimizer, parameters, steps, rate=1e-2):
    """Take some steps down a bowl."""
    for _ in range(steps):
        set_rate(optimizer, rate)
        sum((p**2).sum() for p in parameters.values()).backward()
        optimizer.step()
        optimizer.zero_grad()


def built(kind, parameters):
    """Make an optimiser without decay."""
    return build_optimizer(parameters, OptimConfig(kind=kind, weight_decay=0.0))


# -- laws --------------------------------------------------------------------------------


@needs_torchao
def test_moments_take_a_quarter_and_steps_are_close():
    """Of large tensors; the small one's are AdamW's own, to rounding."""
    ours, theirs = weights(), weights()
    optimizer, plain = built("adamw8bit", ours), built("adamw", theirs)
    train(optimizer, ours, 5)
    train(plain, theirs, 5)
    moments, _ = split_optimizer_state(optimizer.state_dict())

    assert moments["0.exp_avg.codes"].dtype == torch.uint8
    assert moments["0.exp_avg.scale"].shape == (64 * 128 // 256,)
    assert moments["1.exp_avg"].shape == (10,)
    torch.testing.assert_close(ours["small"], theirs["small"], rtol=1e-5, atol=1e-7)
    # Codes have about 2 digits: an element's step may be off by a part of the rate.
    moved = (ours["large"] - theirs["large"]).abs()
    assert 0 < moved.max() < 5 * 1e-2
    assert moved.mean() < 0.05 * 5 * 1e-2


@needs_torchao
def test_a_restored_optimiser_goes_on_to_the_same_bits():
    """Codes and scales are saved as they are, in plain tensors."""
    whole, parted = weights(), weights()
    optimizer = built("adamw8bit", whole)
    train(optimizer, whole, 4)
    first = built("adamw8bit", parted)
    train(first, parted, 2)
    tensors, rest = split_optimizer_state(first.state_dict())
    second = built("adamw8bit", parted)
    restore_optimizer(second, {"optimizer": tensors}, {"optimizer": rest})
    train(second, parted, 2)

    assert all(type(t) is torch.Tensor for t in tensors.values())
    assert all(torch.equal(whole[name], parted[name]) for name in whole)


def test_a_rate_is_set_whether_it_is_a_number_or_a_tensor():
    """In place of the old one."""
    optimizer = built("adamw", weights())
    set_rate(optimizer, 0.5)
    assert optimizer.param_groups[0]["lr"] == 0.5
    optimizer.param_groups[0]["lr"] = torch.tensor(0.1)
    set_rate(optimizer, 0.25)
    assert torch.equal(optimizer.param_groups[0]["lr"], torch.tensor(0.25))


# -- errors ------------------------------------------------------------------------------


@needs_torchao
def test_damaged_codes_are_refused():
    """Rather than read with other scales."""
    parameters = weights()
    optimizer = built("adamw8bit", parameters)
    train(optimizer, parameters, 1)
    tensors, rest = split_optimizer_state(optimizer.state_dict())
    tensors["0.exp_avg.scale"] = tensors["0.exp_avg.scale"][1:]
    with pytest.raises(ValueError, match="in blocks of 256 numbers"):
        restore_optimizer(
            built("adamw8bit", weights()), {"optimizer": tensors}, {"optimizer": rest}
        )


def test_an_absent_package_is_named(monkeypatch):
    """Before anything is loaded, with the way to install it."""
    monkeypatch.setattr(low_bit.importlib.util, "find_spec", lambda name: None)
    check_optimizer(load_config())
    with pytest.raises(ConfigError, match=r"needs the package torchao.*\.\[lowbit\]"):
        check_optimizer(load_config(overrides=["optim.kind=adamw8bit"]))


def test_moments_in_parts_are_refused(monkeypatch):
    """No other number of processes could read them."""
    monkeypatch.setattr(low_bit.importlib.util, "find_spec", lambda name: object())
    words = ["optim.kind=adamw8bit", "run.sharding=full"]
    check_optimizer(load_config(overrides=words))
    with pytest.raises(ConfigError, match="cannot be cut anew"):
        check_optimizer(load_config(overrides=[*words, "model.finetune=full"]))
