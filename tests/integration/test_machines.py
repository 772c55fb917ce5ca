"""Processes of two machines train as one process: two network namespaces of this one stand in."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

import mvczigal_ref
from tests.integration.runs import HELD_OUT, checkpoints, metrics, write_prompts

SCRIPT = Path(mvczigal_ref.__file__).parent / "recipes" / "accelerate" / "torchrun.sh"
# Two machines and a cable between them; each has a loopback of its own, which reaches nobody else.
MACHINES = """
set -e
ip link set lo up
ip link add one type veth peer name two
unshare -n sleep 900 & other=$!
trap 'kill $other' EXIT
while [ "$(readlink /proc/$other/ns/net)" = "$(readlink /proc/self/ns/net)" ]; do sleep 0.05; done
ip link set two netns $other
ip addr add 10.77.0.1/24 dev one && ip link set one up
nsenter -t $other -n sh -c \
  'ip link set lo up && ip addr add 10.77.0.2/24 dev two && ip link set two up'
[ "$#" = 0 ] && exit 0
export HOST=10.77.0.1 MACHINES=2 GPUS=1
PET_LOCAL_ADDR=10.77.0.1 GLOO_SOCKET_IFNAME=one sh "$@" & first=$!
PET_LOCAL_ADDR=10.77.0.2 GLOO_SOCKET_IFNAME=two nsenter -t $other -n sh "$@"
wait $first
"""


def machines(*words, **more):
    """Run a shell script on both machines; without words only make them."""
    return subprocess.run(
        ["unshare", "-rn", "sh", "-c", MACHINES, "machines", *map(str, words)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=900, check=False,
        **more,
    )  # fmt: skip


def command(folder, prompts, held_out):
    """Write the words of a run of two iterations."""
    return [
        "tiny", "--out", folder, "--quiet", f"run.prompts={prompts}", f"run.held_out={held_out}",
        "run.device=cpu", "run.iterations=2", "run.objects_per_iteration=4",
        "run.objects_per_slice=1", "run.evaluation_noises=1", "sampler.num_steps=2",
        "zigzag.steps=1",
    ]  # fmt: skip


@pytest.mark.slow
def test_two_machines_train_as_one_process(tmp_path):
    """Started by `torchrun.sh`: prompts, noise, rewards and the parameters to the bit."""
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        pytest.skip("needs `unshare` and `ip`")
    if (made := machines()).returncode:
        pytest.skip(f"this machine makes no network namespaces: {made.stdout.strip()}")
    prompts, held_out = write_prompts(tmp_path), tmp_path / "held_out.txt"
    held_out.write_text("\n".join(HELD_OUT), "utf-8")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}

    words = command(tmp_path / "one", prompts, held_out)
    alone = subprocess.run(
        [sys.executable, "-m", "mvczigal_ref", "train", *map(str, words)],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600,
        check=False,
    )  # fmt: skip
    assert alone.returncode == 0, alone.stdout
    ended = machines(SCRIPT, *command(tmp_path / "two", prompts, held_out), env=environment)
    assert ended.returncode == 0, ended.stdout

    assert metrics(tmp_path / "one") == metrics(tmp_path / "two")
    mine, theirs = (
        load_file(tmp_path / name / "checkpoints" / newest / "policy.safetensors")
        for name in ("one", "two")
        for newest in checkpoints(tmp_path / name)[-1:]
    )
    assert mine.keys() == theirs.keys()
    assert all((mine[name] == theirs[name]).all() for name in mine)
