"""Every other form of a model, measured by several threads, by a sample where that takes long."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from types import MappingProxyType
from typing import Final

from pemncodec.errors import EncodeArgumentError
from pemncodec.report.dense_forms import DENSE_FORMS
from pemncodec.report.form import Form, FormBytes, FormError, Network
from pemncodec.report.peers import PEER_FORMS, is_installed
from pemncodec.report.sparse_forms import SPARSE_FORMS
from pemncodec.threads import available_threads

FORMS: Final[Mapping[str, Form]] = MappingProxyType(
    {form.key: form for form in (*DENSE_FORMS, *PEER_FORMS, *SPARSE_FORMS)}
)


def check_forms(keys: Collection[str]) -> Collection[str]:
    """Keys of `FORMS`, for keys that may be short: `zipnn` is `safetensors_zipnn`.

    Raises:
        EncodeArgumentError: one is no form's; names those that there are.
    """
    whole = {key.removeprefix("safetensors_"): key for key in FORMS} | {key: key for key in FORMS}
    for key in keys:
        if key not in whole:
            raise EncodeArgumentError(f"unknown form {key!r:.60}, have {', '.join(FORMS)}")
    return [whole[key] for key in keys]


def measure_forms(
    network: Network,
    keys: Collection[str] | None = None,
    *,
    exact: bool = False,
    progress: Callable[[str, float], None] = lambda _, __: None,
) -> tuple[dict[str, FormBytes], dict[str, str]]:
    """What a model takes in other forms.

    Args:
        network: the model.
        keys: of the forms; None for all whose packages are installed.
        exact: measure all of a model, however long that takes.
        progress: called with the title of a form that is still at work, and the share of forms
            that are done.

    Returns:
        By key, in the order of `FORMS`, what the model takes, and why a form cannot hold it.
    """
    chosen = [form for form in FORMS.values() if _is_chosen(form, keys)]
    # Those that take long begin first.
    waiting = sorted(chosen, key=lambda form: form.most_bytes is None)
    found: dict[str, FormBytes] = {}
    failures: dict[str, str] = {}
    with ThreadPoolExecutor(available_threads()) as pool:
        running = {pool.submit(_measure, form, network, exact=exact): form for form in waiting}
        while running:
            progress(next(iter(running.values())).title, 1 - len(running) / len(chosen))
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                form = running.pop(future)
                try:
                    made = future.result()
                except FormError as error:
                    failures[form.key] = str(error)
                else:
                    if made is not None:
                        found[form.key] = made
    ordered = {form.key: found[form.key] for form in chosen if form.key in found}
    return ordered, failures


def _is_chosen(form: Form, keys: Collection[str] | None) -> bool:
    if keys is not None:
        return form.key in keys
    return form.package is None or is_installed(form.package)


def _measure(form: Form, network: Network, *, exact: bool) -> FormBytes | None:
    if form.package is not None and not is_installed(form.package):
        raise FormError(f"{form.package} is not installed")
    if exact or form.most_bytes is None or network.nbytes <= form.most_bytes:
        return form.measure(network)
    return _estimate(form, network, form.most_bytes)


def _estimate(form: Form, network: Network, nbytes: int) -> FormBytes | None:
    """By what the larger of two samples takes beyond the smaller, so that beginnings cancel out."""
    samples = network.sample(nbytes // 4), network.sample(nbytes)
    small, large = (form.measure(sample) for sample in samples)
    if small is None or large is None:
        return None
    more = samples[1].nbytes - samples[0].nbytes
    rate = (large.bytes - small.bytes) / more if more else large.bytes / samples[1].nbytes
    rest = network.nbytes - samples[1].nbytes
    return FormBytes(round(large.bytes + max(0.0, rate) * rest), large.error, estimated=True)
