"""`single_files`: one file where a folder or a LoRA is meant is told for what it is."""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from mvczigal_ref.cli import main
from mvczigal_ref.errors import CheckpointError
from mvczigal_ref.models.single_files import refuse_single_file, require_start

WHOLE = "model.diffusion_model.out.2.bias"
PART = "down_blocks.0.resnets.0.conv1.weight"
LORA = "unet.mid_block.to_q.lora_A.weight"


def write(path, *names):
    save_file({name: torch.zeros(4, 2) for name in names}, path)
    return path


# -- errors ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "what"),
    [
        (WHOLE, f"a single-file checkpoint of a whole pipeline, 1 tensors: {WHOLE}. Convert"),
        (PART, f"a safetensors file, no LoRA, 1 tensors: {PART}. Convert"),
    ],
)
@pytest.mark.parametrize("refuse", [require_start, lambda path: refuse_single_file("x", path)])
def test_other_weights_are_told_with_their_conversion(refuse, name, what, tmp_path):
    """Alike where a run begins and where a pipeline is read."""
    path = write(tmp_path / "a.safetensors", name)
    with pytest.raises(CheckpointError) as caught:
        refuse(path)
    assert what in str(caught.value)
    assert f"from_single_file({str(path)!r})" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "pipeline"),
    [
        ("conditioner.embedders.1.model.ln_final.bias", "StableDiffusionXLPipeline"),
        (
            "cond_stage_model.transformer.text_model.norm.bias",
            "StableDiffusionPipeline",
        ),
        ("model.diffusion_model.joint_blocks.0.x_block.mlp.fc1.bias", "StableDiffusion3Pipeline"),
        ("double_blocks.0.img_mlp.0.bias", "FluxPipeline"),
    ],
)
def test_a_single_file_is_converted_by_its_own_pipeline(name, pipeline, tmp_path):
    """SDXL's class does not read another's names."""
    path = write(tmp_path / "a.safetensors", WHOLE, name)
    with pytest.raises(CheckpointError, match=rf"import {pipeline} as P; P\.from_single_file"):
        refuse_single_file("x", path)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"<html>", "a web page. Download it again."),
        (b"", "an empty file. Download it again."),
        (b"\x80\x04\x95", "a pickle. First convert it once by `mvczigal convert-reward"),
    ],
)
def test_what_is_no_weights_is_told_too(content, what, tmp_path):
    """By its first bytes."""
    path = tmp_path / "a.ckpt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"`--from` must be a run folder.* which is {what}"):
        require_start(path)


def test_a_network_s_file_asks_for_its_folder(tmp_path):
    """Which is named elsewhere where a run is to begin."""
    (tmp_path / "config.json").write_text("{}")
    path = write(tmp_path / "a.safetensors", PART)
    with pytest.raises(CheckpointError, match=r"Give the folder that holds it\.$"):
        refuse_single_file("folder", path)
    with pytest.raises(CheckpointError, match=r"holds it, as FOLDER: .* leave `--from` out"):
        require_start(path)


def test_a_lora_is_no_pipeline(tmp_path):
    """And a run may begin with it."""
    path = write(tmp_path / "a.safetensors", LORA)
    require_start(path)
    with pytest.raises(
        CheckpointError, match=r"a safetensors file of a LoRA\. Give it as the LoRA"
    ):
        refuse_single_file("folder", path)


def test_training_refuses_before_torch_is_imported(tmp_path):
    """Within a second, then, in one line."""
    path = write(tmp_path / "a.safetensors", WHOLE)
    program = (
        "import sys; from mvczigal_ref.cli import main; "
        f"print(main(['train', 'tiny', '--from', {str(path)!r}, '--out', {str(tmp_path / 'o')!r}]),"
        " 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "2 False\n"
    assert done.stderr.count("\n") == 1
    assert "a single-file checkpoint of a whole pipeline" in done.stderr
    assert not (tmp_path / "o").exists()


def test_a_lora_option_says_the_same(tmp_path, capsys):
    """Before any model loads."""
    path = write(tmp_path / "a.safetensors", WHOLE)
    words = ["sample", "a red ball with a white nose", "--lora", str(path)]
    assert main([*words, "--out", str(tmp_path / "o")]) == 2
    error = capsys.readouterr().err
    assert "must be a LoRA, tensors named lora_A and lora_B; got the file" in error
    assert "a single-file checkpoint of a whole pipeline" in error
