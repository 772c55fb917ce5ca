"""`lora_form`: laws of the choice, by hand."""

import pytest
import torch

from mvczigal_ref.models.lora_form import lora_form_count, merges, note_form

META = torch.device("meta")


def test_half_precision_is_never_merged():
    """bfloat16 holds 8 bits: an update of a thousandth of the weight would be none."""
    factor = torch.zeros(2, 8)
    assert merges(100, torch.zeros(8, 8), factor)
    for device in ("cpu", "cuda"):
        assert not merges(100, torch.zeros(8, 8, dtype=torch.bfloat16), factor, device=device)


def test_merging_is_chosen_by_its_operations_on_a_cpu():
    """It costs r m n per call and spares r (m + n) per token."""
    weight, factor = torch.empty(30, 20, device=META), torch.empty(2, 20, device=META)
    assert [merges(rows, weight, factor) for rows in (11, 12)] == [False, True]


def test_launches_count_on_an_accelerator():
    """Six of them are worth 1.6 GFLOP: what 2 r m n may cost for a single token."""
    spared = 6 * 2**28
    rank, out = 64, 4096
    for into, merged in ((3073, True), (3074, False)):
        shared = 2 * rank * (out + into)
        assert (spared + shared >= 2 * rank * out * into) is merged
        weight = torch.empty(out, into, device=META)
        factor = torch.empty(rank, into, device=META)
        assert merges(1, weight, factor, device="cuda") is merged
        assert not merges(1, weight, factor, device="cpu")


@pytest.mark.parametrize(("device", "form"), [("cpu", "thin"), ("cuda", "merged")])
def test_calls_without_memory_choose_for_the_planned_device(device, form):
    """Those with memory choose for their own; nothing is counted elsewhere."""
    weight, factor = torch.empty(8, 8, device=META), torch.empty(2, 8, device=META)
    note_form(1, weight, factor, layers=1)
    with lora_form_count(device) as forms:
        assert note_form(1, weight, factor, layers=3) is (form == "merged")
        assert not note_form(1, torch.empty(8, 8), torch.empty(2, 8), layers=1)
    assert forms[form] >= 3
    assert forms.total() == 4
