"""`trackers`: accelerate's map, curves and sheets that are read back, refusals."""

import importlib.util
import io
import re
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import get_args

import numpy as np
import pytest
import torch
from accelerate import PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker

from mvczigal_ref.config import TrainConfig
from mvczigal_ref.config.types import TrackerName
from mvczigal_ref.errors import ConfigError
from mvczigal_ref.training import trackers as trackers_module
from mvczigal_ref.training.trackers import Trackers, check_trackers

IMAGES = torch.rand(2, 3, 3, 48, 48, generator=torch.Generator().manual_seed(0))


class Stub(GeneralTracker):
    """Stands for a tracker, and holds what it was handed."""

    name, requires_logging_directory, main_process_only = "stub", False, False
    made = ()

    def __init__(self, run_name=None, **arguments):
        super().__init__()
        self.run_name, self.arguments, self.calls = run_name, arguments, []
        type(self).made = (*self.made, self)

    @property
    def tracker(self):
        return self

    def start(self):
        self.calls.append("start")

    def store_init_configuration(self, values):
        self.calls.append(values)

    def log(self, values, step=None, **options):
        self.calls.append((step, values, options))

    def set_name(self, name):
        self.calls.append(f"named {name}")

    def finish(self):
        self.calls.append("finish")


class Painter(Stub):
    """Takes pictures, too."""

    made = ()

    def log_images(self, values, step=None, **options):
        self.calls.append((step, values, options))


@pytest.fixture
def stub(monkeypatch):
    """Put a class into accelerate's map, under some name."""

    def put(name, kind):
        one = type(kind.__name__, (kind,), {"name": name, "made": ()})
        monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, name, one)
        return one

    return put


# -- the map -----------------------------------------------------------------------------


def test_every_tracker_of_accelerate_can_be_asked_for():
    """The setting's names are the keys of its map: no more, no fewer."""
    assert set(get_args(TrackerName)) == set(LOGGER_TYPE_TO_CLASS)


@pytest.mark.parametrize("name", get_args(TrackerName))
def test_every_tracker_takes_the_arguments_it_is_made_with(tmp_path, name):
    """The class is accelerate's own; nothing is imported or sent before it is started."""
    tracker = trackers_module._tracker(name, tmp_path / "tiny", 0)

    assert type(tracker) is LOGGER_TYPE_TO_CLASS[name]
    if name != "comet_ml":
        assert "tiny" in str(vars(tracker))


def test_comet_is_told_the_name_after_it_has_started(tmp_path, stub):
    """It takes none when it starts."""
    kind = stub("comet_ml", Stub)
    Trackers(["comet_ml"], folder=tmp_path / "tiny", config=TrainConfig()).close()

    assert kind.made[0].calls[:2] == ["start", "named tiny"]


def test_a_run_is_started_described_logged_and_finished(tmp_path, stub):
    """In this order, however the run ends; absent numbers are left out."""
    kind = stub("trackio", Stub)

    def work(trackers):
        with trackers:
            trackers.log(3, {"reward": 1.5, "missing": None})
            trackers.log_sheet(3, "held_out", IMAGES)  # which this one cannot take
            raise KeyError

    with pytest.raises(KeyError):
        work(Trackers(["trackio"], folder=tmp_path, config=TrainConfig()))
    (made,) = kind.made
    start, described, *rest = made.calls

    assert start == "start"
    assert described["optim.lr"] == TrainConfig().optim.lr
    assert rest == [(3, {"reward": 1.5}, {}), "finish"]


@pytest.mark.parametrize(
    ("name", "form"),
    [("wandb", list), ("swanlab", list), ("clearml", None), ("aim", None), ("tensorboard", "NHWC")],
)
def test_a_sheet_is_handed_over_in_the_form_that_the_tracker_takes(tmp_path, stub, name, form):
    """A list of pictures, one picture, or an array; three views of 96 px beside each other."""
    kind = stub(name, Painter)
    with Trackers([name], folder=tmp_path, config=TrainConfig()) as trackers:
        trackers.log_sheet(7, "held_out", IMAGES)
        trackers.log_sheet(7, "empty", IMAGES[:0])
    (call,) = [each for each in kind.made[0].calls if isinstance(each, tuple)]
    step, values, options = call
    value = values["held_out"]
    if form is list:
        (value,) = value
    size = value.shape[1:3][::-1] if form == "NHWC" else value.size

    assert step == 7
    assert size == (2 + 3 * 98, 2 + 2 * 98)
    assert options == ({"dataformats": "NHWC"} if form == "NHWC" else {})


def test_tensorboard_shows_the_sheet(tmp_path):
    """Read back with TensorBoard's own reader, pixel by pixel."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    PartialState(cpu=True)
    with Trackers(["tensorboard"], folder=tmp_path, config=TrainConfig()) as trackers:
        trackers.log_sheet(4, "held_out/before", IMAGES)
    events = reader.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    (event,) = events.Images("held_out/before")
    pixels = np.asarray(trackers_module.Image.open(io.BytesIO(event.encoded_image_string)))

    assert event.step == 4
    sheet = trackers_module.contact_sheet(IMAGES, scale=2)
    assert np.array_equal(pixels, np.asarray(sheet))


class Failing(Stub):
    """Opens, then fails."""

    made = ()

    def store_init_configuration(self, values):
        raise OSError("no space left")


class FailingAtTheEnd(Stub):
    """Fails when it is closed."""

    made = ()

    def finish(self):
        super().finish()
        raise OSError("gone")


def test_one_that_fails_leaves_none_open(tmp_path, stub):
    """Whether it fails when it opens or when it is closed."""
    kinds = [stub("trackio", Stub), stub("swanlab", Failing), stub("mlflow", Stub)]
    with pytest.raises(OSError, match="no space left"):
        Trackers(["trackio", "swanlab", "mlflow"], folder=tmp_path, config=TrainConfig())
    ends = [[call for call in kind.made[0].calls if isinstance(call, str)] for kind in kinds]
    assert ends == [["start", "finish"], ["start", "finish"], []]

    kinds = [stub("trackio", Stub), stub("swanlab", FailingAtTheEnd), stub("mlflow", Stub)]
    with pytest.raises(OSError, match="gone"):
        Trackers(["trackio", "swanlab", "mlflow"], folder=tmp_path, config=TrainConfig()).close()
    assert [kind.made[0].calls[-1] for kind in kinds] == ["finish"] * 3

    opened = Trackers(["swanlab"], folder=tmp_path, config=TrainConfig())
    with pytest.raises(KeyError), opened:  # the first cause is what is told
        raise KeyError


def test_no_tracker_does_nothing(tmp_path):
    """The default writes no file."""
    trackers = Trackers((), folder=tmp_path, config=TrainConfig())
    trackers.log(0, {"a": 1.0})
    trackers.close()

    assert list(tmp_path.iterdir()) == []


def test_tensorboard_holds_the_metrics_and_a_resume_draws_none_twice(tmp_path):
    """Read back with TensorBoard's own reader."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    PartialState(cpu=True)
    for finished, last, value in [(0, 4, 1.0), (2, 5, 2.0)]:
        trackers = Trackers(
            ["tensorboard"], folder=tmp_path, config=TrainConfig(), finished=finished
        )
        for iteration in range(finished, last):
            trackers.log(iteration, {"reward": value * iteration, "missing": None})
        trackers.close()
    events = reader.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()

    assert events.Tags()["scalars"] == ["reward"]
    assert [(e.step, e.value) for e in events.Scalars("reward")] == [
        (0, 0.0),
        (1, 1.0),
        (2, 4.0),
        (3, 6.0),
        (4, 8.0),
    ]


def test_wandb_goes_on_with_the_run_of_the_same_folder(tmp_path):
    """Whose name alone may be another run's; nothing is sent before the tracker is started."""
    one, again, other = (
        trackers_module._tracker("wandb", tmp_path / folder / "tiny", 0).init_kwargs
        for folder in ("a", "a", "b")
    )

    assert one == again
    assert one["id"] != other["id"]
    assert (one["name"], one["resume"]) == ("tiny", "allow")


def test_the_configuration_is_stored_flat(tmp_path):
    """Dotted names; lists and None as JSON text, which every tracker takes."""
    flat = trackers_module._flat({"optim": {"betas": [0.9, 0.99], "lr": 0.1}, "threshold": None})

    assert flat == {"optim.betas": "[0.9, 0.99]", "optim.lr": 0.1, "threshold": "null"}


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("tensorboard", 'pip install -e ".[tracking]"'),
        ("wandb", 'pip install -e ".[tracking]"'),
        ("comet_ml", "pip install comet-ml"),
        ("mlflow", "pip install mlflow"),
    ],
)
def test_a_tracker_that_is_not_installed_is_refused_with_the_remedy(monkeypatch, name, command):
    """Before anything is loaded, not at the run's first line."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    message = re.escape(f"tracker '{name}' is not installed. Run `{command}`, or take it out")
    with pytest.raises(ConfigError, match=message):
        check_trackers([name])


class Wandb(ModuleType):
    """Stands for the tracker, without a key."""

    class Error(Exception):
        """Base of its exceptions."""

    def __init__(self):
        super().__init__("wandb")
        self.__spec__ = ModuleSpec("wandb", None)
        self.asked = 0

    def login(self):
        self.asked += 1
        raise self.Error("No API key configured.")


def test_wandb_without_a_key_is_refused_with_what_to_do(monkeypatch):
    """It would ask in a terminal; without one it cannot, and offline it needs none."""
    wandb = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    check_trackers(["tensorboard"])
    assert wandb.asked == 0
    with pytest.raises(ConfigError, match=r"No API key configured\. Set WANDB_API_KEY, or"):
        check_trackers(["tensorboard", "wandb"])
    monkeypatch.setenv("WANDB_MODE", "offline")
    check_trackers(["wandb"])
    assert wandb.asked == 1
