"""The networks whose train step is measured, by groups, and what the project wants of them."""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple


class Network(NamedTuple):
    """What is measured: name and options of timm's create_model, what computes attention, and the forms on a GPU."""

    name: str
    options: Mapping[str, Any] = MappingProxyType({})
    attention: str = "auto"
    forms: tuple[str, ...] = ("compiled",)


ALL = ("compiled", "trainer", "eager")


def vit(size: str) -> dict[str, Network]:
    """The plain ViT, and with biases by every backend."""
    ours, bias = f"vit_relpos_{size}_patch16_gab_224", f"ViT-{size}, RelPosMlp"
    return {
        f"ViT-{size}": Network(ours, {"gab": False, "rel_pos": "none", "position": "learnable"}, forms=ALL),
        f"{bias} + GAB": Network(ours, forms=ALL),
        f"timm vit_relpos_{size}": Network(f"vit_relpos_{size}_patch16_224", forms=("compiled", "eager")),
        f"timm plain vit_{size}": Network(f"vit_{size}_patch16_224"),
        bias: Network(ours, {"gab": False}),
        **{f"{bias} + GAB, {name}": Network(ours, attention=name) for name in ("sdpa", "reference")},
    }


def deit(size: str) -> dict[str, Network]:
    """DeiT with each of the ideas, and with all."""
    lape, life = f"deit_{size}_patch16_lape_224", f"deit_{size}_patch16_life_224"
    return {
        f"DeiT-{size}": Network(lape, {"join": "add"}),
        f"DeiT-{size} + LaPE": Network(lape),
        f"DeiT-{size} + LIFE": Network(life),
        f"DeiT-{size} + GAB": Network(lape, {"join": "add", "gab": True}),
        f"DeiT-{size} + LaPE + LIFE + GAB": Network(life, {"join": "lape", "gab": True}),
    }


SHRUNK = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2, "num_classes": 10}
GROUPS: dict[str, dict[str, Network]] = {
    **{f"gab_{size}": vit(size) for size in ("small", "base")},
    **{f"deit_{size}": deit(size) for size in ("tiny", "small", "base")},
    "swin_small": {
        "Swin-S": Network("swin_small_patch4_window7_gab_224", {"gab": False}),
        "Swin-S, sdpa": Network("swin_small_patch4_window7_gab_224", {"gab": False}, "sdpa"),
        "Swin-S + GAB": Network("swin_small_patch4_window7_gab_224"),
        "timm swin_small": Network("swin_small_patch4_window7_224"),
    },
    "swinv2_tiny": {
        "Swin-V2-T": Network("swinv2_tiny_window8_life_256", {"life": False}),
        "Swin-V2-T + LIFE": Network("swinv2_tiny_window8_life_256"),
    },
    "vitae_tiny": {"T2T-ViT-7": Network("t2t_vit_7"), "ViTAE-T": Network("vitae_tiny")},
    "tiny": {  # to try the script
        "tiny": Network("gab_vit", SHRUNK, forms=ALL),
        "tiny + GAB": Network("gab_vit", SHRUNK | {"gab": True}, forms=ALL),
    },
}

Key = tuple[str, str, str]  # group, network, form


class Target(NamedTuple):
    """A sentence, the quantity that it is about, whose, against whose, and its limit: the most, or the least."""

    sentence: str
    quantity: str
    of: Key
    against: Key | None
    limit: float
    most: bool


def targets() -> Iterator[Target]:
    """What the project wants of one H200 in bfloat16, at a batch of 256 or more."""
    for size, letter, rate in (("base", "B", 4500), ("small", "S", 13000)):
        group = f"gab_{size}"
        plain, biased = (group, f"ViT-{size}", "compiled"), (group, f"ViT-{size}, RelPosMlp + GAB", "compiled")
        yield Target(f"{letter}/16 + RelPosMlp + GAB, images/s", "images_per_second", biased, None, rate, False)
        if size == "base":
            timms = (group, "timm vit_relpos_base", "compiled")
            yield Target("B/16 + RelPosMlp + GAB, time over plain B/16's", "seconds", biased, plain, 1.03, True)
            yield Target("rate over timm's vit_relpos_base's", "images_per_second", biased, timms, 1.15, False)
            yield Target("B/16 + RelPosMlp + GAB, share of the ceiling", "mfu", biased, None, 0.6, False)
            trainer = (*biased[:2], "trainer")
            files = (*biased[:2], "trainer, files")
            yield Target("from files, rate over random images'", "images_per_second", files, trainer, 0.95, False)
        yield Target(f"{letter}/16, peak memory over plain's", "memory", biased, plain, 1.02, True)
        first = (f"deit_{size}", f"DeiT-{size}", "compiled")
        for idea, limit in (("LaPE", 1.01), ("LIFE", 1.10)):
            key = (first[0], f"{first[1]} + {idea}", "compiled")
            yield Target(f"{letter}/16 + {idea}, time over that without", "seconds", key, first, limit, True)
