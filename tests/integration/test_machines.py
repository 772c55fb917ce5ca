"""Processes of two machines train as one process: two network namespaces of this one stand in."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import mvczigal_ref
from tests.integration.runs import HELD_OUT, metrics, parameters, write_prompts

# Gradients are added in another order. AdamW's first steps divide by the gradient's own size, so
# that an entry whose gradient is mostly rounding moves otherwise by a share of the learning rate.
# Seen: 1.6e-6 of a reward, and parameters 3e-4 of their norm apart after two iterations.
METRICS = {"rel": 2e-5, "abs": 2e-6}
APART = 1e-3

FILES = Path(mvczigal_ref.__file__).parent / "recipes" / "accelerate"
SCRIPT = FILES / "torchrun.sh"
# As `machines.yaml` says.
ACCELERATE = f"""
exec accelerate launch --config_file {FILES / "machines.yaml"} --machine_rank "$MACHINE" \\
  --main_process_ip "$HOST" --num_machines "$MACHINES" --num_processes 2 \\
  -m mvczigal_ref train "$@"
"""
# Two machines and a cable between them; each has a loopback of its own, which reaches nobody else.
MACHINES = """
set -e
ip link set lo up
ip link add one type veth peer name two
unshare -n sleep 600 & other=$!
trap 'kill $other' EXIT
while [ "$(readlink /proc/$other/ns/net)" = "$(readlink /proc/self/ns/net)" ]; do sleep 0.05; done
ip link set two netns $other
ip addr add 10.77.0.1/24 dev one && ip link set one up
nsenter -t $other -n sh -c \
  'ip link set lo up && ip addr add 10.77.0.2/24 dev two && ip link set two up'
[ "$#" = 0 ] && exit 0
export HOST=10.77.0.1 MACHINES=2
MACHINE=0 GLOO_SOCKET_IFNAME=one sh "$@" & first=$!
MACHINE=1 GLOO_SOCKET_IFNAME=two nsenter -t $other -n sh "$@"
wait $first
"""


def machines(*words, **more):
    """Run a shell script on both machines; without words only make them."""
    return subprocess.run(
        ["unshare", "-rn", "sh", "-c", MACHINES, "machines", *map(str, words)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600, check=False,
        **more,
    )  # fmt: skip


def command(folder, prompts, held_out):
    """Write the words of a run of two iterations."""
    return [
        "tiny", "--out", folder, "--quiet", f"run.prompts={prompts}", f"run.held_out={held_out}",
        "run.device=cpu", "run.iterations=2", "run.objects_per_iteration=2",
        "run.objects_per_slice=1", "run.evaluation_noises=1", "sampler.num_steps=2",
        "zigzag.steps=1",
    ]  # fmt: skip


def test_every_machine_needs_its_number(tmp_path):
    """Two of number 0 would wait for each other; a run of one machine needs none."""
    (tmp_path / "torchrun").write_text("#!/bin/sh\necho $@\n", "utf-8")
    (tmp_path / "torchrun").chmod(0o700)
    environment = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "HOST": "here"}
    refused, alone, second = (
        subprocess.run(
            ["sh", SCRIPT, "tiny"], capture_output=True, text=True, check=False,
            env={**environment, **more},
        )
        for more in ({"MACHINES": "2"}, {}, {"MACHINES": "2", "MACHINE": "1", "GPUS": "8"})
    )  # fmt: skip

    assert refused.returncode != 0
    assert "MACHINE: must be 0 on the machine HOST" in refused.stderr
    assert "--nnodes 1 --node-rank 0 --nproc-per-node 1 " in alone.stdout
    assert "--nnodes 2 --node-rank 1 --nproc-per-node 8 --master-addr here" in second.stdout
    assert second.stdout.endswith(" -m mvczigal_ref train tiny\n")


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_two_machines_train_as_one_process(launcher, tmp_path):
    """Started by the ready files: all numbers of the first iteration to the bit, others nearly."""
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
    script = tmp_path / "accelerate.sh"
    script.write_text(ACCELERATE, "utf-8")
    script = SCRIPT if launcher == "torchrun" else script
    ended = machines(script, *command(tmp_path / "two", prompts, held_out), env=environment)
    assert ended.returncode == 0, ended.stdout

    mine, theirs = metrics(tmp_path / "one"), metrics(tmp_path / "two")
    assert mine[0] == theirs[0]
    assert theirs[1] == pytest.approx(mine[1], **METRICS)
    one, two = parameters(tmp_path / "one"), parameters(tmp_path / "two")
    assert one.keys() == two.keys()
    apart, norm = (
        torch.cat([value.flatten() for value in values]).norm()
        for values in ([one[k] - two[k] for k in one], one.values())
    )
    assert apart < APART * norm
