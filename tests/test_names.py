"""Names of tensors: wrappers, prefixes, and the names that a file of tied weights leaves out."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import MaskedNet, applied, official_state, pruned_net, small_net
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.optim.swa_utils import AveragedModel

import pemncodec
from pemncodec import EncodeArgumentError, EncodeError
from pemncodec.checkpoints.dialects import read_masks
from pemncodec.checkpoints.files import load_checkpoint
from pemncodec.checkpoints.names import fitting_prefix, plain_names
from pemncodec.checkpoints.wrappers import without_wrappers
from pemncodec.masking import OneLayer, mask_model

State = dict[str, Tensor]
IMAGES = torch.ones(2, 3, 8, 8)


def encoded(source: Any, **options: Any) -> io.BytesIO:
    stream = io.BytesIO()
    pemncodec.encode(source, stream, **options)
    return stream


# ------------------------------------------------------------------------------------ wrappers


@pytest.mark.parametrize(
    ("names", "like", "expected"),
    [
        # In front of all names.
        (["module.a", "module.b"], [], ["a", "b"]),
        (["module._orig_mod.a", "module._orig_mod.b"], [], ["a", "b"]),
        (["_orig_mod.module.a"], [], ["a"]),
        (["module.module.a"], [], ["a"]),
        (["module._orig_mod.a", "module._orig_mod.b"], ["a", "module.b"], ["a", "b"]),
        (["module.a", "c"], [], ["module.a", "c"]),
        # A network may have its layers in a child called "module".
        (["module.a", "module.b"], ["module.a", "module.b"], ["module.a", "module.b"]),
        (["module._orig_mod.a"], ["module.a"], ["module.a"]),
        (["module.module.a"], ["module.a"], ["module.a"]),
        (["module.c.a", "module.d.a"], ["module.c.a", "d.a"], ["c.a", "d.a"]),
        # Torch's own names, wherever they stand.
        (["a._orig_mod.b", "c.d"], [], ["a.b", "c.d"]),
        (["_fsdp_wrapped_module.a._fsdp_wrapped_module.b"], [], ["a.b"]),
        (["x.0._checkpoint_wrapped_module._orig_mod.w"], [], ["x.0.w"]),
        (["a._orig_mod"], [], ["a._orig_mod"]),  # a tensor of that name
        (["my_orig_mod.a", "_orig_mods.a"], [], ["my_orig_mod.a", "_orig_mods.a"]),
        (["a._orig_mod.b"], ["a._orig_mod.b"], ["a._orig_mod.b"]),
        # "module" in the middle, only if all names then fit and did not before.
        (["f.module.0.w", "c.w"], ["f.0.w", "c.w"], ["f.0.w", "c.w"]),
        (["f.module.0.w", "c.w"], [], ["f.module.0.w", "c.w"]),
        (["f.module.0.w", "c.w"], ["f.module.0.w", "c.w"], ["f.module.0.w", "c.w"]),
        (["f.module.0.w", "x.w"], ["f.0.w", "c.w"], ["f.module.0.w", "x.w"]),
        (["a.module.w", "b.module.w"], ["a.w", "b.module.w"], ["a.w", "b.module.w"]),
        (["a.module.module.w"], ["a.module.w"], ["a.module.w"]),
        (["f.module.fc.weight_orig"], ["f.fc.weight"], ["f.fc.weight_orig"]),
        (["f.module.scores", "f.module.weight"], ["f.weight"], ["f.scores", "f.weight"]),
        (
            ["f.module.parametrizations.weight.0.scores"],
            ["f.weight"],
            ["f.parametrizations.weight.0.scores"],
        ),
        (["a" + ".module" * 40 + ".w"], ["a.w"], ["a" + ".module" * 40 + ".w"]),
        # Two names never merge.
        (["a._orig_mod.w", "a.w"], [], ["a._orig_mod.w", "a.w"]),
        (["a.module.w", "a.w"], ["a.w"], ["a.module.w", "a.w"]),
        # What counts the averages goes with its wrapper.
        (["n_averaged", "module.a", "module.b"], [], ["a", "b"]),
        (["module.a", "n_averaged"], ["a"], ["a"]),
        (["n_averaged", "module._orig_mod.a"], [], ["a"]),
        (["n_averaged", "a"], [], ["n_averaged", "a"]),
        (["n_averaged", "module.a"], ["n_averaged", "module.a"], ["n_averaged", "module.a"]),
        (["n_averaged"], [], ["n_averaged"]),
        (["a.n_averaged", "a.module.w", "b.w"], [], ["a.w", "b.w"]),
        (["a.n_averaged", "a.module.w", "a.b"], [], ["a.n_averaged", "a.module.w", "a.b"]),
        (["an_averaged", "amodule.w"], [], ["an_averaged", "amodule.w"]),
    ],
)
def test_names_without_wrappers(names: list[str], like: list[str], expected: list[str]) -> None:
    kept = [name for name in names if "n_averaged" not in name or len(names) == len(expected)]
    assert list(plain_names(names, like).items()) == list(zip(kept, expected, strict=True))


def official(rename: Any) -> State:
    return {rename(name): tensor for name, tensor in official_state(small_net()).items()}


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: f"_orig_mod.{name}",
        lambda name: name.replace("2.fn.", "2._orig_mod.fn."),
        lambda name: name.replace("2.fn.0.", "2.fn._fsdp_wrapped_module.0."),
        lambda name: name.replace("0.", "0._checkpoint_wrapped_module.", 1),
        lambda name: name.replace("2.fn.", "2.fn.module."),
        lambda name: f"module.{name}".replace("2.fn.", "2.module.fn.module."),
    ],
)
def test_checkpoints_of_wrapped_models(rename: Any) -> None:
    options = {"keep": 0.5, "architecture": small_net(1), "example_inputs": IMAGES}
    state = official(rename)
    assert list(state) != list(official_state(small_net()))
    plain = encoded(official_state(small_net()), **options)
    assert encoded(state, **options).getvalue() == plain.getvalue()


def test_averaged_models(small: MaskedNet) -> None:
    plain = io.BytesIO()
    small.encode(plain)
    averaged = AveragedModel(small.module)
    stream = encoded(averaged, masks=small.masks, example_inputs=small.inputs)
    assert stream.getvalue() == plain.getvalue()
    masks = {f"module.{name}": mask for name, mask in small.masks.items()}
    for options in ({"masks": masks}, {"masks": small.masks}):
        for source in (averaged, averaged.state_dict()):
            if source is not averaged:
                options["architecture"] = small_net(3)
            stream = encoded(source, example_inputs=small.inputs, **options)
            assert stream.getvalue() == plain.getvalue()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's compiler itself
def test_a_compiled_architecture(small: MaskedNet) -> None:
    plain = io.BytesIO()
    small.encode(plain)
    stream = encoded(
        small.module.state_dict(),
        masks=small.masks,
        architecture=torch.compile(small_net(2)),
        example_inputs=small.inputs,
    )
    assert stream.getvalue() == plain.getvalue()


def test_names_that_would_merge_are_told_apart() -> None:
    state = {"a._orig_mod.weight": torch.ones(2), "a.weight": torch.zeros(2)}
    masks = dict.fromkeys(state, torch.ones(2))
    assert list(pemncodec.load_state_dict(encoded(state, masks=masks, manifest=False))) == list(
        state
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's compiler itself
@pytest.mark.parametrize(
    ("wrap", "inserted"),
    [
        (torch.compile, "_orig_mod."),
        (nn.DataParallel, "module."),
        (checkpoint_wrapper, "_checkpoint_wrapped_module."),
        (AveragedModel, "module."),
        (lambda module: nn.DataParallel(torch.compile(module)), "module._orig_mod."),
    ],
    ids=["compile", "DataParallel", "checkpointing", "AveragedModel", "both"],
)
def test_modules_with_wrappers_within(small: MaskedNet, wrap: Any, inserted: str) -> None:
    plain = io.BytesIO()
    small.encode(plain)
    module = small_net()
    module[2].fn = wrap(module[2].fn)
    before = [type(below) for below in module.modules()]
    wrapped = {name.replace("fn.", f"fn.{inserted}"): mask for name, mask in small.masks.items()}
    for masks in (small.masks, wrapped):
        stream = encoded(module, masks=masks, example_inputs=small.inputs)
        assert stream.getvalue() == plain.getvalue()
    assert [type(below) for below in module.modules()] == before  # its source stays as it was
    state = dict(module.state_dict())
    stream = encoded(
        state, masks=small.masks, architecture=small_net(4), example_inputs=small.inputs
    )
    assert stream.getvalue() == plain.getvalue()


# ------------------------------------------------------------------------------------ prefixes


def test_a_prefix_is_left_out_with_all_that_lack_it() -> None:
    state = official(lambda name: f"model._orig_mod.{name}") | {"loss.weight": torch.ones(2)}
    options = {"keep": 0.5, "architecture": small_net(1), "example_inputs": IMAGES}
    plain = encoded(official_state(small_net()), **options)
    for prefix in ("model.", "model", "model._orig_mod."):
        stream = io.BytesIO()
        report = pemncodec.encode(state, stream, prefix=prefix, **options)
        assert stream.getvalue() == plain.getvalue()
        words = f"left out, since their names do not begin with {prefix}: loss.weight"
        assert words in report.notes
    tensors = encoded(state, keep=0.5, prefix="model.", manifest=False)
    assert list(pemncodec.load_state_dict(tensors)) == list(small_net().state_dict())


@pytest.mark.parametrize("prefix", ["model.", "net.encoder."])
def test_the_prefix_is_proposed(prefix: str) -> None:
    options = {"keep": 0.5, "architecture": small_net(1), "example_inputs": IMAGES}
    for state in (
        official(lambda name: prefix + name),
        official(lambda name: prefix + name) | {"loss.weight": torch.ones(2)},
    ):
        with pytest.raises(EncodeArgumentError, match=rf"--prefix {prefix} \(prefix='{prefix}'\)"):
            encoded(state, **options)
    pruned = {prefix + name: tensor for name, tensor in pruned_net().state_dict().items()}
    with pytest.raises(EncodeArgumentError, match=f"--prefix {prefix} "):
        encoded(pruned, architecture=small_net(1), example_inputs=IMAGES)
    encoded(pruned, architecture=small_net(1), example_inputs=IMAGES, prefix=prefix)


def test_no_prefix_is_proposed_where_none_fits() -> None:
    assert fitting_prefix(["model.a.weight"], ["a.weight", "b.weight"]) is None
    assert fitting_prefix(["a.weight"], ["a.weight"]) is None
    assert fitting_prefix(["a.weight"], []) is None
    assert fitting_prefix(["xa.weight"], ["a.weight"]) is None
    assert fitting_prefix(["model.weight"], ["weight"]) == "model."
    assert fitting_prefix(["model.weight_orig", "model.a.b"], ["weight", "a.b"]) == "model."
    with pytest.raises(EncodeError, match=r"the checkpoint has x\.weight, the arch"):
        encoded(scores_of("x."), keep=0.5, architecture=small_net(), example_inputs=IMAGES)


def scores_of(prefix: str) -> State:
    return {f"{prefix}{name}": torch.randn(3, 4) for name in ("weight", "scores")}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"prefix": "modle."}, r"no tensor's name begins with modle\.; they begin with fc"),
        ({"prefix": "f"}, r"no tensor's name begins with f\."),
        ({"prefix": ""}, "must be the beginning of names, not ''"),
        ({"prefix": 5}, "must be the beginning of names, not 5"),
    ],
)
def test_prefixes_that_do_not_fit(options: Any, words: str) -> None:
    with pytest.raises(EncodeArgumentError, match=words):
        encoded(scores_of("fc."), keep=0.5, manifest=False, **options)


def test_a_module_has_no_prefix() -> None:
    with pytest.raises(EncodeArgumentError, match="not for a module"):
        encoded(nn.Linear(3, 2), masks={"weight": torch.ones(2, 3)}, prefix="model.")


# ---------------------------------------------------------------------------------------- ties


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.body = nn.Linear(4, 4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.embed(x)))


@pytest.mark.parametrize("left_out", ["embed.weight", "head.weight"])
@pytest.mark.parametrize("masked", ["body", "embed", "head"])
def test_a_name_that_a_file_of_tied_weights_leaves_out(
    left_out: str, masked: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model, tokens = Tied(), torch.arange(5).reshape(1, 5)
    state = {name: tensor for name, tensor in model.state_dict().items() if name != left_out}
    save_file(state, tmp_path / "model.safetensors")
    name = f"{masked}.weight"
    masks = {name: torch.rand(model.get_parameter(name).shape) < 0.5}
    options = {"masks": masks, "example_inputs": tokens}
    stream = encoded(
        load_checkpoint(tmp_path / "model.safetensors"), architecture=Tied(), **options
    )
    assert stream.getvalue() == encoded(model, **options).getvalue()
    decoded = pemncodec.decode(stream)
    assert decoded.head.weight is decoded.embed.weight


@pytest.mark.parametrize("left_out", ["embed.weight", "head.weight"])
def test_the_prefix_of_tied_weights_is_proposed(left_out: str) -> None:
    state = {f"lm.{name}": tensor for name, tensor in Tied().state_dict().items()}
    del state[f"lm.{left_out}"]
    options = {"masks": {"body.weight": torch.ones(4, 4)}, "architecture": Tied()}
    tokens = torch.arange(5).reshape(1, 5)
    with pytest.raises(EncodeArgumentError, match=r"--prefix lm\. \(prefix='lm\.'\)"):
        encoded(state, example_inputs=tokens, **options)
    stream = encoded(state, example_inputs=tokens, prefix="lm.", **options)
    assert list(pemncodec.load_state_dict(stream)) == list(Tied().state_dict())


def test_tied_weights_with_scores_or_pruning() -> None:
    torch.manual_seed(0)
    state = dict(Tied().state_dict())
    del state["head.weight"]
    scored = state | {"embed.scores": torch.randn(5, 4)}
    tokens = torch.arange(5).reshape(1, 5)
    stream = encoded(scored, keep=0.5, architecture=Tied(), example_inputs=tokens)
    with pemncodec.open(stream) as file:
        assert file.aliases == {"head.weight": "embed.weight"}
        assert file.mask("embed.weight").sum() == 10
    masked = mask_model(Tied(), OneLayer(), keep=0.5).state_dict()
    less = {name: tensor for name, tensor in masked.items() if not name.startswith("head.")}
    assert len(less) < len(masked)
    stream = encoded(less, architecture=Tied(), example_inputs=tokens)
    whole = encoded(masked, architecture=Tied(), example_inputs=tokens)
    assert stream.getvalue() == whole.getvalue()


def test_a_name_that_nothing_ties_is_still_missing() -> None:
    state = applied(official_state(small_net()), 0.5)
    del state["5.weight"]
    with pytest.raises(EncodeError, match=r"the architecture has 5\.weight, the check"):
        encoded(
            state,
            masks={"0.weight": np.ones((4, 3, 3, 3))},
            architecture=small_net(),
            example_inputs=IMAGES,
        )


def test_a_tied_name_of_another_value_is_not_filled() -> None:
    state = dict(Tied().state_dict())
    state["head.weight"] = state["head.weight"] + 1
    with pytest.raises(EncodeError, match="are one tensor in the architecture, but differ"):
        encoded(
            state,
            masks={"body.weight": torch.ones(4, 4)},
            architecture=Tied(),
            example_inputs=torch.arange(5).reshape(1, 5),
        )


def test_plain_names_are_left_as_they_are() -> None:
    names = list(small_net().state_dict())
    assert plain_names(names) == plain_names(names, names) == {name: name for name in names}
    assert list(read_masks(official_state(small_net()), keep=0.5).tensors) == names


def test_the_shortest_prefix_is_proposed() -> None:
    assert fitting_prefix(["zz.fc.weight", "a.b.fc.weight"], ["fc.weight"]) == "zz."
    assert fitting_prefix(["aaaa.x", "aaaa.fc.weight", "bb.fc.weight"], ["fc.weight"]) == "bb."


def test_children_that_are_none_beside_wrappers() -> None:
    model = nn.Sequential(nn.DataParallel(nn.Linear(4, 4)), nn.Linear(4, 2))
    model.register_module("shortcut", None)
    plain = without_wrappers(model)
    assert list(plain.state_dict()) == ["0.weight", "0.bias", "1.weight", "1.bias"]
