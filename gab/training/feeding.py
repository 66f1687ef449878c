"""Whether images will come fast enough: said before the first step, and not found out after a day."""

TYPICAL_MFU = 0.35  # of a vision transformer in bfloat16, compiled


def shortage(rate: float | None, macs: int, peak: float | None) -> str | None:
    """A sentence where the loader of one process is expected to be slower than its device; None where not, or unknown.

    Args:
        rate: images per second that the loader is expected to give.
        macs: multiply-accumulates of one image's forward pass, of which a train step makes three.
        peak: FLOP/s of the device.
    """
    if rate is None or peak is None:
        return None
    wanted = TYPICAL_MFU * peak / (6 * macs)
    if rate >= wanted:
        return None
    return (
        f"this GPU could train on about {wanted:,.0f} images/s, and its loader gives about {rate:,.0f}: "
        "docs/loaders.md says which of more cores (run.workers), data.write.mode=raw and data.loader=gpu mends that"
    )
