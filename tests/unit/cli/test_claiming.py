"""`cli.claiming`: what is refused, listed and written."""

import json

import pytest

from mvczigal_ref.cli import main
from mvczigal_ref.reproduce import claim_runs as module
from tests.unit.reproduce.made_arms import made_arm


@pytest.fixture
def stubbed(monkeypatch):
    """Replace planning's counts, training and reading."""
    seen = {}
    monkeypatch.setattr(
        "mvczigal_ref.reproduce.plans.network_calls", lambda config: [10] * config.run.iterations
    )

    def train_missing(runs, *, tell, done):
        seen["trained"] = [(run.folder.name, run.config.run.iterations) for run in runs]

    monkeypatch.setattr(module, "train_missing", train_missing)
    monkeypatch.setattr(
        module, "finished_arms",
        lambda folder, **_: {"tiny": made_arm(), "tiny_per_view": made_arm(joint=-0.5)},
    )  # fmt: skip
    return seen


# -- laws --------------------------------------------------------------------------------


def test_one_claim_trains_its_arms_and_leaves_numbers_table_and_pictures(stubbed, tmp_path, capsys):
    """With fewer iterations where they are asked for."""
    words = ["reproduce", "claims", "--claim", "b", "--seeds", "0", "1", "--iterations", "7"]
    assert main([*words, "--out", str(tmp_path), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)

    assert stubbed["trained"] == [
        ("tiny-0", 7), ("tiny_per_view-0", 7), ("tiny-1", 7), ("tiny_per_view-1", 7),
    ]  # fmt: skip
    assert {"claim": "a", "verdict": "holds"} in rows
    assert "| (a) | " in (tmp_path / "claims.md").read_text("utf-8")
    assert json.loads((tmp_path / "claims.json").read_text("utf-8"))["arms"][0]["arm"] == "tiny"
    for name in ("front", "curves"):
        assert (tmp_path / f"claims_{name}.svg").read_text("utf-8").startswith("<svg")


def test_the_list_says_claims_arms_and_hours_and_the_words_of_every_run(stubbed, tmp_path, capsys):
    """It trains nothing, and writes nothing."""
    out = tmp_path / "claims"
    assert main(["reproduce", "claims", "--list", "--claim", "a", "--out", str(out)]) == 0
    text = capsys.readouterr().out

    assert "(a) The per-view reward alone" in text
    assert "per view alone: 5 runs, about " in text
    assert f"--out {out / 'tiny_per_view-14'}" in text
    assert "(b)" not in text
    assert "trained" not in stubbed
    assert not out.exists()


def test_runs_that_are_there_can_be_judged_alone(stubbed, tmp_path, capsys):
    """None is trained."""
    assert main(["reproduce", "claims", "--read-only", "--out", str(tmp_path)]) == 0
    assert "trained" not in stubbed
    assert "**holds**" in capsys.readouterr().out


# -- errors ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["claims", "--claim", "z"], "`--claim` must be some of a b c"),
        (["claims", "--iterations", "0"], "`--iterations` must be at least 1; got 0"),
        (["claims", "run.seed=2"], "`run.seed` is what `--seeds` sets"),
        (["claims", "--seeds", "1", "1"], "`--seeds` must differ"),
        (["--list"], "are for claims: `mvczigal reproduce claims"),
        (["--claim", "b"], "are for claims"),
    ],
)
def test_words_that_do_not_fit_are_refused(words, told, capsys):
    """Before any work."""
    assert main(["reproduce", *words]) == 2
    assert told in capsys.readouterr().err
