"""The conformance vectors of spec/vectors, through this package and the reference decoder."""

from __future__ import annotations

import contextlib
import copy
import json
import random
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import pytest
import reference_lists as lists
import reference_shards as shards
import reference_tensors as tensors
import torch

import pemncodec
from pemncodec.architecture import layers, operators
from pemncodec.architecture.arguments import REQUIRED, Argument
from pemncodec.architecture.composites import COMPOSITES
from pemncodec.architecture.layer_modules import build_layer
from pemncodec.architecture.manifest import validate_manifest
from pemncodec.errors import DecodeError, ErrorCode
from pemncodec.format.file_digest import file_digest
from pemncodec.format.header import decode_header
from pemncodec.format.index import decode_index
from pemncodec.limits import Limits

SPEC = Path(__file__).parent.parent / "spec"
VECTORS = SPEC / "vectors"
Entry = dict[str, Any]
INDEX: list[Entry] = json.loads((VECTORS / "index.json").read_text(encoding="utf-8"))


def entries(chosen: Callable[[Entry], bool]) -> list[Any]:
    return [pytest.param(entry, id=entry["name"]) for entry in INDEX if chosen(entry)]


VALID = entries(lambda entry: "tensors" in entry)
INVALID = entries(lambda entry: "error" in entry and "asked_for" not in entry)
REFUSED = entries(lambda entry: entry.get("asked_for") == "module")
MODULES = entries(lambda entry: "modules" in entry and "trust" not in entry)
INVALID_MANIFESTS = entries(
    lambda entry: entry["name"].startswith(("invalid-manifest-", "invalid-limit-manifest-"))
)


# ------------------------------------------------------------------------- tensors and codes


@pytest.mark.parametrize("entry", VALID)
def test_valid(entry: Entry) -> None:
    with pemncodec.open(VECTORS / entry["file"]) as file:
        file.verify()
        tensors = {
            name: {
                "dtype": file.dtype(name),
                "shape": list(file.shape(name)),
                "crc32": f"{zlib.crc32(file.tensor(name).tobytes()):08x}",
            }
            for name in file.keys()  # noqa: SIM118
        }
        assert file_digest(file) == entry["digest"]
    assert list(tensors.items()) == list(entry["tensors"].items())


@pytest.mark.parametrize("entry", INVALID)
def test_invalid(entry: Entry) -> None:
    def verify() -> None:
        with pemncodec.open(VECTORS / entry["file"]) as file:
            file.verify()

    with pytest.raises(DecodeError) as caught:
        verify()
    assert caught.value.code == entry["error"], caught.value


@pytest.mark.parametrize("entry", VALID)
def test_reference_decoder_reads_valid(entry: Entry) -> None:
    decoded = shards.read(VECTORS / entry["file"])
    assert decoded.digest() == entry["digest"]
    with pemncodec.open(VECTORS / entry["file"]) as file:
        assert decoded.manifest == file.manifest
        assert decoded.metadata == file.metadata
    assert {
        name: {"dtype": dtype, "shape": shape, "crc32": f"{zlib.crc32(data):08x}"}
        for name, (dtype, shape, data) in decoded.tensors.items()
    } == entry["tensors"]
    if "modules" in entry:
        assert list(decoded.classes.items()) == list(entry["modules"].items())


@pytest.mark.parametrize("entry", INVALID)
def test_reference_decoder_refuses_invalid(entry: Entry, reference: ModuleType) -> None:
    with pytest.raises(reference.PemnError) as caught:
        shards.read(VECTORS / entry["file"])
    assert caught.value.code == entry["error"], caught.value


# ----------------------------------------------------------------------------------- modules


@pytest.mark.parametrize("entry", INVALID_MANIFESTS)
def test_no_module_of_an_invalid_manifest(entry: Entry) -> None:
    with pytest.raises(DecodeError) as caught:
        pemncodec.decode(VECTORS / entry["file"])
    assert caught.value.code == entry["error"], caught.value


@pytest.mark.parametrize("entry", REFUSED)
def test_refused(entry: Entry) -> None:
    with pytest.raises(DecodeError) as caught:
        pemncodec.decode(VECTORS / entry["file"], trust=entry.get("trust", ()))
    assert caught.value.code == entry["error"], caught.value


@pytest.mark.parametrize("entry", REFUSED)
def test_reference_decoder_refuses(entry: Entry, reference: ModuleType) -> None:
    code = None
    try:
        data = (VECTORS / entry["file"]).read_bytes()
        reference.Decoder(data, as_module=True, trust=entry.get("trust", ()))
    except reference.PemnError as error:
        code = error.code
    if "package_alone" in entry:
        assert len(entry["package_alone"]) > 20
        assert code != entry["error"], "the reference decoder tells: say so in the index"
        assert code in (None, "manifest-tensor", "checksum")  # what comes later (10.1)
    else:
        assert code == entry["error"]


@pytest.mark.parametrize("entry", MODULES)
def test_module(entry: Entry) -> None:
    path = VECTORS / entry["file"]
    module = pemncodec.decode(path)
    assert not module.training
    classes = {name: module.get_submodule(name)._get_name() for name in entry["modules"]}
    assert classes == entry["modules"]
    with pemncodec.open(path) as file:
        manifest = file.manifest or {}
        frozen = {*manifest.get("frozen", []), *file.masked_keys()}
    state = module.state_dict()
    assert list(state) == [
        n for n in entry["tensors"] if n not in manifest.get("nonpersistent", [])
    ]
    for name, tensor in state.items():
        assert entry["tensors"][name]["crc32"] == f"{zlib.crc32(tensor.numpy().tobytes()):08x}"
    assert {name for name, p in module.named_parameters() if not p.requires_grad} == frozen
    for call in entry.get("calls", []):
        with torch.no_grad():
            outputs = module(*[tensor_of(item) for item in call["inputs"]])
        assert [*map(described, flat(outputs))] == [*map(without_name, call["outputs"])]


def tensor_of(item: Entry) -> torch.Tensor:
    return torch.tensor(item["values"], dtype=getattr(torch, item["dtype"])).reshape(item["shape"])


def flat(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from flat(item)
    elif value is not None:
        yield value


def described(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    items = torch.view_as_real(value) if value.is_complex() else value
    dtype = str(value.dtype).removeprefix("torch.")
    return dtype, list(value.shape), [float(item) for item in items.flatten().tolist()]


def without_name(item: Entry) -> Any:
    if "number" in item:
        return item["number"]
    return item["dtype"], item["shape"], [float(number) for number in item["values"]]


def test_trusted_builder(monkeypatch: pytest.MonkeyPatch) -> None:
    (entry,) = [entry for entry in INDEX if entry["name"] == "manifest-builder"]

    def linear(sizes: list[int]) -> torch.nn.Module:
        module = torch.nn.Module()
        module.fc = torch.nn.Linear(*sizes, bias=False)
        module.register_buffer("shift", torch.zeros(1))
        return module

    nets = ModuleType("pkg.nets")
    nets.linear = linear  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pkg", ModuleType("pkg"))
    monkeypatch.setitem(sys.modules, "pkg.nets", nets)
    module = pemncodec.decode(VECTORS / entry["file"], trust=entry["trust"])
    assert isinstance(module.fc, torch.nn.Linear)
    assert module.state_dict().keys() == entry["tensors"].keys()
    assert list(pemncodec.load_state_dict(VECTORS / entry["file"])) == list(entry["tensors"])


# ------------------------------------------------------------------------------- one order


def code_of(check: Callable[[], object]) -> str | None:
    try:
        check()
    except Exception as error:
        code: str | None = getattr(error, "code", None)
        if code is None:
            raise
        return code
    return None


ODD: list[Any] = [
    *(
        "%0",
        "%1",
        "%9",
        "Linear",
        "Net",
        "Block",
        "0",
        "blocks.0.fn",
        "x",
        "",
        "...",
        "same",
        "weight",
    ),
    *(
        "forward",
        "ModuleList",
        "Sequential",
        "none",
        "float32",
        "shape",
        "torch.relu",
        "view",
        "a.b",
    ),
    *("__x__", "if", None, True, False, 0, 1, -1, 4, 1.5, 1 << 20, 1 << 31, (1 << 31) + 1, [], {}),
    *("be99999a", "0" * 8, "7fc00000", "torch", "uniform", "scalar", -1, -1049, 1 << 33, 1 << 60),
    *([1], ["x"], [["w", [2]]], {"tuple": [1]}, {"dtype": "int8"}, {"float": "nan"}, [None]),
    *("0.5", "1.0", "x.pemn", "../x.pemn"),
    *({"slice": [1, 2, 3]}, {"dict": [["a", 1]]}, [[0, 3]], [1] * 17, {"cls": "ReLU"}),
]
KEYS = """
    cls graph same children name fn args out in kwargs mod attr meth get params buffers train_graph
    dtype shape sizes default only bias ?x format inputs frozen nonpersistent tree graphs training
    sections tensors masked masks dense constant alias prototypes seeded stored metadata kind length
    section error value target period offset scale prototype later
    torch gap low high variant
    shared file digest
    version shards weight_map size front_crc manifest
""".split()  # noqa: SIM905


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in a JSON value."""
    found: list[tuple[Any, Any]] = []
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            found += [(value, key), *places(value[key])]
    return found


def spoil(value: Any, some: random.Random) -> Any:
    """A copy with one to three changes somewhere."""
    root = [copy.deepcopy(value)]
    for _ in range(some.randint(1, 3)):
        all_places = places(root)
        container, key = some.choice(all_places)
        other, other_key = some.choice(all_places)
        how = some.random()
        if how < 0.5:
            container[key] = copy.deepcopy(some.choice(ODD))
        elif how < 0.7:
            container[key] = copy.deepcopy(other[other_key])
        elif how < 0.85 and isinstance(container, dict):
            container[some.choice(KEYS)] = copy.deepcopy(some.choice(ODD))
        elif isinstance(container, list):
            container.insert(some.randint(0, len(container)), copy.deepcopy(some.choice(ODD)))
        else:
            del container[key]
        if not root:
            root.append(None)
    return root[0]


def manifests_of(reference: ModuleType, names: list[str]) -> list[Any]:
    by_name = {entry["name"]: entry["file"] for entry in INDEX}
    return [reference.Decoder((VECTORS / by_name[name]).read_bytes()).manifest for name in names]


@pytest.mark.parametrize("seed", range(4))
def test_both_readers_find_the_same_fault_of_a_manifest_first(
    seed: int, reference: ModuleType
) -> None:
    """Not only in the files of the vectors: whatever is changed, in one to three places."""
    names = ["manifest-graph", "manifest-exported", "manifest-composites", "manifest-shared"]
    names += ["manifest-train-graph", "manifest-boundaries", "manifest-builder", "manifest-layers"]
    manifests = manifests_of(reference, names)
    some = random.Random(seed)
    codes = set()
    for _ in range(1000):
        manifest = spoil(some.choice(manifests), some)
        mine = code_of(lambda: validate_manifest(manifest, Limits()))  # noqa: B023
        its = code_of(lambda: reference.check_manifest(manifest))  # noqa: B023
        assert mine == its, json.dumps(manifest)
        codes.add(mine)
    assert codes >= {None, *(f"manifest-{end}" for end in ("schema", "name", "op", "argument"))}


@pytest.mark.parametrize("seed", range(4))
def test_both_readers_find_the_same_fault_of_a_header_first(
    seed: int, reference: ModuleType
) -> None:
    headers = []
    for name in (
        "shared-prototype",
        "stored-masks",
        "alias",
        "dense-error",
        "no-elements",
        "metadata",
        "torch-seeds-and-gaps",
        "torch-uniform-scalar",
        "prototype-in-another-file",
    ):
        with (VECTORS / f"{name}.pemn").open("rb") as stream:
            headers.append(header_of(reference, stream.read()))
    some = random.Random(seed)
    codes = set()
    for _ in range(1500):
        header, count = some.choice(headers)
        header = spoil(header, some)
        text = json.dumps(header).encode()
        mine = code_of(lambda: decode_header(text, count, Limits()))  # noqa: B023
        its = code_of(lambda: read_header(reference, header, count))  # noqa: B023
        assert mine == its, text
        codes.add(mine)
    assert codes == {None, "header", "unknown-field", "limit"}


@pytest.mark.parametrize("seed", range(2))
def test_both_readers_find_the_same_fault_of_an_index_first(seed: int) -> None:
    index = json.loads((VECTORS / "sharded" / "net.pemn.index.json").read_bytes())
    some = random.Random(seed)
    codes = set()
    for _ in range(3000):
        text = json.dumps(spoil(index, some)).encode()
        mine = code_of(lambda: decode_index(text, Limits()))  # noqa: B023
        its = code_of(lambda: shards.read_index(text))  # noqa: B023
        assert mine == its, text
        codes.add(mine)
    assert codes == {None, "header", "unknown-field", "not-pemn", "version"}


def header_of(reference: ModuleType, data: bytes) -> tuple[Any, int]:
    decoder = reference.Decoder(data, front_only=True)
    return decoder.read_container(data), len(decoder.kinds)


def read_header(reference: ModuleType, header: Any, count: int) -> None:
    decoder = object.__new__(reference.Decoder)
    decoder.entries = [(0, 0, 0)] * count
    decoder.read_header(header)


# --------------------------------------------------------------------------- the text of the spec


def test_the_text_lists_what_the_package_knows() -> None:
    assert lists.FUNCTIONS == operators.FUNCTIONS
    assert lists.METHODS == operators.METHODS
    assert lists.ATTRIBUTES == operators.ATTRIBUTES
    assert lists.DTYPES == operators.DTYPES
    assert lists.WORDS == operators._WORDS
    assert lists.KEYWORDS == operators._KEYWORDS
    assert lists.GROWING == operators._GROWING
    assert {name for name in operators.FUNCTIONS if name.split(".")[1] in lists.FACTORIES} == {
        name for name in operators.FUNCTIONS if name in operators.FACTORIES
    }
    own = {name: composite.arguments for name, composite in COMPOSITES.items()}
    tables = {**layers.LEAF_CLASSES, **own}
    assert tables.keys() == lists.LAYERS.keys()
    for cls, arguments in tables.items():
        assert {name: domain_of(argument) for name, argument in arguments.items()} == {
            name: (
                argument.required,
                repr(argument.default),
                (argument.low, argument.high),
                argument.kind == "x",
                argument.kind == "b",
                sorted(argument.words),
                argument.null,
                argument.lengths,
                argument.counted,
            )
            for name, argument in lists.LAYERS[cls].items()
        }, cls


def domain_of(argument: Argument) -> tuple[Any, ...]:
    required = argument.default is REQUIRED
    return (
        required,
        repr(None if required else argument.default),
        argument.integers or (0, 0),
        argument.numbers,
        argument.flag,
        sorted(argument.words),
        argument.none,
        argument.lengths,
        max(argument.repeat, 1) if argument.sized else 0,
    )


def test_the_text_lists_the_errors_and_limits() -> None:
    text = (SPEC / "pemn.md").read_text(encoding="utf-8")
    errors = text.partition("\n## 10 Errors")[2].partition("\n### 10.1")[0]
    listed = [line.split("`")[1] for line in errors.splitlines() if line.startswith("| `")]
    assert listed == list(dict.fromkeys(listed))
    assert set(listed) == set(get_args(ErrorCode))
    rows = text.partition("\n## 9 Limits")[2].partition("\n## 10")[0].splitlines()
    cells = [row.split(" | ") for row in rows if row.startswith("| `")]
    limits = {name.strip("| `"): value for name, value, _ in cells}
    assert limits.keys() == set(Limits.__dataclass_fields__)
    for name, value in limits.items():
        base, _, exponent = value.partition("^")
        assert getattr(Limits(), name) == int(base) ** int(exponent or 1)


@pytest.mark.parametrize("cls", layers.LEAF_CLASSES)
def test_the_reference_knows_the_tensors_of_each_layer(cls: str) -> None:
    """As PyTorch makes them of any arguments that it accepts."""
    some = random.Random(cls)
    built = 0
    for _ in range(60):
        given = {
            n: any_value(d, some)
            for n, d in lists.LAYERS[cls].items()
            if d.required or some.random() < 0.5
        }
        with contextlib.suppress(DecodeError), torch.device("meta"):
            state = build_layer(cls, given, "").state_dict()
            shapes = {name: list(tensor.shape) for name, tensor in state.items()}
            assert shapes == tensors.layer_tensors(cls, given)
            built += 1
    assert built > 1


def any_value(domain: Any, some: random.Random) -> Any:
    if domain.words and (domain.kind == "" or some.random() < 0.2):
        return some.choice(domain.words)
    if domain.null and some.random() < 0.4:
        return None

    def number() -> Any:
        if domain.kind == "b":
            return some.random() < 0.5
        if domain.kind == "x":
            return some.choice([0.5, 0, 1, 0.25])
        return some.choice([n for n in (1, 2, 3, 4, 8) if domain.low <= n <= domain.high])

    if domain.lengths and some.random() < 0.5:
        return [number() for _ in range(some.choice(domain.lengths[:4]))]
    return number()


# -------------------------------------------------------------------------------- the corpus


def test_corpus_is_whole() -> None:
    assert len(VALID) >= 100
    assert len(INVALID) >= 800
    assert len(REFUSED) >= 40
    assert len(MODULES) >= 12
    assert len(VALID) + len(INVALID) + len(REFUSED) == len(INDEX)
    files = {path.name for path in VECTORS.glob("*.pemn")}
    files |= {f"sharded/{path.name}" for path in (VECTORS / "sharded").glob("*.index.json")}
    assert {entry["file"] for entry in INDEX} == files
    assert len({entry["name"] for entry in INDEX}) == len(INDEX)
    assert len({entry["name"].lower() for entry in INDEX}) == len(INDEX)


@pytest.mark.parametrize("code", get_args(ErrorCode))
def test_every_code_has_a_vector(code: ErrorCode) -> None:
    """And one that both readers find, but for what takes PyTorch to know."""
    found = [entry for entry in INDEX if entry.get("error") == code]
    assert found
    assert code == "manifest-run" or any("package_alone" not in entry for entry in found)


def test_vectors_are_small() -> None:
    sizes = [path.stat().st_size for path in VECTORS.glob("**/*.*") if path.name != "index.json"]
    assert max(sizes) < 1 << 16
    assert sum(sizes) < 1 << 19


def test_worked_example_of_the_spec(reference: ModuleType) -> None:
    text = (SPEC / "pemn.md").read_text(encoding="utf-8").partition("## Appendix A")[2]
    rows = [line.split() for line in text.splitlines() if line.startswith("    00")]
    data = bytes.fromhex("".join("".join(row[1:]) for row in rows))
    decoded = reference.Decoder(data)
    assert {name: zlib.crc32(items) for name, (_, _, items) in decoded.tensors.items()} == {
        "weight": 0x0929AC65,
        "bias": 0x5109F6FE,
    }
    whole = (SPEC / "pemn.md").read_text(encoding="utf-8")
    assert decoded.digest() == pemncodec.digest(data)
    assert f"`{decoded.digest()}`" in whole.partition("### 3.5")[2].partition("## 4 ")[0]
