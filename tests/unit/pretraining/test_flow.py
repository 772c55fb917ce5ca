"""`pretrain_flow`: oracle, laws, errors; two prompts and a network of one head."""

import json
import shutil
from dataclasses import asdict, replace

import pytest
import torch

from mvczigal_ref.errors import CheckpointError
from mvczigal_ref.models.components import load_components
from mvczigal_ref.models.flow.loading import load_flow
from mvczigal_ref.models.published import weights_folder
from mvczigal_ref.pretraining import flow as module
from mvczigal_ref.pretraining.captioned_views import CaptionedViews
from mvczigal_ref.pretraining.flow import (
    FlowPretrainConfig,
    flow_matching_loss,
    pretrain_flow,
    untrained,
)
from mvczigal_ref.tiny_world.scene import sample_scenes

PROMPTS = ["a red ball with a white nose", "a blue can with a yellow fin"]
HELD_OUT = ["a green cube with a white nose"]
SHORT = FlowPretrainConfig(
    objects_per_prompt=2, num_heads=1, head_width=16, num_layers=1, num_single_layers=1,
    batch=8, paint_steps=100, paint_lr=1e-2, settle_steps=50, snapshot_every=50,
)  # fmt: skip


@pytest.fixture(scope="module")
def few_prompts():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "split_prompts", lambda: (PROMPTS, HELD_OUT))
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory, few_prompts):
    """A folder in which both stages were trained."""
    folder = tmp_path_factory.mktemp("flow")
    pretrain_flow(folder, SHORT)
    return folder


def loaded(folder, stage="settle"):
    return load_flow(folder / stage, text_length=SHORT.max_tokens)


def transformer(components):
    return components.policy.state_dict()


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one | other)


@pytest.fixture(scope="module")
def data():
    scenes = sample_scenes(PROMPTS, per_prompt=2, generator=torch.Generator().manual_seed(0))
    return CaptionedViews(untrained(SHORT), scenes, PROMPTS)


# -- oracle ------------------------------------------------------------------------------


def test_loss_is_that_of_straight_paths(data):
    """The network is asked at x_s for epsilon - x0, unguided, and told 1000 s."""
    config = replace(SHORT, prompt_dropout=0.5, described=0.6)
    clean, sigma, noise, caption = data.draw(
        8, torch.Generator().manual_seed(5), dropout=0.5, described=0.6
    )
    told = data.conditioning(caption)
    missed = torch.randn(clean.shape, generator=torch.Generator().manual_seed(6))

    def policy(noisy, timestep, conditioning, *, guidance_scale):
        for row in range(8):
            s = sigma[row].item()
            expected = (1 - s) * clean[row] + s * noise[row]
            torch.testing.assert_close(noisy[row], expected, rtol=0, atol=1e-6)
        torch.testing.assert_close(timestep, 1000 * sigma)
        assert torch.equal(conditioning.prompt_embeds, told.prompt_embeds)
        assert guidance_scale == 1.0
        return noise - clean + missed

    found = flow_matching_loss(policy, data, config, torch.Generator().manual_seed(5))
    torch.testing.assert_close(found, missed.square().mean(), rtol=1e-5, atol=0)


# -- laws --------------------------------------------------------------------------------


def test_a_few_steps_lower_the_loss(trained, data):
    """On the same batches, against the network before."""

    def loss(components):
        generator = torch.Generator().manual_seed(7)
        with torch.no_grad():
            losses = [
                flow_matching_loss(components.policy, data, SHORT, generator) for _ in range(8)
            ]
        return torch.stack(losses).mean()

    before, after = loss(untrained(SHORT)), loss(loaded(trained))
    # The average of the weights still holds most of where they began.
    assert after < 0.97 * before


def test_autoencoder_and_clip_are_those_of_the_multi_view_weights(trained):
    """Bit for bit, scaling included; T5 and its words are new."""
    taken, made = load_components(weights_folder("tiny")), loaded(trained)

    assert same(taken.vae.state_dict(), made.vae.state_dict())
    assert same(taken.text_encoder.state_dict(), made.text_encoders[0].state_dict())
    torch.testing.assert_close(made.latent_mean, taken.latent_mean, rtol=1e-6, atol=0)
    torch.testing.assert_close(made.latent_std, taken.latent_std, rtol=1e-6, atol=0)
    said = made.tokenizers[1].tokenize("a small red ball at left")
    assert [word[1:] for word in said] == ["a", "small", "red", "ball", "at", "left"]


def test_stages_settings_and_log_are_kept(trained):
    """Two folders, a snapshot, and the mean loss every fifty steps."""
    lines = [json.loads(line) for line in (trained / "pretrain_log.jsonl").read_text().splitlines()]

    assert [(x["stage"], x["step"]) for x in lines] == [
        ("paint", 50), ("paint", 100), ("settle", 50),
    ]  # fmt: skip
    assert lines[1]["loss"] < lines[0]["loss"]
    assert json.loads((trained / "pretrain_config.json").read_text()) == asdict(SHORT)
    paint, settle = transformer(loaded(trained, "paint")), transformer(loaded(trained))
    assert not same(paint, settle)
    # The last snapshot falls on the last step; both hold the average, not the last step's weights.
    assert same(settle, transformer(loaded(trained, "snapshot")))


def test_a_finished_stage_is_not_run_again(trained):
    """Nothing is drawn or logged; the last stage by itself gives the same bits."""
    log, before = trained / "pretrain_log.jsonl", transformer(loaded(trained))
    text = log.read_bytes()
    assert same(before, transformer(pretrain_flow(trained, SHORT)))
    assert log.read_bytes() == text

    shutil.rmtree(trained / "settle")
    assert same(before, transformer(pretrain_flow(trained, SHORT)))
    assert log.read_bytes().count(b"\n") == text.count(b"\n") + 1


def test_held_out_prompts_are_never_seen(few_prompts):
    """Only the other part of the split is rendered."""
    views = module._views(untrained(SHORT), SHORT)

    assert views.captions[::5] == [*PROMPTS, ""]
    assert len(views.latent) == 4


# -- errors ------------------------------------------------------------------------------


def test_absent_multi_view_weights_are_refused(tmp_path):
    """By the folder's name."""
    absent = FlowPretrainConfig(weights=str(tmp_path / "absent"))
    with pytest.raises(CheckpointError, match="absent"):
        pretrain_flow(tmp_path / "out", absent)
