"""`few_step`: a distilled LoRA in either naming is added to the weights; errors."""

import re

import pytest
import torch
from safetensors.torch import save_file

from mvczigal_ref.errors import CheckpointError
from mvczigal_ref.models.lora import adapter_names, add_lora, lora_parameters
from mvczigal_ref.models.unet.few_step import find_few_step_lora, fuse_few_step_lora
from tests.unit.models.small import randn
from tests.unit.models.unet.parts import fresh_unet

TARGETS = ("to_q", "to_out.0", "ff.net.2", "conv1", "conv_shortcut", "proj_in")
RANK, ALPHA = 2, 4.0


def factors(kind):
    """Draw two factors for some linear layers and convolutions, by layer."""
    unet = fresh_unet(kind).policy.unet
    add_lora(unet, rank=RANK, alpha=ALPHA, seed=0, targets=TARGETS)
    pairs = {}
    for index, (name, value) in enumerate(lora_parameters(unet).items()):
        layer, _, factor = name.removesuffix(".weight").rpartition(".")
        drawn = 0.1 * randn(*value.shape, seed=index)
        pairs.setdefault(layer, {})[factor.removeprefix("lora_")] = drawn.float()
    return pairs


def diffusers_names(pairs):
    """Name tensors as diffusers does; the scale is then 1."""
    words = {"A": "down", "B": "up"}
    return {
        f"unet.{layer}.lora.{words[factor]}.weight": value
        for layer, pair in pairs.items()
        for factor, value in pair.items()
    }


def kohya_names(pairs):
    """Name tensors as kohya's trainer does, with alpha beside each layer."""
    tensors = {}
    for layer, pair in pairs.items():
        name = f"lora_unet_{layer.replace('.', '_')}"
        tensors[f"{name}.lora_down.weight"] = pair["A"]
        tensors[f"{name}.lora_up.weight"] = pair["B"]
        tensors[f"{name}.alpha"] = torch.tensor(ALPHA)
    return tensors


# -- oracle ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sdxl", "sd15"])
@pytest.mark.parametrize(("names", "scale"), [(diffusers_names, 1.0), (kohya_names, ALPHA / RANK)])
def test_each_weight_gains_the_product_of_its_factors(kind, names, scale, tmp_path):
    """Linear layers and convolutions, times alpha / r; the others stay, and no adapter is left."""
    pairs = factors(kind)
    save_file({n: v.contiguous() for n, v in names(pairs).items()}, tmp_path / "l.safetensors")
    before = fresh_unet(kind).policy.unet.state_dict()
    unet = fresh_unet(kind).policy.unet
    fuse_few_step_lora(unet, str(tmp_path / "l.safetensors"))
    after = unet.state_dict()

    assert after.keys() == before.keys()
    assert adapter_names(unet) == ()
    assert len(pairs) > 20
    for name, value in before.items():
        pair = pairs.get(name.removesuffix(".weight"))
        if pair is None:
            assert torch.equal(after[name], value), name
            continue
        product = torch.einsum("or,r...->o...", pair["B"].flatten(1).double(), pair["A"].double())
        torch.testing.assert_close(after[name], value + scale * product, rtol=1e-5, atol=1e-6)


def test_a_folder_holds_its_file_under_diffusers_name(tmp_path):
    """As LCM-LoRA and TCD are published."""
    (tmp_path / "pytorch_lora_weights.safetensors").touch()

    assert find_few_step_lora(str(tmp_path)).parent == tmp_path


# -- errors ------------------------------------------------------------------------------


def refused(tensors, tmp_path, message, unet=None):
    """Expect that a file is refused, and that no adapter is left."""
    unet = unet or fresh_unet("sd15").policy.unet
    save_file({n: v.contiguous() for n, v in tensors.items()}, tmp_path / "l.safetensors")
    with pytest.raises(CheckpointError, match=message):
        fuse_few_step_lora(unet, str(tmp_path / "l.safetensors"))


def test_a_lora_of_something_else_is_refused(tmp_path):
    """Of a text encoder too, of another UNet's layers, of other widths, and of nothing."""
    good = diffusers_names(factors("sd15"))
    text = {"text_encoder.layers.0.q_proj.lora.down.weight": torch.zeros(2, 8)}
    refused(good | text, tmp_path, r"of the UNet alone; got 1 of .* such as text_encoder")
    stray = {
        f"unet.down_blocks.7.to_q.lora.{factor}.weight": torch.zeros(2, 2)
        for factor in ("down", "up")
    }
    refused(good | stray, tmp_path, "2 of its .* tensors fit no layer")
    wide = {n: torch.cat([v, v], 1) if ".down." in n else v for n, v in good.items()}
    refused(wide, tmp_path, "must be a LoRA of this UNet; got RuntimeError")
    refused({"weight": torch.zeros(2)}, tmp_path, "of the UNet alone")


@pytest.mark.parametrize(
    ("source", "command"),
    [
        ("ByteDance/Hyper-SD/Hyper.safetensors", "ByteDance/Hyper-SD Hyper.safetensors"),
        ("h1t/TCD-SDXL-LoRA", "h1t/TCD-SDXL-LoRA pytorch_lora_weights.safetensors"),
    ],
)
def test_an_absent_file_is_named_with_what_to_download(source, command):
    """A repository's name and a file in it, or the file of diffusers' name."""
    with pytest.raises(CheckpointError, match=re.escape(f"hf download {command}")):
        find_few_step_lora(source)
