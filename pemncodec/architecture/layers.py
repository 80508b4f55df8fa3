"""Classes of `torch.nn` that a manifest may name, and what each takes (spec/pemn.md section 8.3).

Defaults are pinned here: an argument equal to its default is left out of the file, and a reader
passes every argument, so that a file does not depend on the defaults of a version of PyTorch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from pemncodec.errors import ManifestError

INT_LIMIT: Final = 1 << 31
ELEMENT_LIMIT: Final = 1 << 50  # elements of one parameter; keeps PyTorch's byte counts in 64 bits
GROWTH_LIMIT: Final = 1 << 16  # a size that an output gets from the file instead of from inputs

CONTAINERS: Final = frozenset({"Sequential", "ModuleList", "ModuleDict"})
DEPTH_LIMIT: Final = 1 << 10  # layers that one recurrent layer may stack


class _Required:
    """Stands for the default of an argument that has none."""


REQUIRED: Final = _Required()


@dataclass(frozen=True, slots=True)
class Argument:
    """One constructor argument: what it accepts, and its pinned default.

    Attributes:
        default: value when the file gives none; `REQUIRED` when it must.
        integers: smallest and largest integer accepted.
        numbers: a finite real number is accepted.
        flag: a boolean is accepted.
        words: strings accepted.
        none: null is accepted.
        lengths: lengths of accepted arrays of what is accepted as one number.
        repeat: one number stands for an array of this many equal ones; 0 when it does not.
        sized: the number of elements of the parameters grows with this argument.
    """

    default: Any = REQUIRED
    integers: tuple[int, int] | None = None
    numbers: bool = False
    flag: bool = False
    words: tuple[str, ...] = ()
    none: bool = False
    lengths: tuple[int, ...] = ()
    repeat: int = 0
    sized: bool = False

    def accepts(self, value: Any) -> bool:
        """Whether a JSON value is in the domain of this argument."""
        if isinstance(value, list):
            return len(value) in self.lengths and all(
                not isinstance(item, str) and self._accepts_one(item) for item in value
            )
        return self._accepts_one(value)

    def _accepts_one(self, value: Any) -> bool:
        if value is None:
            return self.none
        if isinstance(value, bool):
            return self.flag
        if isinstance(value, str):
            return value in self.words
        if isinstance(value, int):
            if self.integers is not None:
                return self.integers[0] <= value <= self.integers[1]
            return self.numbers and abs(value) <= INT_LIMIT
        return isinstance(value, float) and self.numbers and math.isfinite(value)

    def compact(self, value: Any) -> Any:
        """The one form in which a value is written: a number instead of `repeat` equal ones."""
        if isinstance(value, list) and len(value) == self.repeat and self.repeat > 0:
            first = value[0]
            if all(item == first for item in value):
                return first
        return value


def is_default(argument: Argument, value: Any) -> bool:
    """Whether `value` is the pinned default, types included (1 is not 1.0)."""
    return argument.default is not REQUIRED and repr(argument.default) == repr(value)


def check_arguments(class_name: str, given: Mapping[str, Any], place: str) -> None:
    """Check the arguments of one layer.

    Raises:
        ManifestError: "manifest-argument" for one that is unknown, missing, or out of its domain.
    """
    composite = COMPOSITES.get(class_name)
    arguments = LEAF_CLASSES[class_name] if composite is None else composite.arguments
    for name in given:
        if name not in arguments:
            raise ManifestError(
                "manifest-argument", f"{place}: {class_name} takes no argument {name[:40]!r}"
            )
    elements = 1
    for name, argument in arguments.items():
        if name not in given:
            if argument.default is REQUIRED:
                raise ManifestError("manifest-argument", f"{place}: {class_name} needs {name}")
            continue
        value = given[name]
        if not argument.accepts(value):
            raise ManifestError(
                "manifest-argument",
                f"{place}: {class_name} does not take {name}={str(value)[:40]}",
            )
        if argument.sized:
            elements *= _product(value, argument.repeat)
    if elements > ELEMENT_LIMIT:
        raise ManifestError(
            "manifest-argument", f"{place}: a {class_name} of more than 2^50 elements"
        )


_LAYER_TENSOR: Final = re.compile(
    r"weight|bias|running_(mean|var)|num_batches_tracked|in_proj_(weight|bias)|[qkv]_proj_weight"
    r"|bias_[kv]|(weight|bias)_(ih|hh|hr)(_l[0-9]{1,4}(_reverse)?)?"
)


def is_layer_tensor(name: str) -> bool:
    """Whether a layer of some class may have a parameter or buffer of this name."""
    return _LAYER_TENSOR.fullmatch(name) is not None


def _product(value: Any, repeat: int) -> int:
    sizes: list[int] = value if isinstance(value, list) else [value] * max(repeat, 1)
    return math.prod(sizes)


_SIZE = Argument(integers=(1, INT_LIMIT), sized=True)
_FLAG_ON = Argument(True, flag=True)
_FLAG_OFF = Argument(False, flag=True)
_DIMENSION = (-16, 15)
_RANKS = (1, 2, 3)


def _window(rank: int, *, low: int = 1, default: Any = REQUIRED, none: bool = False) -> Argument:
    """Size in each of `rank` dimensions; PyTorch keeps it as it was written."""
    return Argument(default, integers=(low, GROWTH_LIMIT), lengths=(rank,), none=none)


def _spread(
    rank: int,
    *,
    low: int = 1,
    default: Any = REQUIRED,
    none: bool = False,
    sized: bool = False,
) -> Argument:
    """Size in each of `rank` dimensions; PyTorch always keeps an array of it."""
    return Argument(
        default,
        integers=(low, GROWTH_LIMIT),
        lengths=(rank,),
        repeat=rank,
        none=none,
        sized=sized,
    )


def _number(default: Any = REQUIRED, *, none: bool = False) -> Argument:
    return Argument(default, numbers=True, none=none)


def _convolution(rank: int, *, transposed: bool) -> dict[str, Argument]:
    padding = _spread(rank, low=0, default=0)
    modes: tuple[str, ...] = ("zeros",)
    extra = {"output_padding": padding}
    if not transposed:
        modes = ("zeros", "reflect", "replicate", "circular")
        extra = {}
        padding = Argument(
            0,
            integers=(0, GROWTH_LIMIT),
            lengths=(rank,),
            repeat=rank,
            words=("same", "valid"),
        )
    return {
        "in_channels": _SIZE,
        "out_channels": _SIZE,
        "kernel_size": _spread(rank, sized=True),
        "stride": _spread(rank, default=1),
        "padding": padding,
        **extra,
        "dilation": _spread(rank, default=1),
        "groups": Argument(1, integers=(1, INT_LIMIT)),
        "bias": _FLAG_ON,
        "padding_mode": Argument("zeros", words=modes),
    }


def _running_norm(*, affine: bool, track: bool) -> dict[str, Argument]:
    return {
        "num_features": _SIZE,
        "eps": _number(1e-05),
        "momentum": _number(0.1, none=True),
        "affine": Argument(affine, flag=True),
        "track_running_stats": Argument(track, flag=True),
    }


_NORMALIZED_SHAPE = Argument(
    integers=(1, INT_LIMIT), lengths=tuple(range(1, 17)), repeat=1, sized=True
)

_NORMS: Final[dict[str, dict[str, Argument]]] = {
    **{f"BatchNorm{n}d": _running_norm(affine=True, track=True) for n in _RANKS},
    **{f"InstanceNorm{n}d": _running_norm(affine=False, track=False) for n in _RANKS},
    "SyncBatchNorm": _running_norm(affine=True, track=True),
    "GroupNorm": {
        "num_groups": Argument(integers=(1, INT_LIMIT)),
        "num_channels": _SIZE,
        "eps": _number(1e-05),
        "affine": _FLAG_ON,
    },
    "LayerNorm": {
        "normalized_shape": _NORMALIZED_SHAPE,
        "eps": _number(1e-05),
        "elementwise_affine": _FLAG_ON,
        "bias": _FLAG_ON,
    },
    "RMSNorm": {
        "normalized_shape": _NORMALIZED_SHAPE,
        "eps": _number(None, none=True),
        "elementwise_affine": _FLAG_ON,
    },
    "LocalResponseNorm": {
        "size": Argument(integers=(1, GROWTH_LIMIT)),
        "alpha": _number(0.0001),
        "beta": _number(0.75),
        "k": _number(1.0),
    },
}

_AXIS = {"dim": Argument(None, integers=_DIMENSION, none=True)}
_IN_PLACE = {"inplace": _FLAG_OFF}

_ACTIVATIONS: Final[dict[str, dict[str, Argument]]] = {
    **{
        name: {} for name in ("Identity", "Sigmoid", "Tanh", "Softsign", "LogSigmoid", "Tanhshrink")
    },
    **dict.fromkeys(
        ("ReLU", "ReLU6", "SELU", "SiLU", "Mish", "Hardswish", "Hardsigmoid"), _IN_PLACE
    ),
    **{name: {"alpha": _number(1.0), **_IN_PLACE} for name in ("ELU", "CELU")},
    **dict.fromkeys(("Softmax", "Softmin", "LogSoftmax"), _AXIS),
    **{name: {"lambd": _number(0.5)} for name in ("Softshrink", "Hardshrink")},
    "Softmax2d": {},
    "LeakyReLU": {"negative_slope": _number(0.01), **_IN_PLACE},
    "GELU": {"approximate": Argument("none", words=("none", "tanh"))},
    "Hardtanh": {"min_val": _number(-1.0), "max_val": _number(1.0), **_IN_PLACE},
    "Softplus": {"beta": _number(1.0), "threshold": _number(20.0)},
    "PReLU": {
        "num_parameters": Argument(1, integers=(1, INT_LIMIT), sized=True),
        "init": _number(0.25),
    },
    "RReLU": {"lower": _number(1 / 8), "upper": _number(1 / 3), **_IN_PLACE},
    "Threshold": {"threshold": _number(), "value": _number(), **_IN_PLACE},
    "GLU": {"dim": Argument(-1, integers=_DIMENSION)},
    **{
        name: {"p": _number(0.5), **_IN_PLACE}
        for name in (
            "Dropout",
            "Dropout1d",
            "Dropout2d",
            "Dropout3d",
            "AlphaDropout",
            "FeatureAlphaDropout",
        )
    },
}


def _max_pool(rank: int) -> dict[str, Argument]:
    return {
        "kernel_size": _window(rank),
        "stride": _window(rank, default=None, none=True),  # null: the kernel's size
        "padding": _window(rank, low=0, default=0),
        "dilation": _window(rank, default=1),
        "return_indices": _FLAG_OFF,
        "ceil_mode": _FLAG_OFF,
    }


def _average_pool(rank: int) -> dict[str, Argument]:
    window = _spread if rank == 1 else _window
    arguments = {
        "kernel_size": window(rank),
        "stride": Argument(
            None,
            integers=(1, GROWTH_LIMIT),
            lengths=(rank,),
            repeat=rank if rank == 1 else 0,
            none=True,
        ),
        "padding": window(rank, low=0, default=0),
        "ceil_mode": _FLAG_OFF,
        "count_include_pad": _FLAG_ON,
    }
    if rank > 1:
        arguments["divisor_override"] = Argument(None, integers=(1, INT_LIMIT), none=True)
    return arguments


def _power_pool(rank: int) -> dict[str, Argument]:
    return {
        "norm_type": _number(),
        "kernel_size": _window(rank),
        "stride": _window(rank, default=None, none=True),
        "ceil_mode": _FLAG_OFF,
    }


def _adaptive(rank: int) -> dict[str, Argument]:
    return {"output_size": _window(rank, none=rank > 1)}


def _fractional_pool(rank: int) -> dict[str, Argument]:
    return {
        "kernel_size": _spread(rank),
        "output_size": _spread(rank, default=None, none=True),
        "output_ratio": Argument(None, numbers=True, lengths=(rank,), repeat=rank, none=True),
        "return_indices": _FLAG_OFF,
    }


_POOLING: Final[dict[str, dict[str, Argument]]] = {
    **{f"MaxPool{n}d": _max_pool(n) for n in _RANKS},
    **{f"AvgPool{n}d": _average_pool(n) for n in _RANKS},
    **{f"LPPool{n}d": _power_pool(n) for n in _RANKS},
    **{
        f"MaxUnpool{n}d": {
            "kernel_size": _spread(n),
            "stride": Argument(None, integers=(1, GROWTH_LIMIT), lengths=(n,), repeat=n, none=True),
            "padding": _spread(n, low=0, default=0),
        }
        for n in _RANKS
    },
    **{f"FractionalMaxPool{n}d": _fractional_pool(n) for n in (2, 3)},
    **{f"AdaptiveAvgPool{n}d": _adaptive(n) for n in _RANKS},
    **{f"AdaptiveMaxPool{n}d": {**_adaptive(n), "return_indices": _FLAG_OFF} for n in _RANKS},
}


def _pad(rank: int) -> Argument:
    # Negative padding crops.
    return _spread(2 * rank, low=-GROWTH_LIMIT)


_UPSAMPLED_SIZE = Argument(None, integers=(1, GROWTH_LIMIT), lengths=_RANKS, none=True)
_UPSAMPLED_BY = Argument(None, numbers=True, lengths=_RANKS, none=True)
_SLIDING = {
    "kernel_size": _window(2),
    "dilation": _window(2, default=1),
    "padding": _window(2, low=0, default=0),
    "stride": _window(2, default=1),
}

_SHAPES: Final[dict[str, dict[str, Argument]]] = {
    "Flatten": {
        "start_dim": Argument(1, integers=_DIMENSION),
        "end_dim": Argument(-1, integers=_DIMENSION),
    },
    "Unflatten": {
        "dim": Argument(integers=_DIMENSION),
        "unflattened_size": Argument(integers=(-1, INT_LIMIT), lengths=tuple(range(1, 17))),
    },
    **{f"{kind}Pad{n}d": {"padding": _pad(n)} for kind in ("Zero", "Circular") for n in _RANKS},
    **{
        f"{kind}Pad{n}d": {"padding": _pad(n)}
        for kind in ("Reflection", "Replication")
        for n in _RANKS
    },
    **{f"ConstantPad{n}d": {"padding": _pad(n), "value": _number()} for n in _RANKS},
    "Upsample": {
        "size": _UPSAMPLED_SIZE,
        "scale_factor": _UPSAMPLED_BY,
        "mode": Argument(
            "nearest",
            words=("nearest", "nearest-exact", "linear", "bilinear", "bicubic", "trilinear"),
        ),
        "align_corners": Argument(None, flag=True, none=True),
        "recompute_scale_factor": Argument(None, flag=True, none=True),
    },
    **{
        name: {"size": _UPSAMPLED_SIZE, "scale_factor": _UPSAMPLED_BY}
        for name in ("UpsamplingNearest2d", "UpsamplingBilinear2d")
    },
    "Fold": {"output_size": _window(2), **_SLIDING},
    "Unfold": _SLIDING,
    "PixelShuffle": {"upscale_factor": Argument(integers=(1, GROWTH_LIMIT))},
    "PixelUnshuffle": {"downscale_factor": Argument(integers=(1, GROWTH_LIMIT))},
    "ChannelShuffle": {"groups": Argument(integers=(1, INT_LIMIT))},
    "CosineSimilarity": {"dim": Argument(1, integers=_DIMENSION), "eps": _number(1e-08)},
    "PairwiseDistance": {"p": _number(2.0), "eps": _number(1e-06), "keepdim": _FLAG_OFF},
}

_DROPOUT = _number(0.0)
_HIDDEN = {"input_size": _SIZE, "hidden_size": _SIZE}


def _recurrent(**own: Argument) -> dict[str, Argument]:
    return {
        **_HIDDEN,
        "num_layers": Argument(1, integers=(1, DEPTH_LIMIT), sized=True),
        "bias": _FLAG_ON,
        "batch_first": _FLAG_OFF,
        "dropout": _DROPOUT,
        "bidirectional": _FLAG_OFF,
        **own,
    }


_NONLINEARITY = {"nonlinearity": Argument("tanh", words=("tanh", "relu"))}
_PROJECTION = {"proj_size": Argument(0, integers=(0, INT_LIMIT))}

_RECURRENT: Final[dict[str, dict[str, Argument]]] = {
    "RNN": _recurrent(**_NONLINEARITY),
    "LSTM": _recurrent(**_PROJECTION),
    "GRU": _recurrent(),
    "RNNCell": {**_HIDDEN, "bias": _FLAG_ON, **_NONLINEARITY},
    "LSTMCell": {**_HIDDEN, "bias": _FLAG_ON},
    "GRUCell": {**_HIDDEN, "bias": _FLAG_ON},
}

_OWN_SIZE = Argument(None, integers=(1, INT_LIMIT), none=True)
_TRANSFORMER_LAYER: Final[dict[str, Argument]] = {
    "d_model": _SIZE,
    "nhead": Argument(integers=(1, INT_LIMIT)),
    "dim_feedforward": Argument(2048, integers=(1, INT_LIMIT), sized=True),
    "dropout": _number(0.1),
    "activation": Argument("relu", words=("relu", "gelu")),
    "layer_norm_eps": _number(1e-05),
    "batch_first": _FLAG_OFF,
    "norm_first": _FLAG_OFF,
    "bias": _FLAG_ON,
}

_ATTENTION: Final[dict[str, dict[str, Argument]]] = {
    "MultiheadAttention": {
        "embed_dim": _SIZE,
        "num_heads": Argument(integers=(1, INT_LIMIT)),
        "dropout": _DROPOUT,
        "bias": _FLAG_ON,
        "add_bias_kv": _FLAG_OFF,
        "add_zero_attn": _FLAG_OFF,
        "kdim": _OWN_SIZE,  # null: embed_dim
        "vdim": _OWN_SIZE,
        "batch_first": _FLAG_OFF,
    },
    "TransformerEncoderLayer": _TRANSFORMER_LAYER,
    "TransformerDecoderLayer": _TRANSFORMER_LAYER,
}

_EMBEDDING: Final[dict[str, Argument]] = {
    "num_embeddings": _SIZE,
    "embedding_dim": _SIZE,
    "padding_idx": Argument(None, integers=(0, INT_LIMIT), none=True),
    "max_norm": _number(None, none=True),
    "norm_type": _number(2.0),
    "scale_grad_by_freq": _FLAG_OFF,
    "sparse": _FLAG_OFF,
}


@dataclass(frozen=True, slots=True)
class Composite:
    """A layer that is built of layers given as its children.

    Attributes:
        arguments: of the constructor, beside the children.
        children: names, in the order of registration, each with the classes that it may have.
        repeated: class of the items when the child `layers` is a `ModuleList` of layers.
    """

    arguments: Mapping[str, Argument]
    children: Mapping[str, tuple[str, ...]]
    repeated: str = ""


_FEED_FORWARD: Final = {"linear1": "Linear", "dropout": "Dropout", "linear2": "Linear"}

# Layers within layers, which the constructor makes.
INNER_LAYERS: Final[Mapping[str, Mapping[str, str]]] = MappingProxyType(
    {
        "MultiheadAttention": {"out_proj": "Linear"},
        "TransformerEncoderLayer": {
            "self_attn": "MultiheadAttention",
            **_FEED_FORWARD,
            **{f"norm{n}": "LayerNorm" for n in (1, 2)},
            **{f"dropout{n}": "Dropout" for n in (1, 2)},
        },
        "TransformerDecoderLayer": {
            "self_attn": "MultiheadAttention",
            "multihead_attn": "MultiheadAttention",
            **_FEED_FORWARD,
            **{f"norm{n}": "LayerNorm" for n in (1, 2, 3)},
            **{f"dropout{n}": "Dropout" for n in (1, 2, 3)},
        },
    }
)

_FINAL_NORM: Final = ("LayerNorm", "RMSNorm")  # may be left out

COMPOSITES: Final[Mapping[str, Composite]] = MappingProxyType(
    {
        "TransformerEncoder": Composite(
            {"enable_nested_tensor": _FLAG_ON, "mask_check": _FLAG_ON},
            {"layers": ("ModuleList",), "norm": _FINAL_NORM},
            "TransformerEncoderLayer",
        ),
        "TransformerDecoder": Composite(
            {}, {"layers": ("ModuleList",), "norm": _FINAL_NORM}, "TransformerDecoderLayer"
        ),
        "Transformer": Composite(
            {
                "d_model": Argument(integers=(1, INT_LIMIT)),
                "nhead": Argument(integers=(1, INT_LIMIT)),
                "batch_first": _FLAG_OFF,
            },
            {"encoder": ("TransformerEncoder",), "decoder": ("TransformerDecoder",)},
        ),
    }
)

LEAF_CLASSES: Final[Mapping[str, Mapping[str, Argument]]] = MappingProxyType(
    {
        **{f"Conv{n}d": _convolution(n, transposed=False) for n in _RANKS},
        **{f"ConvTranspose{n}d": _convolution(n, transposed=True) for n in _RANKS},
        "Linear": {"in_features": _SIZE, "out_features": _SIZE, "bias": _FLAG_ON},
        "Bilinear": {
            "in1_features": _SIZE,
            "in2_features": _SIZE,
            "out_features": _SIZE,
            "bias": _FLAG_ON,
        },
        "Embedding": _EMBEDDING,
        "EmbeddingBag": {
            **_EMBEDDING,
            "mode": Argument("mean", words=("sum", "mean", "max")),
            "include_last_offset": _FLAG_OFF,
        },
        **_RECURRENT,
        **_ATTENTION,
        **_NORMS,
        **_ACTIVATIONS,
        **_POOLING,
        **_SHAPES,
    }
)
