"""Classes of `torch.nn` that a manifest may name, and what each takes (spec section 8.3)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from pemncodec.architecture.arguments import (
    ELEMENT_LIMIT,
    FLAG_OFF,
    FLAG_ON,
    GROWTH_LIMIT,
    INT_LIMIT,
    REQUIRED,
    Argument,
)
from pemncodec.architecture.composites import COMPOSITES
from pemncodec.errors import ManifestError


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
_DEPTH_LIMIT: Final = 1 << 10  # layers that one recurrent layer may stack
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
        "bias": FLAG_ON,
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
        "affine": FLAG_ON,
    },
    "LayerNorm": {
        "normalized_shape": _NORMALIZED_SHAPE,
        "eps": _number(1e-05),
        "elementwise_affine": FLAG_ON,
        "bias": FLAG_ON,
    },
    "RMSNorm": {
        "normalized_shape": _NORMALIZED_SHAPE,
        "eps": _number(None, none=True),
        "elementwise_affine": FLAG_ON,
    },
    "LocalResponseNorm": {
        "size": Argument(integers=(1, GROWTH_LIMIT)),
        "alpha": _number(0.0001),
        "beta": _number(0.75),
        "k": _number(1.0),
    },
}

_AXIS = {"dim": Argument(None, integers=_DIMENSION, none=True)}
_IN_PLACE = {"inplace": FLAG_OFF}

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
        "return_indices": FLAG_OFF,
        "ceil_mode": FLAG_OFF,
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
        "ceil_mode": FLAG_OFF,
        "count_include_pad": FLAG_ON,
    }
    if rank > 1:
        arguments["divisor_override"] = Argument(None, integers=(1, INT_LIMIT), none=True)
    return arguments


def _power_pool(rank: int) -> dict[str, Argument]:
    return {
        "norm_type": _number(),
        "kernel_size": _window(rank),
        "stride": _window(rank, default=None, none=True),
        "ceil_mode": FLAG_OFF,
    }


def _adaptive(rank: int) -> dict[str, Argument]:
    return {"output_size": _window(rank, none=rank > 1)}


def _fractional_pool(rank: int) -> dict[str, Argument]:
    return {
        "kernel_size": _spread(rank),
        "output_size": _spread(rank, default=None, none=True),
        "output_ratio": Argument(None, numbers=True, lengths=(rank,), repeat=rank, none=True),
        "return_indices": FLAG_OFF,
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
    **{f"AdaptiveMaxPool{n}d": {**_adaptive(n), "return_indices": FLAG_OFF} for n in _RANKS},
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
    "PairwiseDistance": {"p": _number(2.0), "eps": _number(1e-06), "keepdim": FLAG_OFF},
}

_DROPOUT = _number(0.0)
_HIDDEN = {"input_size": _SIZE, "hidden_size": _SIZE}


def _recurrent(**own: Argument) -> dict[str, Argument]:
    return {
        **_HIDDEN,
        "num_layers": Argument(1, integers=(1, _DEPTH_LIMIT), sized=True),
        "bias": FLAG_ON,
        "batch_first": FLAG_OFF,
        "dropout": _DROPOUT,
        "bidirectional": FLAG_OFF,
        **own,
    }


_NONLINEARITY = {"nonlinearity": Argument("tanh", words=("tanh", "relu"))}
_PROJECTION = {"proj_size": Argument(0, integers=(0, INT_LIMIT))}

_RECURRENT: Final[dict[str, dict[str, Argument]]] = {
    "RNN": _recurrent(**_NONLINEARITY),
    "LSTM": _recurrent(**_PROJECTION),
    "GRU": _recurrent(),
    "RNNCell": {**_HIDDEN, "bias": FLAG_ON, **_NONLINEARITY},
    "LSTMCell": {**_HIDDEN, "bias": FLAG_ON},
    "GRUCell": {**_HIDDEN, "bias": FLAG_ON},
}

_OWN_SIZE = Argument(None, integers=(1, INT_LIMIT), none=True)
_TRANSFORMER_LAYER: Final[dict[str, Argument]] = {
    "d_model": _SIZE,
    "nhead": Argument(integers=(1, INT_LIMIT)),
    "dim_feedforward": Argument(2048, integers=(1, INT_LIMIT), sized=True),
    "dropout": _number(0.1),
    "activation": Argument("relu", words=("relu", "gelu")),
    "layer_norm_eps": _number(1e-05),
    "batch_first": FLAG_OFF,
    "norm_first": FLAG_OFF,
    "bias": FLAG_ON,
}

_ATTENTION: Final[dict[str, dict[str, Argument]]] = {
    "MultiheadAttention": {
        "embed_dim": _SIZE,
        "num_heads": Argument(integers=(1, INT_LIMIT)),
        "dropout": _DROPOUT,
        "bias": FLAG_ON,
        "add_bias_kv": FLAG_OFF,
        "add_zero_attn": FLAG_OFF,
        "kdim": _OWN_SIZE,  # null: embed_dim
        "vdim": _OWN_SIZE,
        "batch_first": FLAG_OFF,
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
    "scale_grad_by_freq": FLAG_OFF,
    "sparse": FLAG_OFF,
}


LEAF_CLASSES: Final[Mapping[str, Mapping[str, Argument]]] = MappingProxyType(
    {
        **{f"Conv{n}d": _convolution(n, transposed=False) for n in _RANKS},
        **{f"ConvTranspose{n}d": _convolution(n, transposed=True) for n in _RANKS},
        "Linear": {"in_features": _SIZE, "out_features": _SIZE, "bias": FLAG_ON},
        "Bilinear": {
            "in1_features": _SIZE,
            "in2_features": _SIZE,
            "out_features": _SIZE,
            "bias": FLAG_ON,
        },
        "Embedding": _EMBEDDING,
        "EmbeddingBag": {
            **_EMBEDDING,
            "mode": Argument("mean", words=("sum", "mean", "max")),
            "include_last_offset": FLAG_OFF,
        },
        **_RECURRENT,
        **_ATTENTION,
        **_NORMS,
        **_ACTIVATIONS,
        **_POOLING,
        **_SHAPES,
    }
)
