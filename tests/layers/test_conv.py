"""Convolutions in canonical form: against brute-force patches, against the convolution's own output, and moments against rows."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from natgrad_apps.layers import _correlation
from natgrad_apps.layers._patches import PatchInputs, RowInputs
from natgrad_apps.layers._window import Window
from natgrad_apps.layers.base import LayerInputs
from natgrad_apps.layers.conv import ConvAdapter, Convolution, window_of

pytestmark = [
    pytest.mark.usefixtures("float64"),
    # torch says that padding="same" with an even kernel copies its input.
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning"),
]

ADAPTER = ConvAdapter()
CLASSES: dict[int, type[Convolution]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
SIZES = {1: (11,), 2: (9, 8), 3: (6, 5, 7)}
CHANNELS_IN, CHANNELS_OUT, UNITS = 4, 8, 3

GEOMETRIES: list[dict[str, Any]] = [
    {"kernel_size": kernel, "stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    for kernel, stride, padding, dilation, groups in itertools.product((1, 2, 3), (1, 2, 3), (0, 1), (1, 2), (1, 2))
]
GEOMETRIES += [
    {"kernel_size": kernel, "padding": padding, "dilation": dilation, "groups": groups}
    for kernel, padding, dilation, groups in itertools.product((2, 3, 4), ("same", "valid"), (1, 2), (1, 2))
    if padding == "same" or dilation == 1
]
GEOMETRIES += [
    {"kernel_size": 3, "padding": padding, "padding_mode": mode, "stride": stride, "groups": groups}
    for mode, stride, groups, padding in itertools.product(("circular", "reflect", "replicate"), (1, 2), (1, 2), (1, 2, "same"))
    if padding != "same" or stride == 1
]
GEOMETRIES += [{"kernel_size": 3, "padding": 1, "groups": 4, "stride": 2}, {"kernel_size": 4, "stride": 2, "dilation": 2, "padding": 3}]

PER_DIMENSION: list[tuple[int, dict[str, Any]]] = [
    (2, {"kernel_size": (1, 3), "padding": (0, 1)}),
    (2, {"kernel_size": (4, 3), "stride": (2, 1), "padding": (2, 0), "dilation": (1, 3)}),
    (2, {"kernel_size": (3, 2), "stride": (1, 3), "dilation": (2, 1), "padding": "valid", "groups": 2}),
    (2, {"kernel_size": (2, 5), "padding": "same", "padding_mode": "circular"}),
    (3, {"kernel_size": (3, 1, 2), "stride": (2, 1, 3), "padding": (1, 0, 2)}),
    (3, {"kernel_size": (2, 3, 1), "padding": "same", "dilation": (1, 2, 1), "groups": 2}),
]

CASES = [(dims, options) for dims in (1, 2, 3) for options in GEOMETRIES] + PER_DIMENSION
# A convolution whose reach exceeds its padded input has no output; torch refuses it.
CASES = [
    (dims, options)
    for dims, options in CASES
    if not (
        dims == 3
        and options.get("padding") == 0
        and options["kernel_size"] == 3
        and options.get("dilation", 1) == 2
        and options["stride"] == 3
    )
]


def name(case: Any) -> str:
    return "-".join(f"{key[:3]}{value}" for key, value in case.items()).replace(" ", "") if isinstance(case, dict) else f"{case}d"


def make(dims: int, options: dict[str, Any]) -> tuple[Convolution, Tensor]:
    conv = CLASSES[dims](CHANNELS_IN, CHANNELS_OUT, bias=False, **options)
    return conv, torch.randn(UNITS, CHANNELS_IN, *SIZES[dims])


def brute_force_rows(conv: Convolution, x: Tensor) -> Tensor:
    """Patches by loops over output positions, channels and taps: ``[K, N, S, d_in]``."""
    window = window_of(conv)
    amounts = [amount for pair in reversed(window.padding) for amount in pair]
    padded = F.pad(x, amounts, mode="constant" if conv.padding_mode == "zeros" else conv.padding_mode)
    ranges = []
    for size, kernel, stride, dilation in zip(padded.shape[2:], conv.kernel_size, conv.stride, conv.dilation, strict=True):
        ranges.append(range(0, size - dilation * (kernel - 1), stride))
    per_group = conv.in_channels // conv.groups
    groups = []
    for k in range(conv.groups):
        positions = []
        for place in itertools.product(*ranges):
            patch = []
            for c in range(per_group):
                for tap in itertools.product(*map(range, conv.kernel_size)):
                    at = tuple(p + t * d for p, t, d in zip(place, tap, conv.dilation, strict=True))
                    index: tuple[int | slice, ...] = (slice(None), k * per_group + c, *at)
                    patch.append(padded[index])
            positions.append(torch.stack(patch, dim=-1))
        groups.append(torch.stack(positions, dim=1))
    return torch.stack(groups)


def grouped(x: Tensor, conv: Convolution) -> Tensor:
    """With a group dimension, whether or not the layer has one."""
    return x if conv.groups > 1 else x.unsqueeze(0)


@pytest.mark.parametrize(("dims", "options"), CASES, ids=name)
def test_rows_times_weight_is_the_output_and_moments_are_those_of_the_rows(dims: int, options: dict[str, Any]) -> None:
    conv, x = make(dims, options)
    inputs, geometry = ADAPTER.inputs(conv, x), ADAPTER.geometry(conv)
    rows = inputs.rows()
    assert rows.shape == (*geometry.lead, UNITS, inputs.positions, geometry.d_in)
    assert inputs.units == UNITS

    output = conv(x).detach()
    weight = ADAPTER.weight_to_matrix(conv, conv.weight.detach())
    assert weight.shape == (*geometry.lead, geometry.d_out, geometry.d_in)
    assert torch.equal(ADAPTER.matrix_to_weight(conv, weight), conv.weight)
    product = grouped(rows, conv) @ grouped(weight, conv).mT.unsqueeze(1)
    torch.testing.assert_close(product, grouped(ADAPTER.output_gradients(conv, output), conv), rtol=1e-12, atol=1e-12)

    second, first = inputs.second_moment()
    flat = rows.flatten(-3, -2)
    torch.testing.assert_close(second, flat.mT @ flat, rtol=1e-12, atol=1e-12)
    assert torch.equal(second, second.mT)
    torch.testing.assert_close(first, flat.sum(-2), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(inputs.reduced(), rows.mean(-2), rtol=1e-12, atol=1e-12)

    window, padded = window_of(conv), window_of(conv).pad(x)
    reference = grouped(flat.mT @ flat, conv)
    torch.testing.assert_close(_correlation.second_moment(padded, window.unpadded(), "direct"), reference, rtol=1e-12, atol=1e-12)
    if has_shared_rows(window):
        by_rows = _correlation.second_moment(padded, window.unpadded(), "rows")
        assert (by_rows - reference).abs().max() <= 1e-12 * reference.abs().max()
        assert torch.equal(by_rows, by_rows.mT)


def has_shared_rows(window: Window) -> bool:
    kernel, stride, dilation = window.kernel[0], window.stride[0], window.dilation[0]
    common = math.gcd(stride, dilation)
    stride, dilation = stride // common, dilation // common
    return kernel > stride and (stride == 1 or dilation == 1)


SAMPLE = CASES[::13] + PER_DIMENSION


@pytest.mark.parametrize(("dims", "options"), SAMPLE, ids=name)
def test_rows_equal_brute_force_patches(dims: int, options: dict[str, Any]) -> None:
    conv, x = make(dims, options)
    assert torch.equal(grouped(ADAPTER.inputs(conv, x).rows(), conv), brute_force_rows(conv, x))


def test_rows_equal_unfold_of_torch() -> None:
    conv = nn.Conv2d(4, 5, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2))
    x = torch.randn(3, 4, 9, 8)
    expected = F.unfold(x, conv.kernel_size, dilation=conv.dilation, padding=(1, 0), stride=conv.stride).mT
    assert torch.equal(ADAPTER.inputs(conv, x).rows(), expected)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2])
def test_an_input_without_a_batch_dimension_is_one_unit(dims: int, groups: int) -> None:
    conv, x = make(dims, {"kernel_size": 2, "groups": groups})
    alone, batch = ADAPTER.inputs(conv, x[0]), ADAPTER.inputs(conv, x[:1])
    assert (alone.units, alone.positions) == (1, batch.positions)
    assert torch.equal(alone.rows(), batch.rows())
    assert torch.equal(alone.second_moment()[0], batch.second_moment()[0])
    gradient = torch.randn_like(conv(x[0]))
    assert torch.equal(ADAPTER.output_gradients(conv, gradient), ADAPTER.output_gradients(conv, gradient.unsqueeze(0)))


def test_output_gradients_are_a_view_and_give_the_weight_gradient() -> None:
    for groups in (1, 2):
        conv = nn.Conv2d(4, 6, 3, groups=groups, padding=1)
        x = torch.randn(3, 4, 5, 5)
        output = conv(x)
        g = torch.randn_like(output)
        output.backward(g)
        rows, gradients = ADAPTER.inputs(conv, x).rows(), ADAPTER.output_gradients(conv, g)
        assert gradients.untyped_storage().data_ptr() == g.untyped_storage().data_ptr()
        assert conv.weight.grad is not None
        assert conv.bias is not None
        assert conv.bias.grad is not None
        expected = torch.einsum("...nso,...nsi->...oi", gradients, rows)
        torch.testing.assert_close(ADAPTER.weight_to_matrix(conv, conv.weight.grad), expected, rtol=1e-12, atol=1e-12)
        bias = gradients.sum((-3, -2)).unsqueeze(-1)
        torch.testing.assert_close(ADAPTER.bias_to_matrix(conv, conv.bias.grad), bias, rtol=1e-12, atol=1e-12)


def subsamples() -> list[tuple[slice, slice]]:
    return [
        (slice(None), slice(None)),
        (slice(1, None, 2), slice(None)),
        (slice(None), slice(2, None, 3)),
        (slice(0, 2), slice(1, 20, 5)),
        (slice(None), slice(0, None, 100)),
    ]


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_subsamples_are_the_selected_rows(dims: int, groups: int) -> None:
    conv, x = make(dims, {"kernel_size": 2, "padding": 1, "groups": groups})
    inputs = ADAPTER.inputs(conv, x)
    for units, positions in subsamples():
        check_selected(inputs, units, positions)
        # A part of a part.
        check_selected(inputs.subsample(units, positions), slice(0, 1), slice(0, None, 2))


def check_selected(inputs: LayerInputs, units: slice, positions: slice) -> None:
    chosen, rows = inputs.subsample(units, positions), inputs.rows()[..., units, positions, :]
    assert (chosen.units, chosen.positions) == rows.shape[-3:-1]
    assert torch.equal(chosen.rows(), rows)
    flat = rows.flatten(-3, -2)
    second, first = chosen.second_moment()
    torch.testing.assert_close(second, flat.mT @ flat, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(first, flat.sum(-2), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(chosen.reduced(), rows.mean(-2), rtol=1e-12, atol=1e-12)


def test_only_the_selected_positions_are_materialised() -> None:
    inputs = PatchInputs(torch.randn(2, 3, 32, 32), Window((3, 3), (1, 1), (1, 1), ((1, 1), (1, 1))))
    chosen = inputs.subsample(slice(None), slice(0, None, 16))
    assert isinstance(chosen, RowInputs)
    assert chosen.rows().untyped_storage().nbytes() == 2 * 64 * 27 * 8


def test_no_units_give_zero_moments() -> None:
    for groups in (1, 2):
        conv, x = make(2, {"kernel_size": 3, "groups": groups})
        inputs = ADAPTER.inputs(conv, x[:0])
        geometry = ADAPTER.geometry(conv)
        second, first = inputs.second_moment()
        assert torch.equal(second, torch.zeros(*geometry.lead, geometry.d_in, geometry.d_in))
        assert torch.equal(first, torch.zeros(*geometry.lead, geometry.d_in))
        assert inputs.rows().shape == (*geometry.lead, 0, inputs.positions, geometry.d_in)
        assert inputs.reduced().shape == (*geometry.lead, 0, geometry.d_in)


LARGE = {
    "8x8 stride 4": (Window((8, 8), (4, 4), (1, 1), ((0, 0), (0, 0))), (12, 4, 84, 84)),
    "4x4 stride 2": (Window((4, 4), (2, 2), (1, 1), ((0, 0), (0, 0))), (70, 32, 20, 20)),
    "3x3": (Window((3, 3), (1, 1), (1, 1), ((0, 0), (0, 0))), (90, 64, 9, 9)),
    "7x7 stride 2": (Window((7, 7), (2, 2), (1, 1), ((3, 3), (3, 3))), (4, 3, 65, 64)),
    "depthwise": (Window((3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)), groups=200), (2, 200, 40, 40)),
    "dilated": (Window((3, 3), (1, 1), (4, 2), ((4, 4), (2, 2))), (9, 40, 33, 20)),
}


@pytest.mark.parametrize("layer", LARGE)
def test_float32_is_as_accurate_by_rows_as_directly_in_every_chunking(layer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    window, shape = LARGE[layer]
    x = window.pad(torch.randn(shape, dtype=torch.float32).relu())
    window = window.unpadded()
    reference = _correlation.second_moment(x.double(), window, "direct")
    scale = float(reference.abs().max())
    plain = error_of_the_plain_product(x, window, reference)
    for columns in (100, 1000, 4096):
        monkeypatch.setattr(_correlation, "_COLUMNS", columns)
        for method in ("direct", "rows"):
            result = _correlation.second_moment(x, window, method)
            assert torch.equal(result, result.mT)
            # The order of summation differs, so errors differ by a small factor; all are a few roundings of the largest entry.
            assert float((result.double() - reference).abs().max()) <= max(3 * plain, 2e-6 * scale)


def error_of_the_plain_product(x: Tensor, window: Window, reference: Tensor) -> float:
    rows = PatchInputs(x, window).rows()
    rows = rows.flatten(-3, -2).reshape(window.groups, -1, reference.shape[-1])
    return float(((rows.mT @ rows).double() - reference).abs().max())


def test_batched_products_of_other_devices_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    for groups, stride, dilation in ((1, 1, 1), (2, 1, 2), (2, 2, 1)):
        window = Window((4, 3), (stride, 1), (dilation, 1), ((0, 0), (0, 0)), groups=groups)
        x = torch.randn(5, 6, 13, 9)
        expected = _correlation.second_moment(x, window, "rows")
        with monkeypatch.context() as patch:
            patch.setattr(_correlation, "_add_rows_in_turn", _correlation._add_rows_at_once)
            torch.testing.assert_close(_correlation.second_moment(x, window, "rows"), expected, rtol=1e-12, atol=1e-12)


def test_the_cheaper_method_is_chosen() -> None:
    def plan_wins(window: Window, shape: tuple[int, ...]) -> bool:
        x = torch.empty(shape, device="meta")
        plan = _correlation._RowPlan.of(x, window)
        assert plan is not None
        return _correlation._cost_by_rows(x, window, plan) < _correlation._cost_direct(x, window)

    three = Window((3, 3), (1, 1), (1, 1), ((0, 0), (0, 0)))
    assert plan_wins(three, (256, 64, 9, 9))
    assert plan_wins(three, (64, 64, 34, 34))
    assert not plan_wins(three, (1, 64, 34, 34))  # short products
    assert not plan_wins(three, (64, 3, 34, 34))  # narrow products


def test_rows_refuse_a_window_without_shared_rows() -> None:
    with pytest.raises(ValueError, match="two or more taps"):
        _correlation.second_moment(torch.randn(1, 1, 4, 4), Window((1, 3), (1, 1), (1, 1), ((0, 0), (0, 0))), "rows")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_reaches_the_moments(value: float) -> None:
    conv = nn.Conv2d(64, 8, 3, padding=1)
    x = torch.randn(40, 64, 9, 9, dtype=torch.float32)
    x[17, 3, 4, 4] = value
    second, first = ADAPTER.inputs(conv, x).second_moment()
    assert not second.diagonal().isfinite().all()
    assert not first.isfinite().all()


def test_channels_last_inputs() -> None:
    conv = nn.Conv2d(16, 8, 3, padding=1)
    x = torch.randn(5, 16, 9, 9)
    last = x.contiguous(memory_format=torch.channels_last)
    plain, other = ADAPTER.inputs(conv, x), ADAPTER.inputs(conv, last)
    assert torch.equal(plain.rows(), other.rows())
    torch.testing.assert_close(plain.second_moment(), other.second_moment(), rtol=1e-12, atol=1e-12)
    g = torch.randn(5, 8, 9, 9)
    assert torch.equal(ADAPTER.output_gradients(conv, g), ADAPTER.output_gradients(conv, g.contiguous(memory_format=torch.channels_last)))


def test_other_modules_are_refused() -> None:
    with pytest.raises(TypeError, match="got Linear"):
        ADAPTER.geometry(nn.Linear(2, 2))
