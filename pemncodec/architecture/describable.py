"""What no manifest can describe, and how it is refused: in one line that names module and cause."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NoReturn

from torch import nn
from torch.nn.utils import parametrize

from pemncodec.architecture.layer_modules import is_known
from pemncodec.architecture.layers import LEAF_CLASSES
from pemncodec.architecture.operators import is_name
from pemncodec.architecture.program import UserModule
from pemncodec.errors import UnsupportedModelError

_HOOKS: Final = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)
# A rebuilt module has those of nn.Module; how a checkpoint of old is read is not its matter.
_FIXED_METHODS: Final = (
    "__call__",
    "state_dict",
    "load_state_dict",
    "_save_to_state_dict",
    "_load_from_state_dict",
    "get_extra_state",
    "set_extra_state",
)
_ATTRIBUTES: Final = {"child": "_modules", "parameter": "_parameters", "buffer": "_buffers"}
# Its hooks stay once a model was asked for hidden states; they change no output, and where they are
# asked again, what they add is part of the output that is compared.
_RECORDING: Final = "transformers.utils.output_capturing"
PARAMETER_CONTAINERS: Final = (nn.ParameterList, nn.ParameterDict)


def refuse(module: nn.Module, path: str, cause: str) -> NoReturn:
    name = class_name(module)
    where = f"module {path!r} ({name})" if path else f"the model ({name})"
    cause = cause.partition("\n")[0].rstrip(". ")
    raise UnsupportedModelError(
        f"cannot describe {where}: {cause}; "
        "to store the tensors without the architecture, use manifest=False or --no-manifest"
    )


def class_name(module: nn.Module) -> str:
    return module._get_name() if isinstance(module, UserModule) else type(module).__name__


def check_plain(module: nn.Module, path: str) -> None:
    """Refuse what a rebuilt module would silently lack."""
    _check_names(module, path)
    for below in layer_parts(module):
        if parametrize.is_parametrized(below):
            refuse(
                module,
                path,
                "it has parametrizations (torch.nn.utils.parametrize.remove_parametrizations)",
            )
        for hooks in _HOOKS:
            for hook in (getattr(below, hooks, None) or {}).values():
                of_torch = _is_of_torch_utils(hook)
                # Norms of torch.nn.utils leave this one when they are removed.
                if of_torch and hooks == "_load_state_dict_pre_hooks":
                    continue
                if _module_of(hook) == _RECORDING:
                    continue
                how = " (torch.nn.utils.remove_weight_norm, remove_spectral_norm)"
                refuse(
                    module,
                    path,
                    f"it has hooks ({hooks[1:]}), remove them before encoding{how * of_torch}",
                )
        if not _has_own_forward(below):
            refuse(module, path, "its forward was replaced on the instance")
    if is_known(module):
        return
    changed = changed_method(module, _FIXED_METHODS)
    if changed and not isinstance(module, UserModule):
        refuse(module, path, f"its class changes {changed}")
    of_torch = type(module).__module__.startswith("torch.nn.") and type(module) is not nn.Module
    if of_torch and not isinstance(module, PARAMETER_CONTAINERS):
        refuse(module, path, f"the layer {type(module).__name__} is not supported")


def _check_names(module: nn.Module, path: str) -> None:
    for what in ("child", "parameter", "buffer"):
        named: dict[str, object] = getattr(module, _ATTRIBUTES[what])
        for name, value in named.items():
            if value is not None and not is_name(name):
                refuse(
                    module,
                    path,
                    f"its {what} is called {name!r:.60}, and a file's names are ASCII letters, "
                    "digits, - and _, at most 128, no keyword of Python and without __ in front: "
                    "rename it",
                )


def _has_own_forward(module: nn.Module) -> bool:
    """Whether what a module calls as `forward` goes with it where it is copied."""
    if "forward" not in vars(module):
        return True
    # Any other function may hold on to the module that it was made for.
    bound = getattr(vars(module)["forward"], "__self__", None) is module
    return bound and not is_known(module)


def _is_of_torch_utils(hook: object) -> bool:
    return _module_of(hook).startswith("torch.nn.utils.")


def _module_of(hook: object) -> str:
    hook = getattr(hook, "hook", hook)  # torch wraps some
    function = hook if hasattr(hook, "__qualname__") else type(hook)
    return str(function.__module__)


def layer_parts(module: nn.Module) -> list[nn.Module]:
    """A module, with the modules that it is built of when it is a layer."""
    layer = is_known(module) and type(module).__name__ in LEAF_CLASSES
    return list(module.modules()) if layer else [module]


def changed_method(module: nn.Module, names: Sequence[str]) -> str:
    """The first of these methods that a class outside of PyTorch has changed; or nothing."""
    for name in names:
        for owner in type(module).__mro__:
            if name in vars(owner):
                if not owner.__module__.startswith("torch.nn."):
                    return name
                break
    return ""
