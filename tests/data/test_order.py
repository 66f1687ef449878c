import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torchvision.transforms import RandomResizedCrop

from data.config import CropConfig
from data.errors import DataError
from data.order import (
    BICUBIC,
    FLIP,
    HEIGHT,
    LEFT,
    TOP,
    WIDTH,
    check_crop,
    digest,
    draw_crops,
    epoch_order,
    hash_of,
    mix,
    process_shard,
    process_share,
    repeat_samples,
)

MANY = 20_000


def crops_of(n: int, seed: int = 0, epoch: int = 0, height: int = 375, width: int = 500, **crop) -> np.ndarray:
    sides = np.full(n, height), np.full(n, width)
    return draw_crops(CropConfig(**crop), seed, epoch, np.arange(n), *sides)


def test_mix_is_splitmix64():
    state = np.zeros(1, np.uint64)  # the published generator, started at 0, gives these numbers
    outputs = [int(mix(state + np.uint64(k * 0x9E3779B97F4A7C15 % 2**64))[0]) for k in range(3)]
    assert outputs == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


def test_the_stream_never_changes():
    """A record of years ago must be reproducible: these numbers may not depend on any version of anything."""
    assert epoch_order(10, seed=0, epoch=0).tolist() == [0, 7, 8, 4, 3, 1, 2, 9, 5, 6]
    crops = draw_crops(CropConfig(), 3, 7, [5, 6], [375, 64], [500, 48])
    assert crops.tolist() == [[30, 140, 247, 243, 0, 0], [21, 5, 19, 21, 0, 1]]


@given(st.integers(1, 2000), st.integers(0, 2**62), st.integers(0, 1000))
def test_order_is_a_permutation(n, seed, epoch):
    assert np.array_equal(np.sort(epoch_order(n, seed, epoch)), np.arange(n))


def test_neighbouring_seeds_and_epochs_are_unrelated():
    runs = [(seed, epoch) for seed in range(8) for epoch in range(8)]
    ranks = np.stack([np.argsort(epoch_order(4000, *run)) for run in runs])
    correlation = np.corrcoef(ranks) - np.eye(len(runs))
    assert np.abs(correlation).max() < 5 / np.sqrt(4000)  # five standard deviations; the same order would give 1
    tops = np.stack([crops_of(4000, *run)[:, TOP] for run in runs])
    assert np.abs(np.corrcoef(tops) - np.eye(len(runs))).max() < 5 / np.sqrt(4000)


def test_order_and_crops_are_unrelated():
    place = np.argsort(epoch_order(MANY, 0, 0))
    crops = crops_of(MANY)
    for column in (TOP, LEFT, HEIGHT, WIDTH, FLIP, BICUBIC):
        assert abs(np.corrcoef(place, crops[:, column])[0, 1]) < 5 / np.sqrt(MANY)


@given(st.integers(1, 60), st.integers(1, 5), st.integers(1, 4), st.integers(0, 5))
def test_processes_take_contiguous_blocks_of_every_batch(n, share, processes, start):
    order = epoch_order(n, 1, 2)
    batch = share * processes
    blocks = [process_share(order, batch, rank, processes, start).reshape(-1, share) for rank in range(processes)]
    assert np.array_equal(np.concatenate(blocks, axis=1).reshape(-1), order[start * batch : n // batch * batch])


@given(st.integers(1, 400), st.integers(1, 40), st.integers(1, 5))
def test_every_image_of_an_epoch_comes_as_often_as_asked(n, batch, repeats):
    order = epoch_order(n, 3, 4)
    keys = repeat_samples(order, n, repeats, batch)
    assert len(keys) == n // batch * batch  # as many steps as without
    copies = [set() for _ in range(n)]
    for key in keys.tolist():
        copies[key % n].add(key // n)
    complete, rest = divmod(len(keys), repeats)
    assert [len(copies[i]) for i in order] == [repeats] * complete + [rest] * (rest > 0) + [0] * (
        n - complete - (rest > 0)
    )
    assert all(seen == set(range(len(seen))) for seen in copies)


@given(st.integers(1, 400), st.integers(2, 60), st.integers(2, 5))
def test_copies_of_an_image_lie_far_apart(n, batch, repeats):
    keys = repeat_samples(epoch_order(n, 3, 4), n, repeats, batch)
    for image in np.unique(keys % n):
        assert (np.diff(np.flatnonzero(keys % n == image)) >= batch // repeats).all()


def test_one_repeat_is_none():
    order = epoch_order(50, 0, 0)
    assert np.array_equal(repeat_samples(order, 50, 1, 12), order[:48])


@given(st.integers(0, 50), st.integers(1, 60))
def test_shards_make_the_whole(n, processes):
    shards = [process_shard(n, rank, processes) for rank in range(processes)]
    assert np.array_equal(np.concatenate(shards), np.arange(n))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


@given(st.integers(1, 700), st.integers(1, 700), st.integers(0, 100))
def test_boxes_lie_inside_their_images(height, width, seed):
    crops = crops_of(40, seed, height=height, width=width)
    assert (crops[:, [TOP, LEFT]] >= 0).all()
    assert (crops[:, [HEIGHT, WIDTH]] >= 1).all()
    assert (crops[:, TOP] + crops[:, HEIGHT] <= height).all()
    assert (crops[:, LEFT] + crops[:, WIDTH] <= width).all()


def test_boxes_are_distributed_as_torchvision_s():
    torch.manual_seed(0)
    image = torch.empty(3, 375, 500)
    theirs = np.array([RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(5000)])
    ours = crops_of(MANY)
    for column in (TOP, LEFT, HEIGHT, WIDTH):
        assert stats.ks_2samp(ours[:, column], theirs[:, column]).pvalue > 1e-3


def test_area_and_ratio_are_uniform_where_every_try_fits():
    crops = crops_of(MANY, height=4000, width=4000, scale=[0.1, 0.5]).astype(float)
    area = crops[:, HEIGHT] * crops[:, WIDTH] / 4000**2
    assert stats.kstest(area, stats.uniform(0.1, 0.4).cdf).pvalue > 1e-3
    ratio = np.log(crops[:, WIDTH] / crops[:, HEIGHT])
    assert stats.kstest(ratio, stats.uniform(np.log(3 / 4), 2 * np.log(4 / 3)).cdf).pvalue > 1e-3
    assert abs(np.corrcoef(area, ratio)[0, 1]) < 5 / np.sqrt(MANY)


@pytest.mark.parametrize(
    ("size", "box"), [((20, 1000), [0, 486, 20, 27]), ((1000, 30), [480, 0, 40, 30]), ((1, 9), [0, 4, 1, 1])]
)
def test_the_largest_central_box_is_the_last_resort(size, box):
    crops = crops_of(200, height=size[0], width=size[1], scale=[0.9, 1.0])  # no box of these areas has a legal ratio
    assert (crops[:, :4] == box).all()


@pytest.mark.parametrize("flip", [0.0, 0.3, 0.5, 1.0])
def test_share_of_flips(flip):
    share = crops_of(MANY, flip=flip)[:, FLIP].mean()
    assert abs(share - flip) <= 5 * np.sqrt(flip * (1 - flip) / MANY)


@pytest.mark.parametrize(("interpolation", "share"), [("bicubic", 1.0), ("bilinear", 0.0), ("random", 0.5)])
def test_share_of_bicubic(interpolation, share):
    crops = crops_of(MANY, interpolation=interpolation)
    assert abs(crops[:, BICUBIC].mean() - share) <= 5 * np.sqrt(share * (1 - share) / MANY)
    assert abs(np.corrcoef(crops[:, FLIP], crops_of(MANY)[:, BICUBIC])[0, 1]) < 5 / np.sqrt(MANY)


def test_a_crop_depends_on_its_sample_alone():
    crops = crops_of(100)
    some = np.array([70, 3, 41])
    again = draw_crops(CropConfig(), 0, 0, some, np.full(3, 375), np.full(3, 500))
    assert np.array_equal(again, crops[some])
    alone = [draw_crops(CropConfig(), 0, 0, i, 375, 500)[0] for i in range(100)]  # as the torch loader asks
    assert np.array_equal(alone, crops)


def test_digest_adds_up_and_sees_everything():
    indices, crops = np.arange(100), crops_of(100)
    whole = digest(indices, crops)
    shuffled = np.random.default_rng(0).permutation(100)
    assert digest(indices[shuffled], crops[shuffled]) == whole
    assert (digest(indices[:30], crops[:30]) + digest(indices[30:], crops[30:])) % 2**64 == whole
    for column in (TOP, LEFT, HEIGHT, WIDTH, FLIP):
        other = crops.copy()
        other[17, column] ^= 1
        assert digest(indices, other) != whole
    assert digest(indices + 1, crops) != whole


def test_hashes_do_not_collide():
    hashes = hash_of(np.arange(300)[:, None], np.arange(300))
    assert len(np.unique(hashes)) == hashes.size


@pytest.mark.parametrize(
    ("setting", "value"),
    [("scale", [0.0, 1.0]), ("scale", [0.5]), ("ratio", [2.0, 1.0]), ("flip", 1.5), ("interpolation", "nearest")],
)
def test_impossible_settings_are_named(setting, value):
    with pytest.raises(DataError, match=f"data.crop.{setting}"):
        check_crop(CropConfig(**{setting: value}))
