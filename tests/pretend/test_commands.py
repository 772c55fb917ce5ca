"""Commands, pipeline, scorers, gates and language models work on the device."""

import json

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from mvczigal_ref.cli import main
from mvczigal_ref.pictures import contact_sheet, save_png
from mvczigal_ref.pipeline import TextToMultiviewPipeline
from mvczigal_ref.preflight.check import check
from mvczigal_ref.pretraining.gate_flow import gate_flow
from mvczigal_ref.pretraining.gate_multiview import gate
from mvczigal_ref.reward.builders import ScorerOptions
from mvczigal_ref.reward.registry import joint_view_scorer, per_view_scorer
from mvczigal_ref.tiny_world.scene import WORLD_RIG
from mvczigal_ref.training import prompts as prompt_lists
from tests.integration.runs import HELD_OUT, PROMPTS, small_components, small_flow
from tests.pretend.runs import SMALL, configured, train_on
from tests.pretend_device import NAME
from tests.renders import render_prompts
from tests.unit.language.test_local import local, seeing
from tests.unit.reward.published_files import PER_VIEW, located, write_published


@pytest.fixture(scope="module", autouse=True)
def _one_family():
    """Train and evaluate on prompts of one shape and part, for which the judges are quick."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prompt_lists, "split_prompts", lambda: (list(PROMPTS), list(HELD_OUT)))
        yield


# -- commands ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """The settings of a small run on random weights, on the device."""
    folder = tmp_path_factory.mktemp("weights")
    small_components().save(folder)
    return [f"model.weights={folder}", "sampler.num_steps=2", *SMALL, f"run.device={NAME}"]


@pytest.fixture(scope="module")
def finished(device, words, tmp_path_factory):
    """The folder of a run that was started from the command line."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    assert main(["train", "tiny", *words, "--out", str(folder)]) == 0
    return folder


def test_a_run_is_started_on_the_device_from_the_command_line(finished):
    """The summary and what it trained are there, as files that the CPU reads."""
    assert json.loads((finished / "summary.json").read_text())["joint"]["after"] is not None
    assert (finished / "policy" / "adapter_model.safetensors").exists()


COMMANDS = {
    "sample": ("sample", PROMPTS[0], "--run", "{run}", "--out", "{out}", "--device", NAME),
    "evaluate": (
        "evaluate", "--run", "{run}", "--noises", "1", "--json", "{out}.json", "--device", NAME,
    ),
    "report": ("report", "{run}"),
    "export": ("export", "{run}", "--out", "{out}"),
}  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_a_run_s_results_are_used_on_the_device(command, finished, tmp_path):
    """Each command ends well, with the run's parameters."""
    assert main([word.format(run=finished, out=tmp_path / "out") for word in command]) == 0


def test_the_check_command_passes_on_the_device(device, words):
    """Every row, with the run's own settings."""
    assert main(["check", "tiny", *words]) == 0


@pytest.mark.parametrize("placed", ["model.storage_device=cpu", "model.offload_frozen=true"])
@pytest.mark.slow
def test_a_check_passes_wherever_things_wait(placed, device, tmp_path):
    """Nothing that the check tries needs latents or networks to be in one place."""
    result = check(
        configured("tiny", tmp_path, placed), device=device, components=small_components()
    )

    assert result.passed, str(result)


# -- scorers -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Folder of every published scorer, tiny and random."""
    return write_published(tmp_path_factory.mktemp("published"))


@pytest.mark.parametrize("name", [*PER_VIEW, "hyperscore.texture", "world.per_view", "world.joint"])
def test_a_scorer_s_numbers_on_the_device_are_the_cpu_s(name, places, device):
    """Images and networks are there; so are the scores."""
    build = joint_view_scorer if "hyperscore" in name or "joint" in name else per_view_scorer
    place = places.get(name.partition(".")[0])
    prompts = [PROMPTS[0], HELD_OUT[0]]
    images = render_prompts(prompts, generator=torch.Generator().manual_seed(0))
    options = {"weights": place, "tokenizer": place}
    with sdpa_kernel(SDPBackend.MATH):
        here = build(name, ScorerOptions(**options))(images, prompts)
        there = build(name, ScorerOptions(**options, device=device))(images.to(device), prompts)

    assert there.device.type == NAME
    torch.testing.assert_close(there.cpu(), here, rtol=1e-6, atol=1e-6)


def test_pictures_are_scored_on_the_device_from_the_command_line(device, tmp_path):
    """By both of the tiny world's judges."""
    images = render_prompts(PROMPTS[:1], generator=torch.Generator().manual_seed(0))
    save_png(tmp_path / "row.png", contact_sheet(images, gap=0))
    row = ["score", str(tmp_path / "row.png"), "--row", "6", "--prompt", PROMPTS[0]]
    judges = ["--reward", "world.per_view", "world.joint", "--json", str(tmp_path / "scores.json")]
    assert main([*row, *judges, "--device", NAME]) == 0
    scores = json.loads((tmp_path / "scores.json").read_text())["scores"]

    assert 10.0 < scores["world.joint"][0] <= 17.0


@pytest.mark.slow
def test_a_run_judges_and_watches_by_published_scorers_that_wait_on_the_cpu(
    places, device, tmp_path
):
    """Their networks come to the device for each slice; the guard's features do, too."""
    where = located(places, "pickscore", "clip_score", "hyperscore")
    result = train_on(
        device, "tiny", tmp_path, "model.offload_frozen=true", "reward.per_view=clip_score",
        "reward.joint=hyperscore.overall", "guard.every=1", "guard.per_view=[pickscore]",
        f"reward.weights={json.dumps(where['weights'])}",
        f"reward.tokenizers={json.dumps(where['tokenizers'])}",
    )  # fmt: skip

    assert set(result.guard.latest.watched) == {"pickscore"}


# -- pipeline, gates, language models ----------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"zigzag_steps": 1}], ids=["plain", "zigzag"])
def test_the_pipeline_paints_there_what_it_paints_on_the_cpu(settings, device):
    """With noise of a generator of the CPU, to the bit."""
    images = []
    with sdpa_kernel(SDPBackend.MATH):
        for place in (device, "cpu"):
            pipeline = TextToMultiviewPipeline.from_components(
                small_components(), image_size=32, rig=WORLD_RIG
            ).to(place)
            pipeline.set_progress_bar_config(disable=True)
            output = pipeline(
                PROMPTS[0], generator=torch.Generator().manual_seed(0), output_type="pt",
                num_inference_steps=2, **settings,
            )  # fmt: skip
            images.append(output.images.cpu())

    assert torch.equal(*images)


def test_the_pipeline_gives_pictures_from_the_device(device):
    """PIL's are made on the CPU."""
    pipeline = TextToMultiviewPipeline.from_components(
        small_components(), image_size=32, rig=WORLD_RIG
    ).to(device)
    pipeline.set_progress_bar_config(disable=True)
    (views,) = pipeline(PROMPTS[0], num_inference_steps=1).images

    assert [view.size for view in views] == [(32, 32)] * 6


@pytest.mark.slow
def test_the_gates_judge_weights_on_the_device(device):
    """Both networks' weights, and the rows are those of the CPU."""
    settings = {"seed": 0, "noises": 1, "steps": (2, 1), "guidance_scale": 1.0}
    for judge, components in ((gate, small_components), (gate_flow, small_flow)):
        with sdpa_kernel(SDPBackend.MATH):
            here, there = (
                judge(components().to(place), prompts=HELD_OUT[:1], **settings)
                for place in ("cpu", device)
            )
        assert [row.per_view for row in there.rows] == [row.per_view for row in here.rows]


@pytest.mark.slow
def test_language_models_answer_on_the_device_as_on_the_cpu(device):
    """The seed's draws are the CPU's."""
    image = torch.rand(3, 16, 8, generator=torch.Generator().manual_seed(0))
    answers = []
    with sdpa_kernel(SDPBackend.MATH):
        for place in ("cpu", device):
            blind, sighted = local(), seeing()
            for model in (blind, sighted):
                model._model.to(place)
            seen = sighted.ask("a cat", [image.to(place)], seed=1)
            answers.append([blind.ask("a cat", seed=1), seen])

    assert answers[0] == answers[1]
