import pytest

from gab.training.feeding import shortage

H100, VIT_S = 989e12, 4_600_000_000


def test_a_slow_loader_is_named_with_both_rates():
    assert shortage(2000, VIT_S, H100).startswith("this GPU could train on about 12,542 images/s")
    assert "gives about 2,000:" in shortage(2000, VIT_S, H100)


@pytest.mark.parametrize(("rate", "peak"), [(20_000, H100), (None, H100), (2000, None)])
def test_what_is_fast_enough_or_unknown_is_not_mentioned(rate, peak):
    assert shortage(rate, VIT_S, peak) is None
