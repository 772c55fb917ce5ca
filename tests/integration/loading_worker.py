"""Memory of two processes that load, save and export networks in parts; of one that exports."""

import ctypes
import gc
import json
import sys
import threading
from pathlib import Path

import torch

from mvczigal_ref.cli.exporting import Export, export_run
from mvczigal_ref.config import load_config, to_dict
from mvczigal_ref.distributed import world
from mvczigal_ref.files import atomic_write, to_json
from mvczigal_ref.models.sharding import gathered, whole
from mvczigal_ref.system import build_system
from mvczigal_ref.system.scorers import no_scorers
from mvczigal_ref.training.checkpoint import save_checkpoint
from mvczigal_ref.training.exporting import export_policy


def anonymous() -> int:
    """Memory that no file stands behind [bytes]."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def measured(work, *args, **kwargs):
    """Do some work; give its result and the most memory that it took beyond what was there."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # else it would take memory that is free already
    done, peak, before = threading.Event(), [0], anonymous()

    def watch():
        while not done.wait(0.002):
            peak[0] = max(peak[0], anonymous() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    result = work(*args, **kwargs)
    done.set()
    watcher.join()
    return result, peak[0]


FLOW = [
    "model.network=flow", "sampler.kind=flow", "reward.joint=per_view", "rollout.kind=group",
    "advantage.mode=per_view", "objective.kind=policy_gradient",
]  # fmt: skip
SETTINGS = {
    "flow": FLOW,
    "multiview": [],
    "unet": ["model.network=unet", "sampler.prediction_type=epsilon", *FLOW[2:]],
}
"""Settings of each kind of network."""


def export(network, policy, config, folder: Path, rank: int) -> None:
    """Export as a run's end does."""
    with gathered(network):
        if rank == 0:
            export_policy(policy, config, folder)


def work(folder: Path, kinds: list[str]) -> None:
    """Load the networks in parts, save them as checkpoints, and export them."""
    torch.set_num_threads(1)
    here, records = world("cpu"), {}
    torch.zeros(2**20).sum()
    for kind in kinds:
        words = [f"model.weights={folder / kind}", "model.image_size=32"]
        words += ["model.finetune=full", "run.sharding=full"]
        config, run = load_config(overrides=[*words, *SETTINGS[kind]]), folder / f"run of {kind}"
        system, peak = measured(
            build_system, config, device=here.device, scorers=no_scorers(), world=here
        )
        network, trained = system.backbone.network, system.trained()
        sums = {n: float(whole(p.detach()).double().sum()) for n, p in network.named_parameters()}
        types = sorted({str(p.dtype) for p in network.parameters()})
        save = {"tensors": {"policy": trained}, "state": {}, "config": config}
        _, saved = measured(save_checkpoint, run / "checkpoints", 1, **save)
        _, exported = measured(export, network, system.policy, config, run / "policy", here.rank)
        atomic_write(run / "config.json", to_json(to_dict(config)))
        records[kind] = {"peak": peak, "sums": sums, "types": types}
        records[kind] |= {"saved": saved, "exported": exported}
        del system, network, trained, save
    (folder / f"{here.rank}.json").write_text(json.dumps(records), "utf-8")
    here.close()


def export_alone(folder: Path, kinds: list[str]) -> None:
    """Export the checkpoints of both processes in one."""
    torch.set_num_threads(1)
    torch.zeros(2**20).sum()
    peaks = {}
    for kind in kinds:
        run = folder / f"run of {kind}"
        _, peaks[kind] = measured(export_run, Export(run=run, out=run / "alone"))
    (folder / "alone.json").write_text(json.dumps(peaks), "utf-8")


if __name__ == "__main__":
    (export_alone if sys.argv[3:] else work)(Path(sys.argv[1]), sys.argv[2].split(","))
