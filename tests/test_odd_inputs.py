"""Odd inputs, row by row: upstream's numbers where it gives numbers, its errors where it raises."""

from __future__ import annotations

import pytest
import torch
from odd_inputs import GROUPS, OddInput, own_groups
from odd_outcomes import ORDINARY, Asked, model, outcome, outcome_of
from toto_cases import PATCH, small_model

pytestmark = pytest.mark.usefixtures("checked_distributions")

ROWS = [row for rows in GROUPS.values() for row in rows]


@pytest.mark.parametrize("what", ORDINARY)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.what)
def test_an_odd_input(row: OddInput, what: str) -> None:
    if row.draws and not ORDINARY[what].samples:
        pytest.skip("it asks for samples")
    found = outcome(row, ORDINARY[what])
    assert not found.complaint, found
    assert found.made_by in ("", row.made_by), found


@pytest.mark.parametrize("samples", [False, True], ids=["mean", "samples"])
@pytest.mark.parametrize("variates", [1, 2, 7, 16, 33, 64])
def test_any_number_of_variates_in_groups(variates: int, samples: bool) -> None:
    call = Asked(torch.float64, samples, variates, batch=None).call()
    groups = own_groups(call.inputs.id_mask) % 5
    for length in (1, PATCH, call.inputs.series.shape[-1]):
        shorter = {
            name: getattr(call.inputs, name)[..., -length:]
            for name in ("series", "padding_mask", "timestamp_seconds")
        }
        found = outcome_of(
            call.having(**shorter, id_mask=groups[..., -length:]), model(torch.float64)
        )
        assert (found.upstream, found.complaint, found.made_by) == ("numbers", "", "fast")


@pytest.mark.parametrize("samples", [False, True], ids=["mean", "samples"])
def test_what_no_layer_carries_on_to_the_last_patch_is_seen(samples: bool) -> None:
    """Without attention over time an early infinity spoils its own patch alone."""
    over_variates = small_model(
        spacewise_every_n_layers=1, scaler_cls="<class 'model.scaler.StdMeanScaler'>"
    ).model.double()
    row = next(row for row in ROWS if row.what == "one inf")
    call = row.change(Asked(torch.float64, samples, variates=2, batch=None).call())
    found = outcome_of(call, over_variates)
    assert found.upstream.startswith("ValueError")
    assert not found.complaint
