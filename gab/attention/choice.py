"""Which backend computes attention: a rule, which the config (`run.attention`) or the environment may overrule.

`auto` is, in this order,

    reference   while a network is exported, or where a hook on the dropout wants to see the weights
    fused       on a CUDA device with Triton, for scores with a bias or weights with dropout, where the kernels can
    sdpa        otherwise

GAB_ATTENTION=NAME in the environment stands in place of every `auto`, and goes before `run.attention`. Where timm's
switch is off (TIMM_FUSED_ATTN=0, or `fused_attn` of a layer), it is `reference` whatever else is said.
"""

import functools
import importlib.util
import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from gab.errors import UserError, check_choice

NAMES = ("auto", "reference", "sdpa", "fused")
FORCED = os.environ.get("GAB_ATTENTION", "auto")

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MAX_DEPTH, MAX_TOKENS = 128, 1088  # of the kernels: a head's width, and tokens whose sums fit into registers


def choose(backend: str, q: Tensor, bias: Tensor | None, dropout: Any) -> str:
    """The name of the backend that computes this call.

    Raises:
        UserError: an unknown name, or `fused` where it is not possible.
    """
    if torch.compiler.is_exporting():
        return "reference"
    if backend == "auto":
        backend = FORCED
    if backend != "auto":
        check_choice("run.attention", backend, NAMES)
        if backend == "fused" and (reason := _obstacle(q)):
            raise _impossible(reason)
        return backend
    if dropout is not None and (dropout._forward_hooks or dropout._forward_pre_hooks):
        return "reference"
    drops = dropout is not None and dropout.training and dropout.p > 0
    if q.is_cuda and (bias is not None or drops) and _obstacle(q) is None:
        return "fused"
    return "sdpa"


def wanted(backend: str) -> str:
    """What the environment says, or else `backend`."""
    return backend if FORCED == "auto" else FORCED


def check(backend: str, device: str) -> None:
    """Refuse `run.attention`, or what the environment says, before a device is touched.

    Raises:
        UserError: an unknown name, or `fused` without Triton or CUDA.
    """
    check_choice("run.attention", backend, NAMES)
    check_choice("GAB_ATTENTION", FORCED, NAMES)
    if wanted(backend) == "fused" and (reason := _uninstalled(device)):
        raise _impossible(reason)


def use(model: nn.Module, backend: str) -> None:
    """Has every attention of `model` computed by `backend`, a name of `NAMES`."""
    for module in _attentions(model):
        module.attention_backend = backend


def describe(model: nn.Module, backend: str, device: torch.device) -> str | None:
    """What computes the attention of `model`, and why, in a few words; None where it has none of ours."""
    attentions = list(_attentions(model))
    if not attentions:
        return None
    if not any(module.fused_attn for module in attentions):
        return "reference (TIMM_FUSED_ATTN)"
    if wanted(backend) != "auto":
        return f"{wanted(backend)} ({'run.attention' if FORCED == 'auto' else 'GAB_ATTENTION'})"
    reason = _missing(device.type)
    if reason:
        return f"sdpa ({reason})"
    return f"fused where scores have a bias and at most {MAX_TOKENS} tokens, sdpa elsewhere"


def _attentions(model: nn.Module) -> Iterator[Any]:
    return (module for module in model.modules() if hasattr(module, "attention_backend"))


def _impossible(reason: str) -> UserError:
    return UserError(f"fused attention is not possible here ({reason}): set run.attention=auto, unset GAB_ATTENTION")


def _obstacle(q: Tensor) -> str | None:
    """Why the kernels cannot take this call; None if they can."""
    if reason := _missing(q.device.type):
        return reason
    if q.shape[-1] > MAX_DEPTH:
        return f"heads of {q.shape[-1]} channels, more than {MAX_DEPTH}"
    if q.shape[-2] > MAX_TOKENS:
        return f"{q.shape[-2]} tokens, more than {MAX_TOKENS}"
    if q.dtype not in DTYPES:
        return f"{q.dtype}"
    return None


@torch.compiler.assume_constant_result
def _missing(device: str) -> str | None:
    """What the machine lacks."""
    return _lacks(device)


@functools.cache
def _lacks(device: str) -> str | None:
    if (reason := _uninstalled(device)) or device != "cuda":
        return reason
    major, minor = torch.cuda.get_device_capability()
    return None if major >= 8 else f"compute capability {major}.{minor}, below 8.0"


def _uninstalled(device: str) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "no Triton"
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"  # Triton's kernels on a CPU, for tests
    return None if device == "cuda" or interpreted else "no CUDA"
