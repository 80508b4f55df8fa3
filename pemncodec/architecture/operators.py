"""Graphs of `tree/1`: the operators, and the check of one graph (spec/pemn.md section 8.4).

None of these opens a file, draws a size from the file without bound, or runs code that the file
brings. Random numbers come only from dropout and `bernoulli_`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from keyword import iskeyword
from typing import Any, Final

from pemncodec.architecture.arguments import ELEMENT_LIMIT, INT_LIMIT
from pemncodec.architecture.aten import ATEN
from pemncodec.errors import ErrorCode, LimitError, ManifestError
from pemncodec.limits import Limits


def _names(prefix: str, *lists: str) -> frozenset[str]:
    return frozenset(prefix + name for names in lists for name in names.split())


DTYPES: Final = _names(
    "",
    "float16 bfloat16 float32 float64 int8 int16 int32 int64 uint8 bool complex64 complex128",
)

_ELEMENTWISE = """
    abs add addcdiv addcmul ceil clamp clamp_max clamp_min clip cos cosh div eq erf exp expm1 floor
    floor_divide fmod ge gt isfinite isinf isnan le lerp log log10 log1p log2 logical_and
    logical_not logical_or logical_xor lt maximum minimum mul nan_to_num ne neg pow reciprocal
    remainder round rsqrt sigmoid sign sin sinh sqrt square sub tan tanh trunc
"""
_REDUCING = """
    all amax amin any argmax argmin argsort cumprod cumsum logsumexp max mean min norm prod sort
    std sum topk var
"""
_SHAPING = """
    broadcast_to chunk diagonal flatten flip gather index_select masked_fill movedim narrow permute
    repeat_interleave reshape roll rot90 select split squeeze swapaxes swapdims take_along_dim
    tensor_split tile transpose tril triu unbind unflatten unsqueeze where
"""
_PRODUCTS = "addmm baddbmm bmm dot matmul mm mv outer softmax log_softmax relu"


FUNCTIONS: Final = (
    _names(
        "operator.",
        "add sub mul truediv floordiv mod pow matmul iadd isub imul itruediv",
        "neg pos abs invert and_ or_ xor eq ne lt le gt ge getitem",
    )
    | _names("math.", "ceil floor sqrt")
    | _names(
        "torch.",
        *(_ELEMENTWISE, _REDUCING, _SHAPING, _PRODUCTS),
        "addmv cat concat concatenate cosine_similarity einsum full_like hstack vstack dstack",
        "meshgrid ones_like relu_ sigmoid_ stack std_mean t tensordot true_divide var_mean",
        "zeros_like conv1d conv2d conv3d max_pool1d max_pool2d max_pool3d adaptive_avg_pool1d",
        "adaptive_max_pool1d avg_pool1d",
    )
    | _names(
        "torch.nn.functional.",
        "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d",
        "adaptive_max_pool2d adaptive_max_pool3d avg_pool1d avg_pool2d avg_pool3d lp_pool1d",
        "lp_pool2d max_pool1d max_pool2d max_pool3d batch_norm bilinear celu channel_shuffle",
        "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d cosine_similarity",
        "elu alpha_dropout dropout dropout1d dropout2d dropout3d feature_alpha_dropout embedding",
        "fold gelu glu grid_sample group_norm hardshrink hardsigmoid hardswish hardtanh",
        "instance_norm interpolate layer_norm leaky_relu linear local_response_norm log_softmax",
        "logsigmoid mish normalize pad pixel_shuffle pixel_unshuffle prelu relu relu_ relu6",
        "rms_norm scaled_dot_product_attention selu sigmoid silu softmax softmin softplus",
        "softshrink softsign tanh tanhshrink threshold unfold",
    )
    | frozenset(f"aten.{name}" for name in ATEN)
)

# They make tensors of nothing, and so have to be told where.
FACTORIES: Final = frozenset(
    name
    for name in FUNCTIONS
    if name.removeprefix("aten.").partition(".")[0]
    in ("arange", "eye", "full", "linspace", "ones", "scalar_tensor", "zeros")
)

METHODS: Final = _names(
    "",
    *(_ELEMENTWISE, _REDUCING, _SHAPING, _PRODUCTS),
    "add_ sub_ mul_ div_ clamp_ relu_ sigmoid_ tanh_ masked_fill_ bfloat16 bool clone contiguous",
    "bernoulli_ detach dim double expand expand_as float half int long new_ones new_zeros numel",
    "repeat reshape_as size t to",
    "type_as unfold view view_as",
)

ATTRIBUTES: Final = frozenset({"shape", "dtype", "device", "ndim", "T", "mT"})

# `out`, `generator`, `pin_memory` and `memory_format` are left out on purpose.
_KEYWORDS: Final = _names(
    "",
    "align_corners alpha antialias approximate as_tuple attn_mask beta bias ceil_mode chunks copy",
    "correction count_include_pad descending device diagonal dilation dim dim0 dim1 dims",
    "divisor_override dropout_p dtype enable_gqa end_dim eps exponent fill_value groups index",
    "indexing indices indices_or_sections inplace input is_causal k keepdim kernel_size lambd",
    "largest length max max_norm max_val mask min min_val mode momentum n nan negative_slope",
    "neginf non_blocking norm_type normalized_shape num_groups offset ord other output_padding",
    "output_size p pad padding padding_idx padding_mode posinf recompute_scale_factor repeats",
    "return_indices rounding_mode running_mean running_var scale scale_factor",
    "scale_grad_by_freq shape shifts size sizes sorted sparse split_size split_size_or_sections",
    "stable start start_dim stride tensor1 tensor2 tensors threshold training unbiased",
    "use_input_stats value weight x1 x2 upscale_factor downscale_factor source destination",
)

_WORDS: Final = _names(
    "",
    "none tanh zeros border reflection reflect replicate circular constant nearest nearest-exact",
    "linear bilinear bicubic trilinear area floor trunc ij xy fro nuc mean sum same valid",
)

# Their outputs grow with numbers of the file, not only with inputs.
_GROWING: Final = _names(
    "",
    "arange broadcast_to col2im constant_pad_nd expand eye fold full im2col interpolate linspace",
    "new_full new_ones new_zeros one_hot ones pad repeat repeat_interleave tile unflatten unfold",
    "upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_linear1d",
    "upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d _upsample_nearest_exact1d",
    "_upsample_nearest_exact2d zeros",
)
_FILLING: Final = frozenset({"full", "new_full"})  # their last argument is a value
_GROWTH_PRODUCT: Final = 1 << 24

_REFERENCE = re.compile(r"%(0|[1-9][0-9]{0,8})")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,127}")
_EINSUM = re.compile(r"[A-Za-z ,.]{1,128}(?:->[A-Za-z .]{0,64})?")
_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./ -]{0,127}")

_FIELDS: Final[dict[str, frozenset[str]]] = {
    "in": frozenset({"in", "default", "only", "dtype", "shape"}),
    "attr": frozenset({"attr"}),
    "mod": frozenset({"mod", "args", "kwargs"}),
    "fn": frozenset({"fn", "args", "kwargs"}),
    "meth": frozenset({"meth", "args", "kwargs"}),
    "get": frozenset({"get", "args"}),
    "out": frozenset({"out"}),
}


def is_name(text: object) -> bool:
    """Whether `text` may name a module, parameter or buffer."""
    return (
        isinstance(text, str)
        and _NAME.fullmatch(text) is not None
        and not text.startswith("__")
        and not iskeyword(text)
    )


def is_identifier(text: object) -> bool:
    """Whether `text` may name a class or an input of a graph."""
    return isinstance(text, str) and is_name(text) and text.isidentifier()


def is_path(text: object) -> bool:
    """Whether `text` is names joined by dots."""
    return isinstance(text, str) and all(is_name(part) for part in text.split("."))


def reference(value: object) -> int | None:
    """Index of the node that a value refers to ("%3"), None when it is another value."""
    match = _REFERENCE.fullmatch(value) if isinstance(value, str) else None
    return int(match[1]) if match else None


def node_kind(node: Any, place: str) -> str:
    """The one key of `node` that says what it does.

    Raises:
        ManifestError: "manifest-schema" when there is none, or a field that it does not have.
    """
    if not isinstance(node, dict):
        raise ManifestError("manifest-schema", f"{place} is no object")
    kinds = [kind for kind in _FIELDS if kind in node]
    if len(kinds) != 1:
        raise ManifestError("manifest-schema", f"{place} must have one of {', '.join(_FIELDS)}")
    for key in node:
        if key not in _FIELDS[kinds[0]] and not is_optional(key):
            raise ManifestError("manifest-schema", f"{place}: unknown field {str(key)[:40]!r}")
    return kinds[0]


def is_optional(key: object) -> bool:
    """Whether a reader ignores a field of this name when it does not know it."""
    return isinstance(key, str) and key.startswith("?")


def validate_graph(name: str, nodes: Any, limits: Limits) -> None:
    """Check one graph by itself; which modules it calls is checked for each of its users.

    Raises:
        ManifestError: "manifest-schema", "manifest-name", "manifest-op" or "manifest-argument".
        LimitError: an input of more dimensions than `limits` allow.
    """
    if not isinstance(nodes, list) or not nodes:
        raise ManifestError("manifest-schema", f"graph {name} is not an array of one or more nodes")
    inputs: dict[str, bool] = {}  # whether it may be left out
    for index, node in enumerate(nodes):
        place = f"graph {name}, node {index}"
        kind = node_kind(node, place)
        if (kind == "out") != (index == len(nodes) - 1):
            raise ManifestError("manifest-schema", f"{place}: 'out' is the last node, and only it")
        if kind == "in":
            if len(inputs) != index:
                raise ManifestError("manifest-schema", f"{place}: inputs come first")
            _check_input(node, inputs, place, limits)
        elif kind == "attr":
            _require(is_path(node["attr"]), "manifest-name", f"{place}: not a path")
        elif kind == "out":
            _Values(index, place).check(node["out"])
        else:
            _check_call(kind, node, index, place)


def _require(condition: bool, code: ErrorCode, message: str) -> None:
    if not condition:
        raise ManifestError(code, message)


def _check_input(node: dict[str, Any], seen: dict[str, bool], place: str, limits: Limits) -> None:
    name = node["in"]
    _require(is_identifier(name) and name != "self", "manifest-name", f"{place}: not a name")
    _require(name not in seen, "manifest-name", f"{place}: second input {name}")
    _require(not {"default", "only"} <= node.keys(), "manifest-schema", f"{place}: two defaults")
    seen[name] = not {"default", "only"}.isdisjoint(node)
    ordered = seen[name] or not any(seen.values())
    _require(
        ordered, "manifest-schema", f"{place}: an input without default follows one with a default"
    )
    _Values(0, place).check(node.get("default", node.get("only")))
    if "dtype" in node or "shape" in node:
        _require(
            not seen[name],
            "manifest-schema",
            f"{place}: an input with a default has a dtype or shape",
        )
        check_tensor_spec(node, place, limits, varies=lambda size: size is None or _is_range(size))


def _is_range(size: Any) -> bool:
    """Whether a size is given as the smallest and the largest one."""
    if not isinstance(size, list) or [type(bound) for bound in size] != [int, int]:
        return False
    low, high = size
    return bool(0 <= low <= high <= INT_LIMIT)


def check_tensor_spec(
    spec: dict[str, Any],
    place: str,
    limits: Limits,
    *,
    varies: Callable[[Any], bool] = lambda size: size is None,
) -> None:
    """Check `dtype` and `shape` of a tensor that a forward takes, of which sizes may vary."""
    dtype = spec.get("dtype")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ManifestError("manifest-argument", f"{place}: not a dtype")
    check_shape(spec.get("shape"), place, limits, varies=varies)


def check_shape(
    shape: Any,
    place: str,
    limits: Limits,
    *,
    varies: Callable[[Any], bool] = lambda _: False,
) -> None:
    """Check an array of sizes; `varies` says what may stand for one that is not known.

    Raises:
        ManifestError: "manifest-schema" or "manifest-argument".
        LimitError: too many dimensions.
    """
    if not isinstance(shape, list):
        raise ManifestError("manifest-schema", f"{place}: the shape is no array")
    if len(shape) > limits.dimensions:
        raise LimitError("limit", f"{place} has more than {limits.dimensions} dimensions")
    elements = 1
    for size in shape:
        if varies(size):
            continue
        if type(size) is not int or not 0 <= size <= INT_LIMIT:
            raise ManifestError("manifest-argument", f"{place}: not a size in the shape")
        elements *= size
    if elements > ELEMENT_LIMIT:
        raise ManifestError("manifest-argument", f"{place} has more than 2^50 elements")


def _check_call(kind: str, node: dict[str, Any], index: int, place: str) -> None:
    target = node[kind]
    _require(isinstance(target, str), "manifest-schema", f"{place}: the target is no string")
    if kind == "mod":
        _require(is_path(target), "manifest-name", f"{place}: {target[:60]!r} is no path")
    else:
        allowed = {"fn": FUNCTIONS, "meth": METHODS, "get": ATTRIBUTES}[kind]
        _require(target in allowed, "manifest-op", f"{place}: {target[:60]!r} is not allowed")
    args, kwargs = node.get("args", []), node.get("kwargs", {})
    _require(isinstance(args, list), "manifest-schema", f"{place}: args are no array")
    _require(isinstance(kwargs, dict), "manifest-schema", f"{place}: kwargs are no object")
    if kind == "mod":
        for key in kwargs:
            _require(is_identifier(key), "manifest-name", f"{place}: keyword {key[:40]!r}")
    else:
        for key, value in kwargs.items():
            known = key in _KEYWORDS and (key != "device" or reference(value) is not None)
            _require(known, "manifest-argument", f"{place}: {target} with the keyword {key[:40]!r}")
    if kind in ("meth", "get"):
        on_value = bool(args) and reference(args[0]) is not None
        _require(on_value, "manifest-argument", f"{place}: {target} is not of a value of the graph")
    if kind == "get":
        _require(len(args) == 1, "manifest-argument", f"{place}: {target} takes no argument")
    placed = target not in FACTORIES or "device" in kwargs
    _require(placed, "manifest-argument", f"{place}: {target} without a device")
    values = _Values(index, place)
    rest = args
    if target in ("torch.einsum", "aten.einsum") and args:
        equation = isinstance(args[0], str) and _EINSUM.fullmatch(args[0]) is not None
        _require(equation, "manifest-argument", f"{place}: not an equation of einsum")
        rest = args[1:]
    elif target == "operator.getitem" and len(args) == 2 and is_key(args[1]):
        rest = args[:1]
    for value in [*rest, *(kwargs[key] for key in sorted(kwargs))]:
        values.check(value)
    name = target.removeprefix("aten.").partition(".")[0] if kind == "fn" else target
    if kind == "fn" and not target.startswith("aten."):
        name = target.rpartition(".")[2]
    if name in _GROWING:
        growth = 1
        sizes = rest[:-1] if name in _FILLING else rest
        for number in _numbers([*sizes, *kwargs.values()]):
            growth *= max(1, abs(int(number)))
            _require(
                growth <= _GROWTH_PRODUCT,
                "manifest-argument",
                f"{place}: {target} by a factor above {_GROWTH_PRODUCT}",
            )


def is_key(text: object) -> bool:
    """Whether `text` may be a key of a dictionary that a graph returns or reads."""
    return isinstance(text, str) and _KEY.fullmatch(text) is not None


def is_word(text: str) -> bool:
    """Whether `text` may be an argument of an operator."""
    return text in _WORDS or text == "..."


def _numbers(value: Any) -> Iterator[int | float]:
    if isinstance(value, list):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _numbers(item)
    elif isinstance(value, int | float):
        yield value


class _Values:
    """Checks the values in the arguments of node `index`, which may refer to nodes before it."""

    def __init__(self, index: int, place: str) -> None:
        self.index = index
        self.place = place

    def check(self, value: Any) -> None:
        if value is None or isinstance(value, bool):
            return
        if isinstance(value, int):
            self._require(abs(value) <= INT_LIMIT, "an integer is out of range")
        elif isinstance(value, float):
            self._require(math.isfinite(value), "not a finite number")
        elif isinstance(value, str):
            self._check_string(value)
        elif isinstance(value, list):
            for item in value:
                self.check(item)
        elif isinstance(value, dict) and len(value) == 1:
            ((tag, content),) = value.items()
            self._check_tagged(tag, content)
        else:
            self._require(False, "not a value")

    def _check_string(self, text: str) -> None:
        node = reference(text)
        if node is None:
            self._require(is_word(text), f"the string {text[:40]!r} is not allowed")
        elif node >= self.index:
            raise ManifestError("manifest-schema", f"{self.place}: {text} is not computed before")

    def _check_tagged(self, tag: str, content: Any) -> None:
        if tag == "dtype":
            self._require(isinstance(content, str) and content in DTYPES, "not a dtype")
        elif tag == "float":
            self._require(content in ("inf", "-inf", "nan"), "not a special number")
        elif isinstance(content, list) and (tag == "tuple" or (tag, len(content)) == ("slice", 3)):
            self.check(content)
        elif tag == "dict" and isinstance(content, list):
            keys = set()
            for item in content:
                pair = isinstance(item, list) and len(item) == 2 and is_key(item[0])
                self._require(pair and item[0] not in keys, "not a pair of a new key and a value")
                keys.add(item[0])
                self.check(item[1])
        else:
            self._require(False, f"unknown value {tag[:40]!r}")

    def _require(self, condition: bool, cause: str) -> None:
        _require(condition, "manifest-argument", f"{self.place}: {cause}")
