"""Random numbers without a state: hashes of what they belong to.

Every draw of a run is a pure function of a key such as (seed, epoch, sample index), so it can be computed again at any
time, in any process and in any order. The hash is the finaliser of splitmix64 (Steele, Lea and Flood, "Fast splittable
pseudorandom number generators", OOPSLA 2014), written twice: for Python integers and, with the same results, for int64
tensors, whose arithmetic wraps around modulo 2**64.
"""

import hashlib

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
_FIRST = 0xBF58476D1CE4E5B9
_SECOND = 0x94D049BB133111EB
_MASK = 2**64 - 1


def _signed(value: int) -> int:
    """The int64 with the bits of `value` modulo 2**64."""
    value &= _MASK
    return value - 2**64 if value >= 2**63 else value


def _mix_int(x: int) -> int:
    x = (x + _GOLDEN) & _MASK
    x = ((x ^ (x >> 30)) * _FIRST) & _MASK
    x = ((x ^ (x >> 27)) * _SECOND) & _MASK
    return x ^ (x >> 31)


def hash_key(*parts: int | str) -> int:
    """A key in [0, 2**63) for the given parts; strings and integers never collide by type.

    Fits an int64 tensor and `torch.Generator.manual_seed`.
    """
    key = 0
    for part in parts:
        if isinstance(part, str):
            key = _mix_int(key ^ 0x5354_5249_4E47)  # an integer part never takes this step
            part = int.from_bytes(hashlib.blake2b(part.encode(), digest_size=8).digest(), "little")
        key = _mix_int(_mix_int(key) ^ (part & _MASK))
    return key >> 1


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical shift to the right; that of int64 tensors copies the sign."""
    return (x >> bits) & (2 ** (64 - bits) - 1)


def seed_generators(seed: int, device: torch.device) -> None:
    """PyTorch's own generators of the CPU and of `device`, for what still draws from them.

    Numbers are those after `torch.manual_seed`, which goes through the generators of all devices that there may be and
    takes a hundred times as long.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        torch.cuda.default_generators[index].manual_seed(seed)


def mix(x: Tensor) -> Tensor:
    """64 well mixed bits for every element of an int64 tensor."""
    x = x + _signed(_GOLDEN)
    x = (x ^ _shift(x, 30)) * _signed(_FIRST)
    x = (x ^ _shift(x, 27)) * _signed(_SECOND)
    return x ^ _shift(x, 31)


def fold_in(key: int | Tensor, data: int | Tensor) -> Tensor:
    """A new key for every pair of a key and a datum: int64 tensors, broadcast; one of the two may be an integer."""
    mixed = mix(key) if isinstance(key, Tensor) else _signed(_mix_int(key & _MASK))
    return mix(torch.as_tensor(mixed ^ (data if isinstance(data, Tensor) else _signed(data))))


def uniform(key: Tensor) -> Tensor:
    """A float32 in [0, 1) for every element of an int64 tensor of keys, of the same shape, on a grid of 2**-24."""
    return _shift(mix(key), 40).to(torch.float32) * 2.0**-24
