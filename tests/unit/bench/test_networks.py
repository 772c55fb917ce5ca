"""`bench.networks`, `bench.iterations` and what GPU tests try: the same paths on the CPU."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

pytest.importorskip("bench", reason="measurements are not in the wheel")

from bench.iterations import PeakTimer, capped
from bench.networks import materialise, random_components, random_scorers
from mvczigal_ref.models.row_attention import is_row_attention
from mvczigal_ref.reward.hyperscore_network import HyperScoreSize
from mvczigal_ref.system.offloaded import Offloaded
from tests.gpu import checks
from tests.unit.models.test_multiview_unet import published_names
from tests.unit.preflight.small import folder

CPU, META = torch.device("cpu"), torch.device("meta")


def small(*words):
    """Give the recipe on the narrowest network, one object and two steps."""
    return checks.configured(
        f"model.weights={folder()}", "model.dtype=fp32", "model.storage_dtype=fp32",
        "run.objects_per_slice=1", "run.objects_per_iteration=1", "sampler.num_steps=2", *words,
        tiny=True,
    )  # fmt: skip


# -- oracle ------------------------------------------------------------------------------


def test_full_width_is_the_published_names_and_shapes():
    """What the device would be given, laid out on the meta device."""
    parts = random_components(checks.configured(), META)
    shapes = {n: list(value.shape) for n, value in parts.policy.unet.state_dict().items()}
    adapter = {n: shape for n, shape in shapes.items() if is_row_attention(n)}
    cameras = parts.policy.camera_encoder.state_dict()
    adapter |= {n: list(value.shape) for n, value in cameras.items()}

    assert {n: s for n, s in shapes.items() if n not in adapter} == published_names(
        "names_unet_lcm_sdxl"
    )
    assert adapter == published_names("names_custom_adapter_sdxl")
    assert {p.dtype for p in parts.policy.parameters()} == {torch.float16}
    assert parts.tokenizer.model_max_length == parts.tokenizer_2.model_max_length == 77


def test_a_layer_has_its_own_usual_values():
    """Norms are one and zero, positions count; the generator of the process stays."""

    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.linear = nn.LayerNorm(4), nn.Linear(4, 4)
            self.alone = nn.Parameter(torch.empty(500))
            self.register_buffer("position_ids", torch.empty(1, 3, dtype=torch.int64))
            self.register_buffer("table", torch.empty(500))

    before = torch.random.get_rng_state()
    with META:
        made = [Odd(), Odd(), Odd()]
    first, again, other = (
        materialise(module, CPU, seed=seed)
        for module, seed in zip(made, (0, 0, 1), strict=True)
    )  # fmt: skip

    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first.norm.weight, torch.ones(4))
    assert torch.equal(first.position_ids, torch.arange(3)[None])
    assert 0.1 < first.linear.weight.abs().max() <= 0.5
    assert float(first.alone.detach().std()) == pytest.approx(0.02, rel=0.2)
    assert float(first.table.std()) == pytest.approx(0.02, rel=0.2)
    assert torch.equal(first.linear.weight, again.linear.weight)
    assert not torch.equal(first.linear.weight, other.linear.weight)


def test_stages_are_measured_apart():
    """Seconds and peaks by stage; on the CPU no cap is set."""
    timer = PeakTimer(CPU)
    with capped(CPU, 1), timer("a"), timer("b"):
        pass

    assert timer.peaks.keys() == {"a", "b"}
    assert timer.peaks["b"] > 2**20
    assert timer.take().keys() == {"seconds/a", "seconds/b"}


def test_a_cap_is_set_on_one_device_and_lifted(monkeypatch):
    """A share of a device by its number, for torch takes no other; all of it afterwards."""
    card, told = SimpleNamespace(total_memory=80), []
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: card)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda *given: told.append(given)
    )
    with capped(checks.CUDA, 20), pytest.raises(KeyError), capped(torch.device("cuda:1"), 99):
        raise KeyError

    assert told == [(0.25, 2), (1.0, 1), (1.0, 1), (1.0, 2)]


# -- what GPU tests try ------------------------------------------------------------------


def test_the_same_training_is_told_from_another(tmp_path):
    """First rewards are equal and seconds need not be; weights are near."""

    def run(name, **changed):
        rewards = {f"per_view_reward/{arm}": 1.0 for arm in "abcdefg"}
        line = {"seconds/reward": 1.0, **rewards, "threshold": 0.5, **changed}
        rows = [{"iteration": index, **line} for index in range(2)]
        (tmp_path / name / "policy").mkdir(parents=True)
        (tmp_path / name / "metrics.jsonl").write_text("".join(f"{json.dumps(r)}\n" for r in rows))
        weight = {"weight": torch.ones(2) + changed.get("weight", 0.0)}
        save_file(weight, tmp_path / name / "policy" / "adapter_model.safetensors")
        return tmp_path / name

    one = run("one")
    checks.assert_same_training(one, run("later", **{"seconds/reward": 2.0, "weight": 1e-4}))
    for name, other in (("reward", {"threshold": 0.6}), ("weight", {"weight": 0.1})):
        with pytest.raises(AssertionError):
            checks.assert_same_training(one, run(name, **other))


def test_iterations_under_a_cap(monkeypatch):
    """Two, with frozen parts waiting on the CPU; each stage has seconds, a peak and a plan."""
    monkeypatch.setattr(checks, "plan", lambda config: config)
    config = small("model.offload_frozen=true", "model.views_per_decode=6")
    found = checks.iterate_within(config, CPU, cap=1, published=False)

    assert len(found.runs) == 2
    assert {"rollout", "reward", "update"} <= found.last.seconds.keys()
    assert found.planned is config
    assert found.last.metrics["replay_deviation"] == 0.0
    assert found.last.metrics["grad_norm"] > 0.0
    assert found.peak == max(max(run.peaks.values()) for run in found.runs)
    assert len(found.last.lines()) == len(found.last.seconds)


def test_replays_and_parity():
    """Equal bits replay to 0, a changed parameter does not; fp32 is near and not equal."""
    half = ("model.dtype=bf16", "model.storage_dtype=bf16")
    trial, pair = checks.sampled(small(*half), CPU)
    assert checks.replay_deviation(trial, pair) == 0.0
    scored = checks.rescored(trial, pair)
    stored = torch.stack([pair.zigzag.log_prob, pair.standard.log_prob])
    assert torch.equal(scored, stored)
    checks.widen(trial.system)
    # 256 numbers a latent average a twelfth of what 36864 do.
    assert 0.0 < (checks.rescored(trial, pair) - scored).abs().max() < 12 * checks.PARITY
    assert checks.replay_deviation(trial, pair) > 0.0


def test_random_scorers_are_the_recipes(monkeypatch):
    """PickScore and HyperScore, here of small sizes; they judge, and wait where asked to."""
    from transformers import CLIPConfig

    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
             "num_attention_heads": 1}  # fmt: skip
    sizes = CLIPConfig(
        text_config=tower | {"vocab_size": 600}, projection_dim=8,
        vision_config=tower | {"image_size": 32, "patch_size": 16},
    )  # fmt: skip
    size = HyperScoreSize(vocab_size=600, text_layers=1, vision_layers=1)
    monkeypatch.setattr("bench.networks.vit_h_14", lambda: sizes)
    monkeypatch.setattr("bench.networks.HyperScoreSize", lambda: size)
    config = checks.configured()
    images = torch.rand(1, 6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for offload in (False, True):
        wanted = replace(config, model=replace(config.model, offload_frozen=offload))
        found = random_scorers(wanted, CPU)
        assert list(found["per_view"].scorers) == ["pickscore"]
        assert list(found["joint"].scorers) == ["hyperscore.overall"]
        assert isinstance(found["joint"].scorers["hyperscore.overall"], Offloaded) == offload
        assert found["per_view"](images, ["a red cube"]).isfinite().all()
        assert found["joint"](images, ["a red cube"]).isfinite().all()
