import pytest

from gab.training.feeding import shortage

H100, VIT_S = 989e12, 4_600_000_000


def test_a_slow_loader_is_named_with_both_rates():
    assert shortage(lambda: 2000, VIT_S, H100).startswith("this GPU could train on about 7,733 images/s")
    assert "gives about 2,000:" in shortage(lambda: 2000, VIT_S, H100)


def test_a_teacher_takes_a_third_of_a_network_of_its_size():
    assert "about 5,800 images/s" in shortage(lambda: 2000, VIT_S, H100, teacher=VIT_S)


def test_what_is_fast_enough_or_unknown_is_not_mentioned():
    assert shortage(lambda: 20_000, VIT_S, H100) is None
    assert shortage(lambda: pytest.fail("asked for nothing"), VIT_S, None) is None
