"""The command line, from words to files, on a network of a few thousand weights."""

import json
import os
import re
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import mvczigal_ref
from mvczigal_ref.cli import main
from mvczigal_ref.cli.display import TrainingDisplay
from mvczigal_ref.errors import ScorerUnavailableError
from mvczigal_ref.models.tiny import tiny_components
from mvczigal_ref.pictures import contact_sheet, save_png
from mvczigal_ref.pretraining import flow as pretrain_flow
from mvczigal_ref.pretraining import multiview as pretrain
from mvczigal_ref.pretraining import ship as shipped
from mvczigal_ref.recipes import RECIPES
from mvczigal_ref.reward.builders import PER_VIEW
from mvczigal_ref.reward.service import RemotePerView
from mvczigal_ref.reward.tiny_world import WorldJointView, WorldPerView
from mvczigal_ref.training import prompts as prompt_lists
from mvczigal_ref.training.tracking import read_metrics
from tests.integration.runs import HELD_OUT, PROMPTS, contents
from tests.renders import render_prompts

ROOT = Path(__file__).parents[2]
COMMANDS = (
    "train", "sample", "evaluate", "report", "score", "serve-reward", "convert-reward",
    "enhance", "reproduce", "pretrain", "recipes", "export", "push",
)  # fmt: skip
SETTINGS = (
    "sampler.num_steps=2",
    "run.objects_per_iteration=4",
    "run.objects_per_slice=2",
    "run.evaluation_noises=1",
    "run.device=cpu",
    "run.checkpoint_every=1",
    "constraint.threshold_objects=2",
    "model.lora_rank=2",
    "optim.optimizer_steps_per_epoch=1",
)


@pytest.fixture(scope="module", autouse=True)
def _one_family():
    """Train and evaluate on prompts of one shape and part, for which the judges are quick."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prompt_lists, "split_prompts", lambda: (list(PROMPTS), list(HELD_OUT)))
        yield


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A folder of random weights."""
    folder = tmp_path_factory.mktemp("weights")
    components = tiny_components(seed=0, channels=(16, 16, 16), num_heads=(1, 1, 1))
    with torch.no_grad():  # the guidance embedding begins at 0, which tells nothing apart
        components.policy.unet.time_embedding.cond_proj.weight.fill_(0.1)
    components.save(folder)
    return folder


@pytest.fixture(scope="module")
def words(weights):
    """The settings of a run of two iterations."""
    return [f"model.weights={weights}", "run.iterations=2", *SETTINGS]


@pytest.fixture(scope="module")
def finished(words, tmp_path_factory):
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    assert main(["train", "tiny", *words, "--out", str(folder)]) == 0
    return folder


def refused(capsys, *argv):
    """Run a command that must be refused; give the one line that says why."""
    code = main([str(word) for word in argv])
    said = capsys.readouterr()

    assert code == 2
    assert len(said.err.splitlines()) == 1
    assert "Traceback" not in said.err
    return said.err


# -- a start from another run --------------------------------------------------------------


def test_a_new_run_begins_with_another_run_s_parameters(finished, words, tmp_path, capsys):
    """At any of its iterations, under another rate, which is said; and goes on without the word."""
    folder = tmp_path / "next"
    again = ["train", "tiny", *words, "optim.lr=1e-4", "--out", str(folder)]
    assert main([*again, "--from", f"{finished}@1"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    first = load_file(folder / "checkpoints" / "iteration_000000" / "policy.safetensors")
    begun = load_file(finished / "checkpoints" / "iteration_000001" / "policy.safetensors")

    assert f"beginning a new run with the parameters of '{finished}' after 1 iterations" in text
    assert "optim.lr" in text
    assert first.keys() == begun.keys()
    assert all(torch.equal(first[name], begun[name]) for name in begun)
    assert main(again) == 0

    path = tmp_path / "scores.json"
    assert main(["evaluate", "--run", str(folder), "--noises", "1", "--json", str(path)]) == 0
    scores, summary = (
        json.loads(path.read_text()),
        json.loads((folder / "summary.json").read_text()),
    )
    assert scores["gains"] == {"per view": summary["per_view"], "joint view": summary["joint"]}
    assert scores["against"] == f"its start, {finished}"


def test_a_start_that_is_not_there_is_refused(words, tmp_path, capsys):
    """Before anything is written."""
    error = refused(capsys, "train", "tiny", *words, "--out", tmp_path / "x", "--from", "absent@3")

    assert "`--from` must name a run folder, RUN@ITERATION, or an exported LoRA" in error
    assert not (tmp_path / "x").exists()


# -- help --------------------------------------------------------------------------------


def test_help_needs_neither_torch_nor_the_settings():
    """It comes at once: nothing heavy is imported."""
    script = (
        "import sys\n"
        "from mvczigal_ref.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as end: assert not end.code\n"
        "print({'torch', 'diffusers', 'matplotlib', 'pydantic'} & set(sys.modules))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )

    assert done.stdout.splitlines()[-1] == "set()"
    assert all(command in done.stdout for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command, capsys):
    """Each has a sentence, and each of its options one too."""
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    text = capsys.readouterr().out

    assert end.value.code in (0, None)
    assert f"usage: mvczigal {command}" in text
    assert not re.search(r"^│ --[\w-]+( [A-Z]+)?\s*\(", text, re.MULTILINE)


def test_no_words_are_a_call_for_help(capsys):
    """And the version is told on its own."""
    with pytest.raises(SystemExit):
        main([])
    assert "usage: mvczigal" in capsys.readouterr().out
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"{mvczigal_ref.__version__}\n"


def test_recipes_are_listed(capsys, monkeypatch):
    """Each with what it is."""
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["recipes"]) == 0
    text = capsys.readouterr().out

    assert all(f"│ {name} " in text for name in RECIPES)
    assert "MVC-ZigAL on the tiny world" in text


# -- train -------------------------------------------------------------------------------


def test_training_leaves_a_run_folder(finished, capsys):
    """Settings, metrics, checkpoints, scores and the page."""
    names = {path.name for path in finished.iterdir()}
    page = (finished / "report.html").read_text("utf-8")

    assert {"config.json", "metrics.jsonl", "checkpoints", "evaluations", "summary.json"} < names
    assert "policy" in names
    assert len(read_metrics(finished / "metrics.jsonl")) == 2
    assert HELD_OUT[0] in page
    assert "2 of 2 iterations" in page


def test_training_says_what_it_does(words, tmp_path, monkeypatch, capsys):
    """Lines on the way, the table of both scores, and where the page is; the folder's default."""
    monkeypatch.chdir(tmp_path)
    code = main(["train", "tiny", *words, "run.iterations=1", "run.seed=5"])
    said = capsys.readouterr()

    assert code == 0
    assert said.err == ""
    assert "training into runs/tiny-5" in said.out
    assert re.search(r"^ +1( +[-+\d.e]+){7}$", said.out, re.MULTILINE)
    assert re.search(r"per view +│ +[-\d.]+ │ +[-\d.]+ │ +[-+\d.]+ │ +[\d.]+ │", said.out)
    assert said.out.splitlines()[-1] == "report: runs/tiny-5/report.html"
    assert (tmp_path / "runs" / "tiny-5" / "report.html").is_file()


def test_the_same_command_goes_on(finished, words, tmp_path, capsys):
    """A shorter run continued to the same length is the run that was not stopped."""
    folder = tmp_path / "run"
    argv = ["train", "tiny", *words, "--out", str(folder)]
    assert main([*argv, "run.iterations=1"]) == 0
    assert main(argv) == 0
    said = capsys.readouterr().out
    summaries = [json.loads((f / "summary.json").read_text()) for f in (folder, finished)]

    assert f"resumes {folder} at iteration 1 of 2 with its own settings" in said
    assert len(read_metrics(folder / "metrics.jsonl")) == 2
    assert summaries[0] == summaries[1]
    assert "2 of 2 iterations" in (folder / "report.html").read_text("utf-8")


def test_a_stopped_run_says_how_to_go_on(finished, words, tmp_path, monkeypatch, capsys):
    """Ctrl-C ends after the iteration, with a checkpoint; the printed words finish the run."""
    folder = tmp_path / "a run"
    argv = ["train", "tiny", *words, "--out", str(folder)]
    with monkeypatch.context() as patch:
        patch.setattr(TrainingDisplay, "iteration", lambda *_: os.kill(os.getpid(), signal.SIGINT))
        code = main(argv)
    said = capsys.readouterr().out
    command = re.search(r"go on with: mvczigal (.*)", said)[1]

    assert code == 130
    assert f"stopped; saved in {folder}/checkpoints/iteration_000001" in said
    assert command.endswith(f"--out '{folder}'")
    assert main(argv) == 0
    assert (folder / "summary.json").read_bytes() == (finished / "summary.json").read_bytes()


def test_a_run_that_nobody_reads_saves_and_stops(words, tmp_path, monkeypatch, capsys):
    """As where a terminal hangs up; not at once and unsaved, as rich would end it."""
    reader, writer = os.pipe()
    os.close(reader)
    folder = tmp_path / "a run"
    more = ["run.checkpoint_every=9", "--out", str(folder)]
    with open(writer, "w", encoding="utf-8") as nobody, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", nobody)
        with pytest.raises(SystemExit) as end:
            main(["train", "tiny", *words, *more])
    told = capsys.readouterr().err

    assert end.value.code == 1
    assert told.startswith(
        f"mvczigal: nobody reads the output any more: stopped; saved in {folder}/checkpoints/"
        "iteration_000001. Go on with: mvczigal train tiny"
    )
    assert told.count("\n") == 1


def test_a_file_of_settings_gives_way_to_words(words, finished, tmp_path, capsys):
    """The run's own settings file, with nothing else, is the same run."""
    argv = ["train", "tiny", "--config", f"{finished}/config.json", "--out", str(finished)]
    before = (finished / "metrics.jsonl").read_bytes()

    assert main(argv) == 0
    assert (finished / "metrics.jsonl").read_bytes() == before
    assert "`optim.lr`" in refused(capsys, *argv, "optim.lr=0.5")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["train", "tinny"], r"unknown recipe: `tinny`; did you mean `tiny`\?"),
        (["train", "tiny", "optim.rl=1"], r"`optim.rl`.*`optim.lr`"),
        (["train", "tiny", "optim.lr=-1"], r"`optim.lr`.*-1"),
        (["train", "tiny", "optim.lr"], r"section.name=value.*optim.lr"),
        (["train", "tiny", "--config", "absent.yaml"], r"absent.yaml"),
        (["train", "tiny", "run.objects_per_slice=7"], r"objects_per_slice.*nearest"),
        (["sample"], r"`prompts`"),
        (["sample", "a red elephant"], r"a red elephant"),
        (["sample", "a red cube with a red nose"], r"OTHER-COLOUR"),
        (["sample", "x", "--run", "absent"], r"'absent' is no run folder"),
        (["sample", "a red cube with a white nose", "--weights", "absent"], r"absent.*vae"),
        (["sample", "x", "--run", "a", "--weights", "b"], r"`--run` brings its own"),
        (["sample", "x", "optim.lr=1"], r"`optim.lr` changes nothing here"),
        (["train", "tiny", "reward.per_view=pikscore"], r"'pikscore'.*'pickscore'"),
        (["train", "tiny", "reward.per_view=pickscore"], r"hf download yuvalkirstain/PickScore"),
        (["train", "tiny", "guard.every=2"], r"`guard.every` needs something to watch"),
        (["score", "--prompt", "x", "--reward", "clip_score"], r"needs pictures"),
        (["score", "a.png", "--prompt", "x", "--reward", "world.joint"], r"a\.png"),
        (["score", "a.png", "--prompt", "x", "--reward", "a", "optim.lr=1"], r"`optim.lr` changes"),
        (
            ["score", "a", "--prompt", "x", "--reward", "a", "b", "--weights", "w"],
            r"`--weights` is for one reward; got 2",
        ),
        (["score", "a", "--prompt", "x", "--reward", "a", "--row", "0"], r"`--row` must be at"),
        (["serve-reward", "world.jont"], r"'world.jont'.*'world.joint'"),
        (["serve-reward", "world.joint", "--host", "0.0.0.0"], r"`--host` '0\.0\.0\.0'.*password"),
        (["serve-reward", "world.joint", "--port", "99999"], r"`--port` 99999"),
        (["convert-reward", "absent.pt", "out.safetensors"], r"`source` .*'absent\.pt'"),
        (["convert-reward", "a.pt", "out.pt"], r"`target` .*'out\.pt'"),
        (["evaluate", "--run", "absent"], r"'absent' is no run folder"),
        (["evaluate", "tiny", "--noises", "0"], r"--noises.*must be at least 1.*0"),
        (["evaluate", "tiny", "--noises", "99999"], r"`--noises` must be at most 50000 with 2 pr"),
        (["evaluate", "tiny", "--seeds", "1", "1"], r"--seeds.*differ"),
        (["evaluate", "tiny", "--prompts", "absent.txt"], r"absent.txt"),
        (["evaluate", "tiny", "--device", "abacus"], r"device 'abacus'"),
        (["train", "tiny", "run.device=abacus"], r"device 'abacus'"),
        (["evaluate", "tinny"], r"`tinny`.*`tiny`"),
        (["export", "absent", "--out", "x"], r"'absent' is no run folder"),
        (["report", "absent"], r"'absent' is no run folder.*mvczigal train"),
        (["pretrain", "--out", "x", "base_step=3"], r"`base_step`.*`base_steps`"),
        (["pretrain", "--out", "x", "base_steps=many"], r"`base_steps`.*many"),
        (["pretrain", "--model", "flow", "--out", "x", "base_steps=3"], r"unknown.*`base_steps`"),
        (["pretrain", "--out", "x", "base_steps"], r"name=value.*base_steps"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_word_is_told_in_a_line(argv, said, tmp_path, monkeypatch, capsys):
    """Nothing is written, and no traceback shown."""
    monkeypatch.chdir(tmp_path)

    assert re.search(said, refused(capsys, *argv))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "argv",
    [
        ["report", "x", "a.b=1"],
        ["export", "x", "--out", "y", "a.b=1"],
        ["recipes", "a=1"],
        ["convert-reward", "x", "y", "a=1"],
        ["trian"],
    ],
)
def test_words_that_a_command_does_not_take_are_refused(argv, capsys):
    """Not dropped in silence."""
    with pytest.raises(SystemExit) as end:
        main(argv)

    assert end.value.code == 2
    assert argv[-1].partition("=")[0] in capsys.readouterr().err


def test_another_runs_folder_is_refused(finished, words, capsys):
    """The setting that differs is named, and the run is left as it was."""
    before = (finished / "config.json").read_bytes()
    said = refused(capsys, "train", "tiny", *words, "run.seed=9", "--out", finished)

    assert "`run.seed` is 0 there and 9 here" in said
    assert (finished / "config.json").read_bytes() == before


def test_an_outage_says_how_to_go_on_and_that_it_will_pass(words, tmp_path, monkeypatch, capsys):
    """Its exit status is its own; the same words finish the run once the service is back."""
    folder, out = tmp_path / "run", []

    def scorer(options):
        def score(images, prompts):
            if out and out[-1] > 1:
                raise ScorerUnavailableError("nobody answers at http://127.0.0.1:8763")
            return images.mean((2, 3, 4))

        return score

    def count(*_):
        out.append(len(out) + 1)
        if len(out) == 1:
            out.append(2)

    monkeypatch.setitem(PER_VIEW, "mine", scorer)
    argv = ["train", "tiny", *words, "reward.per_view=mine", "--out", str(folder)]
    with monkeypatch.context() as patch:
        patch.setattr(TrainingDisplay, "iteration", count)
        code = main([*argv, "run.checkpoint_every=9"])
    said = capsys.readouterr()

    assert code == 75
    assert "mvczigal: error: nobody answers at http://127.0.0.1:8763" in said.err
    assert f"stopped; saved in {folder}/checkpoints/iteration_000001" in said.out
    assert "once the service is back, go on with: mvczigal train tiny" in said.out
    out.clear()
    assert main(argv) == 0
    assert len(read_metrics(folder / "metrics.jsonl")) == 2


def test_a_guarded_run_says_what_the_guard_did(words, tmp_path, capsys):
    """A table of the held-out scores and a sentence."""
    guard = ["guard.every=1", "guard.diversity=true", "guard.margin=1000", "guard.noises=2"]
    argv = ["train", "tiny", *words, "run.iterations=1", *guard, "--out", str(tmp_path / "run")]
    assert main(argv) == 0
    said = capsys.readouterr().out

    assert re.search(r"per_view +│ trained │ +[-\d.]+ │ +[-\d.]+ │ +[-+\d.]+ │ +[\d.]+ │", said)
    assert re.search(r"diversity +│ watched │", said)
    assert "guard: let the run go on; its best check is that of iteration" in said


# -- export ------------------------------------------------------------------------------


def test_an_export_is_what_the_run_left(finished, tmp_path, capsys):
    """Every file of the run's own, from the checkpoint; then one layout alone, into a folder."""
    assert main(["export", str(finished), "--out", str(tmp_path / "all")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'all'}\n"
    assert contents(tmp_path / "all") == contents(finished / "policy")
    argv = ["export", str(finished), "--out", str(tmp_path / "one"), "--layout", "diffusers"]
    assert main(argv) == 0

    assert set(contents(tmp_path / "one")) == {
        "README.md",
        "SHA256SUMS",
        "pytorch_lora_weights.safetensors",
    }
    assert "`--out` must not exist yet" in refused(capsys, *argv)
    (tmp_path / "link").symlink_to("nowhere")
    linked = ["export", finished, "--out", tmp_path / "link"]
    assert "`--out` must not exist yet" in refused(capsys, *linked)
    other = ["export", finished, "--out", tmp_path / "two", "--layout", "released"]
    assert '`layout` "released" is for' in refused(capsys, *other)
    assert not (tmp_path / "two").exists()


# -- rewards -----------------------------------------------------------------------------


@pytest.fixture
def views(tmp_path):
    """Six views of an object as files, and side by side in one."""
    said = ["a red ball with a white nose"]
    images = render_prompts(said, generator=torch.Generator().manual_seed(0))
    for view in range(6):
        save_png(tmp_path / f"v{view}.png", contact_sheet(images[:, view : view + 1], gap=0))
    save_png(tmp_path / "row.png", contact_sheet(images, gap=0))
    return tmp_path


def test_pictures_are_scored_view_by_view_and_together(views, capsys):
    """Files as views, or a row an object; the table and the file say the same."""
    files = [str(views / f"v{i}.png") for i in range(6)]
    tail = ["--prompt", "a red ball with a white nose", "--reward", "world.per_view", "world.joint"]
    assert main(["score", *files, *tail, "--json", str(views / "a.json")]) == 0
    said = capsys.readouterr().out
    row = [str(views / "row.png"), str(views / "row.png"), "--row", "6"]
    assert main(["score", *row, *tail, "--json", str(views / "b.json")]) == 0
    one, two = (json.loads((views / name).read_text()) for name in ("a.json", "b.json"))

    prompt = ["a red ball with a white nose"]
    images = render_prompts(prompt, generator=torch.Generator().manual_seed(0))
    stored = (images.clamp(0, 1) * 255).round() / 255
    scores = one["scores"]["world.per_view"][0]
    assert scores == pytest.approx(WorldPerView()(stored, prompt)[0].tolist(), rel=1e-4)
    assert one["scores"]["world.joint"] == pytest.approx(WorldJointView()(stored, prompt).tolist())
    for name in ("world.per_view", "world.joint"):
        assert two["scores"][name] == one["scores"][name] * 2
    assert len(re.findall(r"v\d\.png", said)) == 6
    assert f"{scores[0]:.2f}" in said
    assert f"{one['scores']['world.joint'][0]:.2f}" in said


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["v0.png", "row.png"], "one size; got 32 x 32 of 'v0.png', 192 x 32 of 'row.png'"),
        (["row.png", "--row", "5"], "`--row` = 5 must divide the pictures' width; got 192"),
        (["v0.png"], "`world.joint` cannot score these pictures"),
        (["a.json"], "a.json"),
    ],
)
def test_pictures_that_do_not_fit_are_refused(views, monkeypatch, capsys, argv, said):
    """With what would fit."""
    monkeypatch.chdir(views)
    (views / "a.json").write_text("{}")
    tail = ["--prompt", "a red ball with a white nose", "--reward", "world.joint"]

    assert said in refused(capsys, "score", *argv, *tail)


def test_a_reward_is_served_until_it_is_stopped(tmp_path):
    """A process of its own, which says where it is; a client gets the scorer's bits."""
    argv = [sys.executable, "-m", "mvczigal_ref", "serve-reward", "world.per_view", "--port", "0"]
    # A test run in the background ignores Ctrl-C, and what it starts would too.
    listen = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(
        argv, cwd=ROOT, stdout=subprocess.PIPE, text=True, preexec_fn=listen
    ) as server:
        url = re.search(
            r"serving world.per_view \(per_view, .*\) at (\S+)", server.stdout.readline()
        )
        images = torch.rand(1, 6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        scores = RemotePerView(url[1])(images, ["a red ball with a white nose"])
        server.send_signal(signal.SIGINT)
        assert "stopped after 1 answer\n" in server.stdout.read()

    assert server.returncode == 0
    assert torch.equal(scores, WorldPerView()(images, ["a red ball with a white nose"]))


def test_a_published_file_is_converted(tmp_path, capsys):
    """Once; the name of what was written is said."""
    torch.save({"weight": torch.arange(3.0)}, tmp_path / "model.pt")
    argv = ["convert-reward", str(tmp_path / "model.pt"), str(tmp_path / "model.safetensors")]
    assert main(argv) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'model.safetensors'}\n"

    assert load_file(tmp_path / "model.safetensors")["weight"].tolist() == [0.0, 1.0, 2.0]
    assert "must not exist yet" in refused(capsys, *argv)


# -- sample ------------------------------------------------------------------------------


def picture(path):
    """Size and pixels of a picture."""
    with Image.open(path) as image:
        return image.size, image.tobytes()


def pixels(folder):
    """Every picture in a folder by name."""
    return {path.name: picture(path)[1] for path in sorted(folder.glob("*.png"))}


def test_a_sample_is_a_sheet_and_a_file_a_view(weights, tmp_path, capsys):
    """A row a prompt, six views of the image's own size, and what it took."""
    argv = ["sample", "a red ball with a white nose", "A blue CUBE with a red fin "]
    argv += ["--weights", str(weights), "--steps", "2", "--out", str(tmp_path / "out")]
    assert main(argv) == 0
    said = capsys.readouterr().out
    views = sorted((tmp_path / "out").glob("0*_view*.png"))

    assert [path.name for path in views] == [
        f"{name}_view{view}.png"
        for name in ("00_a-red-ball-with-a-white-nose", "01_a-blue-cube-with-a-red-fin")
        for view in range(6)
    ]
    assert {picture(path)[0] for path in views} == {(32, 32)}
    assert picture(tmp_path / "out" / "sheet.png")[0][0] > 6 * 96
    took = r"^2 x 6 views in \d+\.\d\d s; peak memory \d+\.\d\d GiB on cpu$"
    assert re.search(took, said, re.MULTILINE)


def test_a_sample_is_a_function_of_seed_and_sampling(weights, tmp_path):
    """The same words give the same bits; seed, steps, guidance and zigzag each change them.

    `--seed` and `run.seed` are one.
    """
    cases = {
        "same": [],
        "seed": ["--seed", "1"],
        "steps": ["--steps", "3"],
        "guidance": ["--guidance", "3"],
        "zigzag": ["--zigzag"],
        "word": ["sampler.snr_shift=2"],
        "setting": ["run.seed=1"],
    }
    start = ["sample", "a red ball with a white nose", "--weights", str(weights)]
    found = {}
    for name, more in {"first": [], **cases}.items():
        folder = tmp_path / name
        steps = [] if name == "steps" else ["--steps", "2"]
        assert main([*start, *steps, *more, "--out", str(folder)]) == 0
        found[name] = pixels(folder)

    assert found["same"] == found["first"]
    assert found["setting"] == found["seed"]
    for name in set(cases) - {"same"}:
        assert found[name] != found["first"], name


def test_a_run_samples_with_what_it_has_learned(finished, weights, tmp_path):
    """Its own steps and guidance, and its own parameters."""
    prompt = "a red ball with a white nose"
    assert main(["sample", prompt, "--run", str(finished), "--out", str(tmp_path / "run")]) == 0
    base = ["sample", prompt, "--weights", str(weights), "--steps", "2"]
    assert main([*base, "--out", str(tmp_path / "base")]) == 0
    one, other = (
        torch.frombuffer(bytearray(pixels(tmp_path / name)["sheet.png"]), dtype=torch.uint8)
        for name in ("run", "base")
    )
    difference = (one.int() - other.int()).abs().float()

    assert 0 < difference.mean() < 20


# -- evaluate ----------------------------------------------------------------------------


def test_a_run_is_compared_with_its_start(finished, tmp_path, capsys):
    """On the noises of training's own evaluation the gain is the run's own, to the last bit."""
    path = tmp_path / "scores.json"
    argv = ["evaluate", "--run", str(finished), "--noises", "1", "--json", str(path)]
    assert main(argv) == 0
    said, scores = capsys.readouterr().out, json.loads(path.read_text())
    summary = json.loads((finished / "summary.json").read_text())

    assert scores["gains"] == {"per view": summary["per_view"], "joint view": summary["joint"]}
    assert scores["against"] == "base weights"
    assert scores["prompts"] == HELD_OUT
    assert "base weights" in said


def test_scores_are_means_over_seeds_and_noises(weights, tmp_path, capsys):
    """A row a seed and one for all; the error is over prompts."""
    results = {}
    for seeds in (["0"], ["1"], ["0", "1"]):
        path = tmp_path / f"{len(results)}.json"
        argv = ["evaluate", "--weights", str(weights), "--noises", "2", "--seeds", *seeds]
        assert main([*argv, "--json", str(path)]) == 0
        results[tuple(seeds)] = json.loads(path.read_text())["scores"]["joint view"]
    said = capsys.readouterr().out
    one, two, both = results.values()
    mean = [(a + b) / 2 for a, b in zip(one["per_prompt"], two["per_prompt"], strict=True)]

    assert both["per_prompt"] == pytest.approx(mean)
    assert both["mean"] == pytest.approx(sum(mean) / 2)
    assert both["standard_error"] == pytest.approx(abs(mean[0] - mean[1]) / 2)
    assert one["per_prompt"] != two["per_prompt"]
    assert re.search(r"joint view +│ all ", said)


def test_zigzag_is_compared_with_plain_sampling(weights, tmp_path, capsys):
    """From the same noise; of a single prompt the error is unknown, and null."""
    prompts, path = tmp_path / "one.txt", tmp_path / "scores.json"
    prompts.write_text(f"{PROMPTS[0]}\n", "utf-8")
    argv = ["evaluate", "tiny", "--weights", str(weights), "--noises", "1", "--zigzag"]
    argv += ["--prompts", str(prompts), "--json", str(path)]
    assert main(argv) == 0
    scores = json.loads(path.read_text())
    gain = scores["gains"]["joint view"]

    assert scores["against"] == "plain sampling"
    assert gain["after"] - gain["before"] == pytest.approx(gain["gain"])
    assert gain["gain"] != 0.0
    assert gain["standard_error"] is None
    assert scores["scores"]["joint view"]["mean"] == gain["after"]


# -- report and pretrain -----------------------------------------------------------------


def test_a_report_is_written_again(finished, capsys):
    """The same page, and its path is told."""
    page = finished / "report.html"
    before = page.read_bytes()
    page.unlink()

    assert main(["report", str(finished)]) == 0
    assert capsys.readouterr().out == f"{page}\n"
    assert page.read_bytes() == before


@pytest.mark.slow
def test_pretraining_is_told_its_numbers(tmp_path, monkeypatch, capsys):
    """Words become settings, the last one wins, and the rest keep their defaults."""
    called = []
    monkeypatch.setattr(pretrain, "pretrain", lambda *given: called.append(given))
    monkeypatch.setattr(shipped, "ship", lambda work, folder: f"gate of {work}, {folder}")
    argv = ["pretrain", "base_steps=3", "--out", str(tmp_path), "base_lr=1e-4", "base_steps=4"]

    assert main([*argv, "guidance_range=[1, 3]"]) == 0
    assert called == [
        (tmp_path, pretrain.PretrainConfig(base_steps=4, base_lr=1e-4, guidance_range=(1.0, 3.0)))
    ]
    assert f"gate of {tmp_path}, {tmp_path}/shipped" in capsys.readouterr().out


@pytest.mark.slow
def test_pretraining_makes_the_flow_model_where_asked(tmp_path, monkeypatch, capsys):
    """Its own settings, training and gate."""
    called = []
    monkeypatch.setattr(pretrain_flow, "pretrain_flow", lambda *given: called.append(given))
    monkeypatch.setattr(shipped, "ship_flow", lambda work, folder: f"flow gate of {folder}")
    argv = ["pretrain", "--model", "flow", "paint_steps=3", "--out", str(tmp_path)]

    assert main(argv) == 0
    assert called == [(tmp_path, pretrain_flow.FlowPretrainConfig(paint_steps=3))]
    assert f"flow gate of {tmp_path}/shipped" in capsys.readouterr().out


# -- two processes -----------------------------------------------------------------------


SCRIPT = """
import sys, torch
torch.set_num_threads(1)
from mvczigal_ref.training import prompts
from mvczigal_ref.cli import launch, main
from tests.integration.runs import HELD_OUT, PROMPTS
launch.PROGRAM = (__file__,)
prompts.split_prompts = lambda: (list(PROMPTS), list(HELD_OUT))
sys.exit(main())
"""


def launch(folder, argv):
    """Run a command in two processes; give the exit code and what was said."""
    script = folder / "two.py"
    script.write_text(SCRIPT, "utf-8")
    done = subprocess.run(
        [sys.executable, str(script), *argv, "--processes", "2"],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


@pytest.mark.slow
def test_of_two_processes_one_speaks(finished, words, tmp_path):
    """Every line comes once, and the run is the one that a single process makes."""
    folder = tmp_path / "run"
    code, said, wrong = launch(tmp_path, ["train", "tiny", *words, "--out", str(folder)])
    assert code == 0, wrong
    mine, alone = (json.loads((f / "summary.json").read_text()) for f in (folder, finished))

    assert said.count("training into") == 1
    assert said.count("report: ") == 1
    assert (folder / "report.html").is_file()
    for name, gain in alone.items():
        assert mine[name] == pytest.approx(gain, abs=1e-3)
