"""`file_sums`: a file of an exported policy that has changed is refused by name."""

import shutil
import subprocess

import pytest

from mvczigal_ref.errors import CheckpointError
from mvczigal_ref.models.file_sums import SUMS_FILE, require_sum, write_sums
from mvczigal_ref.models.loading import check_folder
from mvczigal_ref.models.lora import add_lora
from mvczigal_ref.models.lora_files import check_lora
from mvczigal_ref.models.lora_weights import LoraWeights
from mvczigal_ref.models.policy_files import save_policy
from tests.unit.models.small import fresh_components


def flip(path):
    """Change one bit of a file's last byte: of a tensor, or of the end of a text."""
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="of another system")
def test_the_list_is_what_sha256sum_reads(tmp_path):
    """An oracle of its own: it finds all files, and the one that changed."""
    (tmp_path / "unet").mkdir()
    for name in ("a.json", "unet/b.bin"):
        (tmp_path / name).write_text(name)
    write_sums(tmp_path)
    command = ["sha256sum", "-c", SUMS_FILE]
    whole = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert whole.stdout.split() == ["a.json:", "OK", "unet/b.bin:", "OK"]
    flip(tmp_path / "a.json")
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode == 1


@pytest.mark.parametrize(
    "name",
    ["adapter_model.safetensors", "adapter_config.json", "lora.safetensors",
     "pytorch_lora_weights.safetensors"],
)  # fmt: skip
def test_a_flipped_bit_of_an_exported_lora_is_refused(tmp_path, name):
    """Though the file is whole and its numbers are finite; without the list it is not seen."""
    unet = fresh_components().policy.unet
    add_lora(unet, rank=2, alpha=2.0, seed=0)
    save_policy(LoraWeights.of(unet), tmp_path / "policy")
    source = tmp_path / "policy" / name
    read = source.with_name("adapter_model.safetensors") if name.endswith(".json") else source
    check_lora(read, network="multiview")
    if name.endswith(".json"):
        source.write_text(source.read_text("utf-8") + " ", "utf-8")
    else:
        flip(source)
    with pytest.raises(
        CheckpointError, match=rf"{name}` must be the file that .*SHA256SUMS' lists"
    ):
        check_lora(read, network="multiview")
    (tmp_path / "policy" / SUMS_FILE).unlink()
    check_lora(read, network="multiview")


def test_a_flipped_bit_of_an_exported_network_is_refused(tmp_path):
    """In the folder below that of the list."""
    save_policy(fresh_components().policy, tmp_path / "policy")
    check_folder(tmp_path / "policy" / "unet")
    flip(tmp_path / "policy" / "unet" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.safetensors` must be the file"):
        check_folder(tmp_path / "policy" / "unet")


def test_files_that_are_not_listed_pass(tmp_path):
    """Beside a list of others, or without one."""
    (tmp_path / "a").write_text("a")
    require_sum(tmp_path / "a")
    write_sums(tmp_path)
    (tmp_path / "b").write_text("b")
    require_sum(tmp_path / "b")
