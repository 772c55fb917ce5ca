"""`reads`: every setting is entered, and one that cannot act is refused in a line."""

import ast
import dataclasses
from pathlib import Path

import pytest

import mvczigal_ref
from mvczigal_ref.config import TrainConfig, fingerprint, load_config, to_dict
from mvczigal_ref.config.loading import _PATHS
from mvczigal_ref.config.reads import ALWAYS, SOMETIMES, unread, unread_settings
from mvczigal_ref.errors import ConfigError
from mvczigal_ref.files import to_json
from mvczigal_ref.recipes import RECIPES, recipe
from tests.unit.config.other_settings import SETTINGS

PACKAGE = Path(mvczigal_ref.__file__).parent
GROUPS = ("objective.kind=policy_gradient", "rollout.kind=group")
FLOW = (
    "model.network=flow", "sampler.kind=flow", "reward.joint=per_view", "advantage.mode=per_view",
)  # fmt: skip
FORWARD = (*FLOW, "objective.kind=forward_process", "rollout.kind=group")
PG_FLOW = (*FLOW, *GROUPS)

# Words that choose, words that cannot act beside them, words beside which they can.
IGNORED = [
    ((), "advantage.delta=1", GROUPS),
    ((), "advantage.clip=0.01", GROUPS),
    ((), "advantage.ddof=1", GROUPS),
    ((), "advantage.spread=batch", GROUPS),
    ((), "objective.preference_scale=3", ("objective.kind=preference",)),
    (("objective.kind=preference",), "objective.temperature=3", ()),
    (("objective.kind=preference",), "objective.clip=false", ()),
    (("objective.clip=false",), "objective.clip_range=0.5", ()),
    ((), "sampler.eta=0.5", ("sampler.kind=ddim",)),
    ((), "flow.noise_scale=0.5", PG_FLOW),
    ((), "flow.kernel=constant", PG_FLOW),
    ((), "flow.text_length=4", PG_FLOW),
    ((), "flow.ode=dpm2m", PG_FLOW),
    ((), "rollout.tail_share=0.5", PG_FLOW),
    (FORWARD, "rollout.tail_share=0.5", PG_FLOW),
    (PG_FLOW, "rollout.last_stride=long", (*PG_FLOW[:-1], "rollout.kind=branches")),
    ((), "rollout.members=8", GROUPS),
    ((), "rollout.window=fixed", PG_FLOW),
    (GROUPS, "rollout.window_size=3", (*PG_FLOW, "rollout.window=fixed")),
    ((*PG_FLOW, "rollout.window=fixed"), "rollout.window_end=restart",
     (*PG_FLOW, "rollout.window=sliding")),
    ((*PG_FLOW, "rollout.window=sliding"), "rollout.window_spacing=2",
     (*PG_FLOW, "rollout.window=fixed")),
    ((*PG_FLOW, "rollout.window=sliding"), "rollout.window_decay=0.5",
     (*PG_FLOW, "rollout.window=decaying")),
    ((), "rollout.split_width=3", (*GROUPS[:1], "rollout.kind=tree", "rollout.split_steps=[0]")),
    ((), "rollout.trunks=2", (*PG_FLOW[:-1], "rollout.kind=branches")),
    ((), "rollout.nodes_per_call=2", GROUPS),
    ((), "condition.weight=2", (*GROUPS, "condition.enhancer=world")),
    ((*GROUPS, "condition.enhancer=world"), "condition.num_captions=2",
     (*GROUPS, "condition.enhancer=world_edits")),
    ((), "forward.mix=0.5", FORWARD),
    ((), "forward.levels=3", FORWARD),
    (GROUPS, "objective.temperature=2", ()),
    (GROUPS, "objective.train_last_action=true", ()),
    (GROUPS, "objective.pairing=standard", ()),
    (GROUPS, "zigzag.steps=2", ()),
    (("objective.pairing=standard",), "zigzag.rounds=2", ()),
    (("zigzag.steps=0",), "zigzag.inversion_guidance_scale=2", ()),
    (FORWARD, "objective.reduction=sum", PG_FLOW),
    (FORWARD, "objective.clip_range=0.5", PG_FLOW),
    (FORWARD, "flow.noise_scale=0.5", PG_FLOW),
    (PG_FLOW, "objective.kl_form=without_step_length", (*PG_FLOW, "objective.kl_weight=1")),
    (("advantage.mode=joint",), "constraint.multiplier_init=1", ()),
    (("advantage.mode=joint",), "constraint.threshold_decay=0.5", ()),
    (("advantage.mode=weighted_sum",), "constraint.order=multiplier_first", ()),
    (("constraint.threshold_init=1",), "constraint.threshold_objects=4", ()),
    ((), "advantage.joint_weight=0.2", ("advantage.mode=weighted_sum",)),
    ((), "guard.margin=3", ("guard.every=1", "guard.diversity=true")),
    ((), "guard.action=return", ("guard.every=1", "guard.diversity=true")),
    (("run.sharding=full",), "run.compute_dtype=bf16",
     ("run.sharding=full", "model.finetune=full")),
    (("model.finetune=full",), "model.frozen_weights=int8", ()),
    ((), "reward.images_per_question=2",
     ("reward.per_view=chat_judge", "reward.url={chat_judge: http://localhost:1}",
      "reward.weights={chat_judge: judge}")),
    ((*GROUPS, "condition.enhancer=world"), "condition.samples_per_question=2",
     (*GROUPS, "condition.enhancer=local", "condition.model=folder")),
    ((), "reward.texts_per_call=2", (*GROUPS, "condition.enhancer=world")),
    ((), "run.offload_parameters=true", ("run.sharding=full",)),
    ((), "optim.average_every=2", ("optim.average_decay=0.9",)),
    ((), "optim.loss_scale_growth_interval=5", ("optim.loss_scale=8",)),
    ((), "reward.timeout=3", ("reward.url={world.joint: http://localhost:1}",)),
    ((), "reward.cache=scores", ("reward.url={world.joint: http://localhost:1}",)),
    ((), "reward.images_per_chunk=8", ("reward.url={world.joint: http://localhost:1}",)),
    ((), "reward.dtype=bf16", ("reward.per_view=pickscore",)),
    ((), "reward.combine=advantages", ("reward.per_view={world.per_view: 2}",)),
    (("model.finetune=full",), "model.lora_rank=4", ()),
    (PG_FLOW, "sampler.snr_shift=2", ()),
    (PG_FLOW, "sampler.camera_scale=0.5", ()),
    (PG_FLOW, "model.rig=paper", ()),
    ((), "sampler.negative_prompt=ugly", ("model.weights=sdxl",)),
]  # fmt: skip


# -- laws --------------------------------------------------------------------------------


def test_every_setting_is_entered_once():
    """A new one must be put where it belongs: among those that every run reads, or with when."""
    settings = [path for path, kind in _PATHS.items() if not dataclasses.is_dataclass(kind)]
    assert sorted([*ALWAYS, *SOMETIMES]) == sorted(settings)
    assert not {*ALWAYS} & {*unread_settings(TrainConfig())}


@pytest.mark.parametrize(("beside", "word", "read"), IGNORED, ids=[row[1] for row in IGNORED])
def test_a_setting_that_cannot_act_is_refused(beside, word, read):
    """In one line with its name, when it would act, and its value; where it acts it is taken."""
    path, _, _value = word.partition("=")
    with pytest.raises(ConfigError) as caught:
        load_config(overrides=[*beside, word])
    message = str(caught.value)
    assert message.startswith(f"`{path}` is read only w")
    assert "would change nothing here; got " in message
    assert message.endswith("Leave it out, or choose that.")
    assert "\n" not in message

    load_config(overrides=[*read, word])


def test_a_default_and_a_recipes_own_value_are_no_fault():
    """So that a method may be changed by one word; and all recipes hold."""
    assert load_config(overrides=["advantage.delta=1e-4"]) == TrainConfig()
    joint = load_config(recipe("tiny"), overrides=["advantage.mode=joint"])
    assert joint.constraint.multiplier_init == recipe("tiny").constraint.multiplier_init
    for name in RECIPES:
        assert load_config(recipe(name)) == recipe(name)
        assert not list(unread(recipe(name), recipe(name)))


def test_what_a_run_wrote_is_taken_as_it_is(tmp_path):
    """An older run's config.json may hold settings that do nothing; a person's file may not."""
    path = tmp_path / "config.json"
    values = to_dict(TrainConfig())
    values["advantage"]["delta"] = 1.0
    path.write_text(to_json(values))
    assert load_config(file=path).advantage.delta == 1.0

    path.write_text("advantage: {delta: 1}")
    with pytest.raises(ConfigError, match=r"`advantage\.delta` is read only with"):
        load_config(file=path)
    assert load_config(file=path, training=False).advantage.delta == 1.0


def test_a_setting_that_does_nothing_is_no_part_of_what_a_run_is():
    """A run that was begun with one goes on without it."""
    odd = load_config(overrides=["advantage.delta=1"], training=False)
    assert fingerprint(odd) == fingerprint(TrainConfig())
    groups = load_config(overrides=[*GROUPS, "advantage.delta=1"])
    assert fingerprint(groups) != fingerprint(load_config(overrides=GROUPS))


def test_every_setting_is_read():
    """A setting that nothing reads is a bug."""
    read = {
        node.attr
        for path in PACKAGE.rglob("*.py")
        if "config" not in path.parts
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
    }

    assert {name for _, name in SETTINGS} <= read
