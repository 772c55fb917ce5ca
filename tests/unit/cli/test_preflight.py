"""`cli.planning`: what is printed of a plan and of a check."""

import io
import json
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from mvczigal_ref.cli import planning, preflight
from mvczigal_ref.cli.output import Printed
from mvczigal_ref.cli.planning import plan_tables, run_plan
from mvczigal_ref.cli.preflight import check_tables, run_check
from mvczigal_ref.config import load_config
from mvczigal_ref.errors import ConfigError
from mvczigal_ref.preflight import plan
from mvczigal_ref.preflight.attempts import CheckResult, Finding
from mvczigal_ref.preflight.plan_record import Calls, Flops, Memory, Parameters, Plan
from mvczigal_ref.recipes import recipe

GIB = 2**30
PARTS = (
    "network", "trained", "text_encoders", "vae", "scorers", "features", "optimizer", "rollouts",
    "gradients", "sampling", "decoding", "scoring", "replay", "saved", "saved_checkpointed",
    "saved_plain",
)  # fmt: skip
# Each part is another power of two, so that no sum hides a part that is missing or counted twice.
MEMORY = Memory(**{name: GIB * 2**index for index, name in enumerate(PARTS)})
PLAN = Plan(
    source="published SDXL, few-step",
    processes=4,
    objects=64,
    objects_per_process=16,
    views=6,
    latent=(4, 96, 96),
    images=192,
    scorer_calls={"pickscore": 8},
    optimizer_steps=2,
    calls=Calls(rollout=68, value=16, replay=64, recompute=63, backward=62),
    flops=Flops(
        rollout=10**12, value=2 * 10**12, replay=3 * 10**12, recompute=4 * 10**12,
        backward=5 * 10**12, decode=6 * 10**12,
    ),
    parameters=Parameters(
        network=2_977_228_804, camera_encoder=1, trained=2, text_encoders=3, vae=4, scorers=5
    ),
    memory=MEMORY,
)  # fmt: skip
BAD = Finding(name="first ratio is 1, [fp16] storage", passed=False, reason="dropout is on")
GOOD = replace(BAD, passed=True, reason="exactly 1")


def text_of(*tables):
    """Print as a wide terminal would show it."""
    console = Console(width=200, record=True, file=io.StringIO())
    for table in tables:
        console.print(table)
    return console.export_text()


def test_sums_of_a_plan_are_those_of_its_parts():
    """Resident parts count in every stage, the others in their own alone."""
    resident, rollouts, gradients = 2**7 - 1, 2**7, 2**8
    stages = {name: peak // GIB for name, peak in MEMORY.stages.items()}

    assert stages == {
        "rollout": resident + rollouts + 2**9,
        "reward": resident + rollouts + 2**11,
        "update": resident + rollouts + gradients + 2**12,
    }
    assert MEMORY.peak == max(MEMORY.stages.values())
    assert (PLAN.calls.forward, PLAN.calls.total) == (148, 273)
    assert PLAN.flops.total == 21 * 10**12


def test_a_plan_is_printed_with_every_number():
    """Calls and TFLOP in a row each, memory in GiB."""
    text = text_of(*plan_tables(PLAN))

    for row in (
        ("objects", "64 over 4 processes"), ("network [parameters]", "2,977,228,804"),
        ("calls of pickscore", "8"), ("latent", "4 x 96 x 96"), ("sampling", "68", "1.00"),
        ("replay without gradient", "16", "2.00"), ("recomputation", "63", "4.00"),
        ("all", "273", "21.00"), ("optimiser", "64.00"), ("peak in update", "4607.00"),
    ):  # fmt: skip
        assert any(
            line.replace("│", " ").split() == " ".join(row).split() for line in text.splitlines()
        ), row


def test_a_plan_is_written_as_json(monkeypatch, tmp_path):
    """With its peaks, for the processes that were asked for."""
    asked = []

    def planned(config, *, world_size, memory, progress):
        asked.append((world_size, memory))
        return PLAN

    monkeypatch.setattr(plan, "plan", planned)
    monkeypatch.setattr(planning, "stored_plan", lambda config, *, processes: None)
    command = Printed(json=tmp_path / "plan.json")
    run_plan(load_config(), processes=3, command=command, memory=1.5)
    read = json.loads((tmp_path / "plan.json").read_text("utf-8"))

    assert asked == [(3, 3 * 2**29)]
    assert read["calls"]["rollout"] == 68
    assert read["peaks"] == {"peak": MEMORY.peak, "stages": dict(MEMORY.stages)}


def test_what_is_chosen_is_named(capsys):
    """The forms of a LoRA, and the blocks that compute again; nothing where nothing is chosen."""
    forms = {"rollout": {"merged": 2, "thin": 3}, "update": {"merged": 5, "thin": 0}}
    chosen = replace(PLAN, lora_forms=forms, device="cuda", recomputed_blocks=7, blocks=9)
    planning.print_plan(chosen, Console(width=200))
    text = capsys.readouterr().out

    layers = "rollout merged in 2 and thin in 3, update merged in 5"
    assert f"LoRA on cuda, layers of the largest call: {layers}\n" in text
    assert "computed again in the backward pass: 7 of 9 blocks" in text
    planning.print_plan(PLAN, Console(width=200))
    assert "largest call" not in capsys.readouterr().out


def test_a_verdict_is_printed_plainly():
    """Brackets of a finding are no markup."""
    text = text_of(check_tables(CheckResult(findings=(GOOD, BAD), seconds=61.4)))

    assert "first ratio is 1, [fp16] storage" in text
    assert "NO" in text
    assert "training would go wrong here; 61 s" in text


@pytest.mark.parametrize("finding", [GOOD, BAD])
def test_a_bad_verdict_is_the_exit_status(monkeypatch, finding):
    """So that a script notices."""
    seen = []

    def tried(config, *, device, progress):
        progress(1, 2)
        seen.append(device)
        return CheckResult(findings=(finding,), seconds=1.0)

    monkeypatch.setattr(preflight, "check", tried)
    config = load_config(recipe("tiny"), overrides=["run.device=cpu"])
    if finding.passed:
        run_check(config, Printed())
    else:
        with pytest.raises(SystemExit) as stopped:
            run_check(config, Printed())
        assert stopped.value.code == 1

    assert seen == [torch.device("cpu")]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("tiny", "run.objects_per_iteration=32", "optim.optimizer_steps_per_epoch=3"), "nearest"),
        (("tiny", "run.prompts=absent.txt"), "absent.txt"),
        (("tiny_mv_grpo_llm", "condition.instructions=[shape]"), "condition.enhancer"),
    ],
)
def test_what_training_refuses_is_refused_before_anything_is_tried(monkeypatch, words, message):
    """Slices that cannot be shared out, and prompts and captions that are not there."""
    monkeypatch.setattr(preflight, "check", lambda *_, **__: pytest.fail("tried"))
    name, *settings = words
    config = load_config(recipe(name), overrides=["run.device=cpu", *settings])
    with pytest.raises(ConfigError, match=message):
        run_check(config, Printed())
