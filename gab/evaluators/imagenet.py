"""The classes of ImageNet and of the sets made for its networks, as WordNet ids."""

from functools import cache
from importlib.resources import files


@cache
def synsets(subset: str = "") -> tuple[str, ...]:
    """The 1000 classes of ImageNet in the order of a network's logits, or the 200 of `subset` a or r, in that order."""
    name = f"imagenet_{subset}_synsets.txt" if subset else "imagenet_synsets.txt"
    return tuple((files("timm") / "data" / "_info" / name).read_text().split())


def logits(subset: str) -> list[int]:
    """Which of the 1000 logits the classes of `subset` have."""
    position = {wnid: number for number, wnid in enumerate(synsets())}
    return [position[wnid] for wnid in synsets(subset)]
