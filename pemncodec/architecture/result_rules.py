"""What operators of ATen return on the meta device, in the cases that need no thought.

A rule takes the arguments of its operator, tensors on the meta device. It returns what PyTorch
returns, with the same shape, dtype and order in memory; or None where it is not certain, as for
arguments that do not fit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import zip_longest

import torch
from torch import Tensor

_SHORT = (torch.float16, torch.bfloat16)


def _new(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _strides(tensor: Tensor) -> list[int]:
    """Of the axes along which there is more than one element."""
    return [n for n, size in zip(tensor.stride(), tensor.shape, strict=True) if size != 1]


def _in_c_order(tensor: Tensor) -> bool:
    """Whether no axis is to be put elsewhere: strides fall from axis to axis, of equal ones sizes.

    Strides of 0, which repeat an element, tell no order.
    """
    pairs = zip(tensor.stride(), tensor.shape, strict=True)
    steps = [(stride, size) for stride, size in pairs if stride]
    return steps == sorted(steps, reverse=True)


def _given(*tensors: Tensor | None) -> list[Tensor]:
    return [tensor for tensor in tensors if tensor is not None]


def _plain(*tensors: Tensor) -> bool:
    """Whether they are contiguous and of one floating dtype."""
    return _floating(*tensors) and all(tensor.is_contiguous() for tensor in tensors)


def _floating(*tensors: Tensor) -> bool:
    first = tensors[0].dtype
    return first.is_floating_point and all(tensor.dtype == first for tensor in tensors)


def _broadcast(*shapes: Sequence[int]) -> list[int]:
    """The common shape; ValueError when there is none."""
    result = []
    for sizes in zip_longest(*(reversed(shape) for shape in shapes), fillvalue=1):
        larger = {size for size in sizes if size != 1}
        if len(larger) > 1:
            raise ValueError
        result.append(larger.pop() if larger else 1)
    return result[::-1]


# --------------------------------------------------------------------------- element by element


def unary(x: Tensor) -> Tensor | None:
    return _elementwise(x.dtype, x) if x.dtype.is_floating_point else None


def signed(x: Tensor) -> Tensor | None:
    return _pair(x.dtype, x, 0)


def unary_in_place(x: Tensor) -> Tensor | None:
    return x if x.dtype.is_floating_point and 0 not in _strides(x) else None


def filled(x: Tensor, *_: float, generator: None = None) -> Tensor | None:
    return unary_in_place(x) if generator is None else None


def gelu(x: Tensor, *, approximate: str = "none") -> Tensor | None:
    return unary(x) if approximate in ("none", "tanh") else None


def _elementwise(dtype: torch.dtype, *tensors: Tensor) -> Tensor | None:
    """A new tensor of the common shape, in memory as PyTorch orders it."""
    shape = _broadcast(*(tensor.shape for tensor in tensors))
    if all(map(_in_c_order, tensors)):
        return _new(shape, dtype)
    if 0 in shape:
        return None
    strides = [tensor.expand(shape).stride() for tensor in tensors]
    # PyTorch makes float32 of short floats on this device, which loses the order of repeated items.
    plain = 1 not in shape and all(t.dtype not in _SHORT for t in tensors)
    if not plain and any(0 in each for each in strides):
        return None
    result, step = [0] * len(shape), 1
    for axis in _inside_out([axis for axis, size in enumerate(shape) if size != 1], strides):
        result[axis] = step
        step *= shape[axis]
    return torch.empty_strided(shape, result, dtype=dtype, device="meta")


def _inside_out(axes: Sequence[int], strides: Sequence[Sequence[int]]) -> list[int]:
    """Axes in the order in which PyTorch goes along them, from the innermost one on.

    Two axes of which no tensor tells more than one keep their order, unless a third goes between
    them. So the result depends on the steps of PyTorch's insertion sort.
    """
    order: list[int] = []
    for axis in reversed(axes):
        place = len(order)
        order.append(axis)
        for before in reversed(range(place)):
            inside = _is_inside(order[before], axis, strides)
            if inside:
                break
            if inside is not None:
                order[before], order[place] = axis, order[before]
                place = before
    return order


def _is_inside(axis: int, other: int, strides: Sequence[Sequence[int]]) -> bool | None:
    """Whether an axis goes on within another; the first tensor that has both says so.

    Raises:
        ValueError: equal strides.
    """
    for each in strides:
        if each[axis] and each[other]:
            if each[axis] == each[other]:
                raise ValueError
            return each[axis] < each[other]
    return None


def arithmetic(x: Tensor, y: Tensor | float, *, alpha: float = 1) -> Tensor | None:
    return _pair(x.dtype, x, y) if type(alpha) is int else None


def _pair(dtype: torch.dtype, x: Tensor, y: Tensor | float) -> Tensor | None:
    """Of two tensors of one dtype, or of one and a number that does not change it."""
    if not (x.dtype.is_floating_point or x.dtype == torch.int64):
        return None
    if isinstance(y, Tensor):
        return _elementwise(dtype, x, y) if x.dtype == y.dtype else None
    plain = type(y) is int or (type(y) is float and x.dtype.is_floating_point)
    return _elementwise(dtype, x) if plain else None


def division(x: Tensor, y: Tensor) -> Tensor | None:
    return arithmetic(x, y) if x.dtype.is_floating_point else None


def power(x: Tensor, exponent: float) -> Tensor | None:
    return arithmetic(x, exponent) if x.dtype.is_floating_point else None


def arithmetic_in_place(x: Tensor, y: Tensor | float, *, alpha: float = 1) -> Tensor | None:
    result = arithmetic(x, y, alpha=alpha)
    return None if result is None or result.shape != x.shape or 0 in _strides(x) else x


def division_in_place(x: Tensor, y: Tensor) -> Tensor | None:
    return arithmetic_in_place(x, y) if x.dtype.is_floating_point else None


def comparison(x: Tensor, y: Tensor | float) -> Tensor | None:
    return _pair(torch.bool, x, y)


def logical(x: Tensor, y: Tensor) -> Tensor | None:
    return _elementwise(x.dtype, x, y) if x.dtype == y.dtype == torch.bool else None


def where(condition: Tensor, x: Tensor, y: Tensor) -> Tensor | None:
    plain = condition.dtype == torch.bool and x.dtype == y.dtype
    return _elementwise(x.dtype, condition, x, y) if plain else None


def softmax(x: Tensor, dim: int, half_to_float: bool = False) -> Tensor | None:
    plain = not half_to_float and -x.dim() <= dim < x.dim() and _plain(x)
    return _new(x.shape, x.dtype) if plain else None


def cumsum(x: Tensor, dim: int) -> Tensor | None:
    whole = x.dtype in (torch.bool, torch.int64)
    if not -x.dim() <= dim < x.dim() or not x.is_contiguous() or not (whole or _floating(x)):
        return None
    return _new(x.shape, torch.int64 if whole else x.dtype)


# ------------------------------------------------------------------------------------- products


def mm(x: Tensor, y: Tensor) -> Tensor | None:
    fits = x.dim() == y.dim() == 2 and x.shape[1] == y.shape[0] and _floating(x, y)
    return _new((x.shape[0], y.shape[1]), x.dtype) if fits else None


def addmm(bias: Tensor, x: Tensor, y: Tensor) -> Tensor | None:
    result = mm(x, y)
    if result is None or not _floating(bias, result):
        return None
    return result if _broadcast(bias.shape, result.shape) == list(result.shape) else None


def bmm(x: Tensor, y: Tensor) -> Tensor | None:
    if x.dim() != 3 or y.dim() != 3 or x.shape[0] != y.shape[0] or not _floating(x, y):
        return None
    shape = (x.shape[0], x.shape[1], y.shape[2])
    return _new(shape, x.dtype) if x.shape[2] == y.shape[1] else None


def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
) -> Tensor | None:
    if x.dim() < 3 or weight.dim() != x.dim() or not _floating(x, weight, *_given(bias)):
        return None
    positive = (*stride, *dilation, groups, *x.shape, *weight.shape)
    if min(positive) < 1 or min(*padding, *output_padding) < 0 or weight.shape[0] % groups:
        return None
    inputs, outputs = weight.shape[1] * groups, weight.shape[0]
    sizes = _windows(x.shape[2:], weight.shape[2:], stride, padding, dilation)
    if transposed:
        inputs, outputs = outputs, inputs
        each = zip(x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
        sizes = [(n - 1) * s - 2 * p + d * (k - 1) + 1 for n, k, s, p, d in each]
        sizes = [size + more for size, more in zip(sizes, output_padding, strict=True)]
    if x.shape[1] != inputs or (bias is not None and bias.shape != (outputs,)):
        return None
    return None if min(sizes) < 1 else _new((x.shape[0], outputs, *sizes), x.dtype)


def _windows(
    sizes: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> list[int]:
    """How many windows fit along each axis."""
    each = zip(sizes, kernel, stride, padding, dilation, strict=True)
    return [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in each]


# --------------------------------------------------------------------------------------- layers


def batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    variance: Tensor | None,
    training: bool,
    *_: float,
) -> tuple[Tensor, Tensor, Tensor] | None:
    given = _given(weight, bias, mean, variance)
    if training or mean is None or variance is None or x.dim() < 2 or not _plain(x, *given):
        return None
    channels = (x.shape[1],)
    if any(tensor.shape != channels for tensor in given):
        return None
    return _new(x.shape, x.dtype), _new(channels, x.dtype), _new(channels, x.dtype)


def layer_norm(
    x: Tensor, shape: list[int], weight: Tensor | None, bias: Tensor | None, _: float
) -> tuple[Tensor, Tensor, Tensor] | None:
    outer = x.dim() - len(shape)
    given = _given(weight, bias)
    if outer < 0 or not shape or list(x.shape[outer:]) != shape or not _floating(x, *given):
        return None
    if any(list(tensor.shape) != shape for tensor in given):
        return None
    statistics = [*x.shape[:outer], *([1] * len(shape))]
    return _new(x.shape, x.dtype), _new(statistics, x.dtype), _new(statistics, x.dtype)


def embedding(weight: Tensor, indices: Tensor, *_: int) -> Tensor | None:
    whole = indices.dtype in (torch.int32, torch.int64)
    if weight.dim() != 2 or not whole or not _plain(weight):
        return None
    return _new((*indices.shape, weight.shape[1]), weight.dtype)


def max_pool2d(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    ceil_mode: bool = False,
) -> tuple[Tensor, Tensor] | None:
    stride = stride or kernel
    if ceil_mode or x.dim() not in (3, 4) or not _plain(x) or 0 in x.shape:
        return None
    if min(*kernel, *stride, *dilation) < 1 or min(padding) < 0:
        return None
    if any(2 * p > k for p, k in zip(padding, kernel, strict=True)):
        return None
    sizes = _windows(x.shape[-2:], kernel, stride, padding, dilation)
    shape = (*x.shape[:-2], *sizes)
    return None if min(sizes) < 1 else (_new(shape, x.dtype), _new(shape, torch.int64))


def mean(x: Tensor, dims: list[int], keepdim: bool = False) -> Tensor | None:
    reduced = {dim % x.dim() for dim in dims if -x.dim() <= dim < x.dim()}
    if not dims or len(reduced) != len(dims) or not _floating(x):
        return None
    sizes = [1 if axis in reduced else size for axis, size in enumerate(x.shape)]
    return _new(sizes if keepdim else _without(sizes, reduced), x.dtype)


def mean_of_all(x: Tensor) -> Tensor | None:
    return _new((), x.dtype) if _plain(x) else None


def _without(sizes: Sequence[int], axes: set[int]) -> list[int]:
    return [size for axis, size in enumerate(sizes) if axis not in axes]


# -------------------------------------------------------------------------------------- shaping


def unsafe_view(x: Tensor, shape: list[int]) -> Tensor | None:
    fits = x.is_contiguous() and min(shape, default=0) >= 0 and math.prod(shape) == x.numel()
    return _new(shape, x.dtype) if fits else None


def cat(tensors: list[Tensor], dim: int = 0) -> Tensor | None:
    first = tensors[0]
    # The order of the axes in memory counts for those that may be images.
    plain = first.dim() < 4 or all(_in_c_order(t) or t.stride(-1) < t.stride(1) for t in tensors)
    plain = plain and all(tensor.dtype == first.dtype for tensor in tensors)
    if not -first.dim() <= dim < first.dim() or not plain:
        return None
    axis = dim % first.dim()
    others = _without(first.shape, {axis})
    if any(t.dim() != first.dim() or _without(t.shape, {axis}) != others for t in tensors):
        return None
    sizes = list(first.shape)
    sizes[axis] = sum(tensor.shape[axis] for tensor in tensors)
    return _new(sizes, first.dtype)


def stack(tensors: list[Tensor], dim: int = 0) -> Tensor | None:
    return cat([tensor.unsqueeze(dim) for tensor in tensors], dim)


def clone(x: Tensor, *, memory_format: torch.memory_format | None = None) -> Tensor | None:
    if memory_format == torch.contiguous_format:
        return _new(x.shape, x.dtype)
    return _elementwise(x.dtype, x) if memory_format in (None, torch.preserve_format) else None


def roll(x: Tensor, shifts: list[int], dims: Sequence[int] = ()) -> Tensor | None:
    fits = len(shifts) == len(dims) and all(-x.dim() <= dim < x.dim() for dim in dims)
    return _new(x.shape, x.dtype) if fits and dims and _floating(x) else None


def unsafe_split(x: Tensor, size: int, dim: int = 0) -> list[Tensor] | None:
    if size < 1 or not -x.dim() <= dim < x.dim() or x.shape[dim] % size:
        return None
    return list(torch.split(x, size, dim))


def index(x: Tensor, indices: list[Tensor | None]) -> Tensor | None:
    given = [index for index in indices if index is not None]
    whole = all(index.dtype == torch.int64 for index in given)
    if len(given) != len(indices) or len(given) > x.dim() or not whole or not _in_c_order(x):
        return None
    return _new([*_broadcast(*(i.shape for i in given)), *x.shape[len(given) :]], x.dtype)


def gather(x: Tensor, dim: int, index: Tensor) -> Tensor | None:
    if index.dtype != torch.int64 or x.dim() != index.dim() or not -x.dim() <= dim < x.dim():
        return None
    pairs = zip(index.shape, x.shape, strict=True)
    inside = all(n <= size for axis, (n, size) in enumerate(pairs) if axis != dim % x.dim())
    return _new(index.shape, x.dtype) if inside else None


def full_like(x: Tensor, value: float) -> Tensor | None:
    return _pair(x.dtype, x, value)


def arange(*bounds: int, device: torch.device, **_: None) -> Tensor | None:
    start, stop = bounds if len(bounds) == 2 else (0, *bounds)
    plain = type(start) is type(stop) is int and start <= stop and device.type == "meta"
    return _new((stop - start,), torch.int64) if plain else None
