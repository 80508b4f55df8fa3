"""A layer of `torch.nn` ↔ its class and arguments (spec/pemn.md section 8.3)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from torch import nn
from torch.nn import functional

from pemncodec.architecture.arguments import Argument, is_default
from pemncodec.architecture.composites import COMPOSITES, CONTAINERS
from pemncodec.architecture.layers import LEAF_CLASSES, check_arguments
from pemncodec.errors import ManifestError, UnsupportedModelError, first_line

_ACTIVATIONS: Final[dict[Any, str]] = {functional.relu: "relu", functional.gelu: "gelu"}


def is_known(module: nn.Module) -> bool:
    """Whether it is of a class of `torch.nn` that a manifest may name; subclasses are not."""
    name = type(module).__name__
    known = name in LEAF_CLASSES or name in COMPOSITES or name in CONTAINERS
    return known and type(module) is getattr(nn, name, None)


def arguments_of(class_name: str) -> Mapping[str, Argument]:
    """Constructor arguments of a layer or composite, beside its children."""
    composite = COMPOSITES.get(class_name)
    return LEAF_CLASSES[class_name] if composite is None else composite.arguments


def describe_layer(module: nn.Module) -> dict[str, Any]:
    """The arguments that differ from their defaults, as the manifest has them.

    Args:
        module: of a class for which `is_known` holds, and no container.

    Raises:
        UnsupportedModelError: what its attributes say is no argument of its class.
    """
    given: dict[str, Any] = {}
    for key, argument in arguments_of(type(module).__name__).items():
        value = argument.compact(_plain(_argument(module, key)))
        if not is_default(argument, value):
            given[key] = value
    return given


def build_layer(
    class_name: str,
    given: Mapping[str, Any],
    path: str,
    children: Mapping[str, nn.Module] | None = None,
) -> nn.Module:
    """One layer of `torch.nn`, all arguments passed; on the device of the context.

    Args:
        class_name: of the tables in `layers` and `composites`.
        given: arguments that differ from their defaults.
        path: of the module, for messages.
        children: of a composite.

    Raises:
        ManifestError: "manifest-class" when this version of PyTorch has no such class,
            "manifest-argument" when the class refuses its arguments.
    """
    known = class_name in LEAF_CLASSES or class_name in COMPOSITES
    layer = getattr(nn, class_name, None) if known else None
    if layer is None:
        raise ManifestError("manifest-class", f"module {path!r}: no class {class_name}")
    arguments = {}
    for name, argument in arguments_of(class_name).items():
        value = given.get(name, argument.default)
        arguments[name] = tuple(value) if isinstance(value, list) else value
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the original's constructor gave them
            if class_name in COMPOSITES:
                return _build_composite(class_name, layer, arguments, children or {})
            module: nn.Module = layer(**arguments)
    except (TypeError, ValueError, RuntimeError, AssertionError, ArithmeticError) as error:
        raise ManifestError("manifest-argument", f"module {path!r}: {first_line(error)}") from None
    return module


def _build_composite(
    class_name: str,
    layer: Any,
    arguments: dict[str, Any],
    children: Mapping[str, nn.Module],
) -> nn.Module:
    if class_name == "Transformer":
        module: nn.Module = layer(
            custom_encoder=children["encoder"], custom_decoder=children["decoder"], **arguments
        )
        return module
    layers = children["layers"]
    assert isinstance(layers, nn.ModuleList)  # checked with the manifest
    module = layer(layers[0], len(layers), norm=children.get("norm"), **arguments)
    module.layers = layers  # in place of copies of the first
    return module


def restore_order(module: nn.Module) -> None:
    """Put a layer's own tensors and children in the order of its class, which pruning changes."""
    if not is_known(module) or type(module).__name__ not in LEAF_CLASSES:
        return
    try:
        given = describe_layer(module)
        check_arguments(type(module).__name__, given, "")
        with torch.device("meta"):
            twin = build_layer(type(module).__name__, given, "")
    except (ManifestError, UnsupportedModelError):
        return  # refused where it is described, with its place
    for path, part in twin.named_modules():
        own = dict(module.named_modules()).get(path)
        for key in ("_parameters", "_buffers", "_modules") if own is not None else ():
            entries: dict[str, Any] = getattr(own, key)
            names = list(getattr(part, key))
            if sorted(entries) == sorted(names) and list(entries) != names:
                ordered = {name: entries.pop(name) for name in names}
                entries.update(ordered)


def difference(module: nn.Module, twin: nn.Module) -> str:
    """What a layer has that one built from its arguments has not; empty when they are equal."""
    pairs = zip(module.named_modules(), twin.named_modules(), strict=False)
    for (path, mine), (other_path, other) in pairs:
        if path != other_path or type(mine) is not type(other):
            return "it has other children than its class"
        if _tensors(mine) != _tensors(other) or list(mine._modules) != list(other._modules):
            return "it has other parameters, buffers or children than its class"
        for key, value in vars(other).items():
            public = not key.startswith("_") and key != "training"
            if public and _plain(getattr(mine, key, None)) != _plain(value):
                return f"its {key} is not what its class makes of its arguments"
    return ""


def _argument(module: nn.Module, key: str) -> Any:
    reader = _READERS.get((type(module).__name__, key))
    if reader is not None:
        return reader(module)
    if key == "bias" and not isinstance(vars(module).get("bias"), bool):
        # A LayerNorm without affine parameters does not tell whether it was to have a bias.
        parameters: dict[str, Any] = module._parameters
        return parameters.get("bias") is not None or not getattr(module, "elementwise_affine", True)
    value = getattr(module, key)
    if key == "stride" and LEAF_CLASSES[type(module).__name__][key].default is None:
        return None if _plain(value) == _plain(module.kernel_size) else value
    return value


def _activation(module: Any) -> str:
    name = _ACTIVATIONS.get(module.activation)
    if name is None:
        raise UnsupportedModelError(
            "its activation is neither relu nor gelu of torch.nn.functional"
        )
    return name


_TRANSFORMER_LAYER: Final[dict[str, Callable[[Any], Any]]] = {
    "d_model": lambda m: m.linear1.in_features,
    "nhead": lambda m: m.self_attn.num_heads,
    "dim_feedforward": lambda m: m.linear1.out_features,
    "dropout": lambda m: m.dropout.p,
    "activation": _activation,
    "layer_norm_eps": lambda m: m.norm1.eps,
    "batch_first": lambda m: m.self_attn.batch_first,
    "bias": lambda m: m.linear1.bias is not None,
}

# Arguments that a layer does not keep under their own name.
_READERS: Final[dict[tuple[str, str], Callable[[Any], Any]]] = {
    ("PairwiseDistance", "p"): lambda m: m.norm,
    ("MultiheadAttention", "bias"): lambda m: m.in_proj_bias is not None,
    ("MultiheadAttention", "add_bias_kv"): lambda m: m.bias_k is not None,
    ("MultiheadAttention", "kdim"): lambda m: None if m.kdim == m.embed_dim else m.kdim,
    ("MultiheadAttention", "vdim"): lambda m: None if m.vdim == m.embed_dim else m.vdim,
    **{
        (f"Transformer{kind}Layer", key): reader
        for kind in ("Encoder", "Decoder")
        for key, reader in _TRANSFORMER_LAYER.items()
    },
}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple | list) else value


def _tensors(module: nn.Module) -> list[tuple[str, tuple[int, ...] | None]]:
    return [
        (name, None if tensor is None else tuple(tensor.shape))
        for tensors in (module._parameters, module._buffers)
        for name, tensor in tensors.items()
    ]
