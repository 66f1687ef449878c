"""Whether images will come fast enough: said before the first step, and not found out after a day."""

from collections.abc import Callable

from gab.training.flops import TYPICAL_MFU


def shortage(rate: Callable[[], float], macs: int, peak: float | None, teacher: int = 0) -> str | None:
    """A sentence where the loader of one process is expected to be slower than its device; None where not, or unknown.

    Args:
        rate: tells the images per second that the loader is expected to give; asked only where it matters.
        macs: multiply-accumulates of one image's forward pass, of which a train step makes three.
        peak: FLOP/s of the device in bfloat16; None for a run in another precision.
        teacher: multiply-accumulates of its forward pass, the only one that it makes.
    """
    if peak is None:
        return None
    wanted, given = TYPICAL_MFU * peak / (6 * macs + 2 * teacher), rate()
    if given >= wanted:
        return None
    return (
        f"this GPU could train on about {wanted:,.0f} images/s, and its loader gives about {given:,.0f}: "
        "docs/loaders.md says whether more cores (run.workers), data.write.mode=raw or data.loader=gpu would fix that"
    )
