"""`bench.budget`: oracle, laws, errors; on the narrowest network."""

import json
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("bench", reason="measurements are not in the wheel")

from bench import __main__ as command
from bench import budget, iterations
from bench.matrix import MatrixRate, matrix_rate
from mvczigal_ref.errors import ReplayMismatchError
from mvczigal_ref.preflight.plan import plan
from mvczigal_ref.preflight.plan_record import Flops
from tests.unit.preflight.small import folder

CPU = torch.device("cpu")
RATE = MatrixRate(flops=1e12, spread=0.0, size=1, repeats=1)
PLAN = SimpleNamespace(
    flops=Flops(rollout=1000, value=1, replay=2, recompute=4, backward=8, decode=16),
    memory=SimpleNamespace(peak=5),
)


def point(**more):
    """Give one row's settings."""
    plain = {"views": 6, "steps": 2, "objects": 1, "dtype": "fp32", "options": "plain"}
    return budget.Point(**{**plain, **more})


def words():
    """Name the narrowest network."""
    return [*budget.TINY, f"model.weights={folder()}"]


# -- oracle ------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_writes_a_table_and_json(tmp_path, monkeypatch, capsys):
    """Of every row; seconds and shares are positive, operations those that a plan counts."""
    out, plans = tmp_path / "budget.json", []

    def spy(config):
        plans.append(plan(config))
        return plans[-1]

    monkeypatch.setattr(budget, "plan", spy)
    command.main(
        [
            *("budget", "--tiny", "--objects", "2", "--repeats", "1", "--json", str(out)),
            *("--options", "checkpointing", "--views", "2"),
            *("--settings", f"model.weights={folder()}"),
        ]
    )
    said, found = capsys.readouterr().out, json.loads(out.read_text("utf-8"))
    (row,) = found["rows"]
    (counted,) = plans

    assert row["point"] == {
        "views": 2, "steps": 2, "objects": 2, "dtype": "fp32", "options": "checkpointing",
    }  # fmt: skip
    assert row["planned"] == counted.memory.peak
    assert counted.views == 2
    flops = counted.flops
    assert row["sampling"]["flops"] == flops.rollout // 2
    trained = flops.value + flops.replay + flops.recompute + flops.backward
    assert row["training"]["flops"] == trained // 2
    rate = found["matrix_rates"]["fp32"]["flops"]
    for stage in (row["sampling"], row["training"]):
        assert stage["share"] == pytest.approx(stage["flops"] / stage["seconds"] / rate, rel=1e-6)
        assert stage["seconds"] > 0.0
        assert stage["peak"] > 2**20
    assert row["failed"] == ""
    assert "| 2 | 2 | 2 | fp32 | checkpointing | " in said
    assert "fp32 matrix rate: " in said


def test_the_matrix_rate_is_operations_over_time(monkeypatch):
    """A product of n x n matrices takes 2 n^3; the median of what each repeat took."""
    clock = iter([0.0, 10.0, 12.0, 20.0, 21.0, 30.0, 34.0])
    monkeypatch.setattr("bench.matrix.perf_counter", lambda: next(clock))
    found = matrix_rate(CPU, torch.float32, size=8, repeats=3, calls=5)

    work = 2 * 8**3 * 5
    assert found.flops == work / 2.0
    assert found.spread == pytest.approx((work / 1.0 - work / 4.0) / (work / 2.0))


def test_seconds_are_an_objects_and_the_fastest(monkeypatch):
    """The first iteration is told apart; shares are of all objects."""
    seconds = iter([9.0, 3.0, 2.0, 4.0])

    def iterate(self):
        s = next(seconds)
        return iterations.Measured(
            seconds={"rollout": s, "update": 2 * s}, peaks={"rollout": int(s), "update": 7},
            metrics={},
        )  # fmt: skip

    monkeypatch.setattr(budget, "plan", lambda _: PLAN)
    monkeypatch.setattr(budget, "random_system", lambda *_: None)
    monkeypatch.setattr(budget.Trainee, "__post_init__", lambda self: None)
    monkeypatch.setattr(budget.Trainee, "iterate", iterate)
    shape = point(objects=2)
    config = shape.config("lcm_sdxl_simple", words())
    found = budget.measure(shape, config, CPU, RATE, repeats=3)

    assert (found.sampling.seconds, found.training.seconds) == (1.0, 2.0)
    assert (found.sampling.spread, found.sampling.peak, found.training.peak) == (1.0, 4, 7)
    assert found.first == 27.0
    assert found.sampling.share == 1000 / 2.0 / 1e12
    assert found.training.flops == (1 + 2 + 4 + 8) // 2


# -- laws --------------------------------------------------------------------------------


def test_options_are_settings():
    """Joined ones all hold, plain is none of them, and a later word wins."""
    base = "lcm_sdxl_simple"
    both = point(options="checkpointing+channels_last", views=4).config(base, words())
    plain = point().config(base, [*words(), "sampler.guidance_scale=3.0"])

    assert (both.model.gradient_checkpointing, both.model.channels_last) == (True, True)
    assert (plain.model.gradient_checkpointing, plain.model.channels_last) == (False, False)
    assert point(options="compile").config(base, words()).model.compile == "inductor"
    assert len(both.model.azimuths) == 4
    assert plain.sampler.guidance_scale == 3.0
    assert (plain.run.objects_per_slice, plain.run.objects_per_iteration) == (1, 1)


def test_a_grid_is_every_combination():
    """Objects vary fastest in the command's table."""
    found = budget.grid({"steps": [1, 2], "objects": [3, 4], "views": [6], "dtype": ["fp32"],
                         "options": ["plain"]})  # fmt: skip
    assert [(p.steps, p.objects) for p in found] == [(1, 3), (1, 4), (2, 3), (2, 4)]


# -- errors ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("out of memory. Tried"), ReplayMismatchError("unlike. So")]
)
def test_what_does_not_fit_is_a_row_too(monkeypatch, error):
    """The others are still measured."""

    def fail(*_):
        raise error

    monkeypatch.setattr(budget, "plan", fail)
    shape = point()
    found = budget.measure(shape, shape.config("lcm_sdxl_simple", words()), CPU, RATE, repeats=1)

    assert found.failed == str(error).partition(".")[0]
    assert f"| plain | {found.failed} |" in budget.table([found])


def test_each_row_is_written_once_it_is_measured(tmp_path, monkeypatch):
    """A run that is cut in the third row leaves two; `--strict` tells that one failed."""
    out, seen = tmp_path / "budget.json", []

    def measured(point, *_, **__):
        seen.append(len(json.loads(out.read_text("utf-8"))["rows"]))
        if len(seen) == 3:
            raise KeyboardInterrupt
        return budget.Row(point=point, failed="out of memory")

    monkeypatch.setattr(budget, "matrix_rate", lambda *_, **__: RATE)
    monkeypatch.setattr(budget, "measure", measured)
    argv = ["--tiny", "--device", "cpu", "--options", "plain", "--json", str(out), "--objects"]
    with pytest.raises(KeyboardInterrupt):
        budget.main([*argv, "1", "2", "3"])
    assert seen == [0, 1, 2]
    assert [row["failed"] for row in json.loads(out.read_text())["rows"]] == ["out of memory"] * 2

    seen.clear()
    budget.main([*argv, "1"])
    with pytest.raises(SystemExit) as ended:
        budget.main([*argv, "1", "--strict"])
    assert ended.value.code == 1


@pytest.mark.parametrize(
    ("argv", "said"),
    [(["--options", "plain+fast", "--tiny"], "fast"), (["--device", "cpu"], "needs a CUDA device")],
)
def test_impossible_wishes_are_refused(argv, said, capsys):
    """In a line, before anything is built."""
    with pytest.raises(SystemExit):
        budget.main(argv)
    assert said in capsys.readouterr().err
