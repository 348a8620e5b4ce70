"""The folded head: one matrix for two layers, and its rows for a part of a patch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from toto_cases import PATCH, small_model

from toto_compile_patch.carriers import TOTO
from toto_compile_patch.decode.head import fold
from toto_compile_patch.decode.sampling import DF, LOC, LOGIT, SCALE
from toto_compile_patch.decode.weights import can_be_packed
from toto_compile_patch.upstream import load


@pytest.fixture(autouse=True)
def classes_are_known() -> None:
    load(TOTO)


def model_of(distribution: str = "MixtureOfStudentTsOutput") -> Any:
    kwargs = {"k_components": 3} if distribution.startswith("Mixture") else None
    return small_model(
        output_distribution_classes=[f"<class 'model.distribution.{distribution}'>"],
        output_distribution_kwargs=kwargs,
    ).model


@pytest.mark.parametrize("distribution", ["MixtureOfStudentTsOutput", "StudentTOutput"])
@torch.no_grad()
def test_it_gives_what_two_layers_give(distribution: str) -> None:
    model = model_of(distribution).double()
    output, hidden = model.output_distribution, torch.randn(5, 32, dtype=torch.float64)
    raw = fold(model, packed=False).apply(hidden)
    of_steps = model.unembed(hidden).unflatten(-1, (PATCH, -1))
    kinds = {DF: output.df, LOC: output.loc_proj, SCALE: output.scale_proj}
    if distribution.startswith("Mixture"):
        kinds[LOGIT] = output.mixture_weights
    assert raw.shape == (5, PATCH, len(kinds), output.df.out_features)
    for kind, layer in kinds.items():
        torch.testing.assert_close(raw[..., kind, :], layer(of_steps))


@torch.no_grad()
def test_it_is_folded_in_float64_and_rounded_once() -> None:
    model = model_of()
    rounded = fold(model, packed=False)
    exact = fold(model.double(), packed=False)
    assert rounded.weight.dtype is rounded.bias.dtype is torch.float32
    assert torch.equal(rounded.weight, exact.weight.float())
    assert torch.equal(rounded.bias, exact.bias.float())


@torch.no_grad()
def test_parameters_of_hidden_states_in_16_bits_have_32() -> None:
    head, hidden = fold(model_of().bfloat16(), packed=False), torch.randn(5, 32)
    raw = head.apply(hidden.bfloat16())
    assert raw.dtype is torch.float32
    torch.testing.assert_close(raw, head.apply(hidden.bfloat16().float()))


@torch.no_grad()
def test_the_first_time_steps() -> None:
    head, hidden = fold(model_of(), packed=False), torch.randn(5, 32)
    whole = head.apply(hidden)
    assert head.for_time_steps(PATCH) is head
    torch.testing.assert_close(head.for_time_steps(3).apply(hidden), whole[:, :3])


@torch.no_grad()
def test_what_is_packed() -> None:
    model = model_of()
    packed, hidden = fold(model, packed=True), torch.randn(5, 32)
    if can_be_packed(model.unembed.weight):
        torch.testing.assert_close(packed.apply(hidden), fold(model, packed=False).apply(hidden))
    assert packed.packed is not None
    assert packed.for_time_steps(PATCH).packed is packed.packed
    assert packed.for_time_steps(3).packed is None
    assert fold(model, packed=False).packed is None
    assert fold(model.double(), packed=True).packed is None
