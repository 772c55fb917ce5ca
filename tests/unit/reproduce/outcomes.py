"""A comparison of made-up gains."""

import torch

from mvczigal_ref.reproduce import Comparison, MethodRow, MethodSet, Outcome


def outcome(name, gains):
    """One method's outcome of made-up gains."""
    return Outcome(
        method=MethodRow(name, name, (0.5,)), iterations=3, calls=1200, seconds=2.0,
        before={"per_view": 1.0}, gains={"per_view": torch.tensor(gains)},
    )  # fmt: skip


def made_up():
    """Two methods of two seeds and two prompts."""
    methods = MethodSet(
        title="Made up", paper="arXiv:0", published=("P",), scores=("per_view",),
        methods=(MethodRow("a", "a", (0.5,)), MethodRow("b", "b")), pair=("a", "b"),
    )  # fmt: skip
    return Comparison(
        methods=methods,
        outcomes=(outcome("a", [[1.0, 3.0], [1.0, 3.0]]), outcome("b", [[2.0, 4.5], [2.0, 4.5]])),
    )
