import hashlib
from functools import partial

import numpy as np
import pytest
import torch
from torchvision.transforms.functional import center_crop

from gab import transfer
from gab.augment import Augment, normalize
from gab.augment.batch import centre
from gab.augment.erasing import draw_boxes
from gab.augment.operations import Layer, Op, apply, plan
from gab.config import AugmentConfig, RandAugmentConfig
from tests.gab.augment.pillow import by_timm

MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.25, 0.5]
CPU = torch.device("cpu")
RECIPES = {
    "gab": {"randaugment": RandAugmentConfig(layers=2)},
    "deit3": {"three_augment": True, "color_jitter": 0.3, "mix_mode": "pair", "erase_prob": 0.0},
    "gab_finetune": {"rotation": 15.0, "color_jitter": 0.4, "mixup": 0.0, "cutmix": 0.0, "erase_prob": 0.0},
    "all": {"randaugment": RandAugmentConfig(layers=3, weighted=True), "rotation": 9.0, "mix_mode": "element"},
}


def augment(cut: int | None = None, **changes) -> Augment:
    return Augment(AugmentConfig(mixing_group=4, **changes), seed=0, mean=MEAN, std=STD, device=CPU, cut=cut)


def batch(count: int = 24):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 3, 16, 16), generator=generator, dtype=torch.uint8)
    return images, torch.arange(count) % 10, torch.randperm(1000, generator=generator)[:count]


def test_normalize_as_torchvision() -> None:
    from torchvision.transforms.v2 import functional as F

    images = batch()[0]
    expected = F.normalize(F.to_dtype(images, torch.float32, scale=True), MEAN, STD)
    torch.testing.assert_close(normalize(images, torch.tensor(MEAN), torch.tensor(STD)), expected)


@pytest.mark.parametrize("recipe", RECIPES)
def test_any_split_into_whole_groups_gives_the_same(recipe: str) -> None:
    columns, chosen = batch(), augment(**RECIPES[recipe])
    given = columns[0].clone()
    whole, targets = chosen(*columns, epoch=1, step=7, first=0)
    assert torch.equal(columns[0], given)  # the loader's images stay as they are
    parts = []
    for start, size in ((0, 8), (8, 4), (12, 12)):
        part = (column[start : start + size] for column in columns)
        parts.append(chosen(*part, epoch=1, step=7, first=start))
    torch.testing.assert_close(torch.cat([images for images, _ in parts]), whole, rtol=0, atol=0)
    for name in targets._fields:
        assert torch.equal(torch.cat([getattr(t, name) for _, t in parts]), getattr(targets, name))
    if chosen.config.mixup > 0:
        assert torch.equal(targets.partners[:4], columns[1][[3, 2, 1, 0]])


def test_groups_are_numbered_in_the_global_batch() -> None:
    columns = batch(8)
    first = augment()(*columns, epoch=1, step=7, first=0)[1].lam
    second = augment()(*columns, epoch=1, step=7, first=8)[1].lam
    assert not torch.equal(first, second)


def test_switched_off_only_normalises() -> None:
    images, labels, indices = batch()
    off = augment(mixup=0.0, cutmix=0.0, erase_prob=0.0)
    x, targets = off(images, labels, indices, epoch=0, step=0, first=0)
    assert torch.equal(x, normalize(images, off.mean, off.std))
    assert torch.equal(targets.labels, labels)
    assert (targets.lam == 1).all()


@pytest.mark.parametrize("recipe", RECIPES)
def test_layouts_of_memory_give_the_same(recipe: str) -> None:
    images, labels, keys = batch()
    chosen = augment(**RECIPES[recipe])
    first = chosen(images, labels, keys, epoch=1, step=7, first=0)[0]
    again = chosen(images.to(memory_format=torch.channels_last), labels, keys, epoch=1, step=7, first=0)[0]
    assert torch.equal(first, again)


def test_order_is_timms() -> None:
    """Rotation with the crop, then the policy, then colour jitter."""
    chosen = augment(rotation=9.0, randaugment=RandAugmentConfig(layers=2, prob=1.0), color_jitter=0.3)
    layers = chosen.layers(torch.arange(99), epoch=0)
    assert len(layers) == 6
    assert (layers[0].op == Op.ROTATE).all()
    assert layers[0].fill.tolist() == [0, 0, 0]
    assert len(layers[1].op.unique()) == 15
    assert layers[1].fill.tolist() == [128, 102, 76]  # the mean: 127.5, 102 and 76.5, rounded as Python does
    assert set(layers[3].op.tolist()) == {Op.BRIGHTNESS, Op.CONTRAST, Op.COLOR}


def test_a_sample_passes_its_layers_as_by_timm(photos) -> None:
    """The whole chain against timm's functions in turn: nearly all values equal, in spite of rounding in between."""
    images = photos(48)[:3].repeat(16, 1, 1, 1)
    chosen = augment(randaugment=RandAugmentConfig(layers=3, prob=0.9), color_jitter=0.3)
    layers = chosen.layers(torch.arange(len(images)), epoch=0)
    ours = images.clone()
    for layer in layers:
        apply(ours, plan(layer, 48))
    for i, image in enumerate(images):
        theirs = image
        for layer in layers:
            given = int(layer.op[i]), float(layer.arg[i]), int(layer.taps[i]), tuple(layer.fill.tolist())
            if given[0] != Op.POSTERIZE or given[1] >= 1:
                theirs = torch.from_numpy(by_timm(theirs, *given).astype(np.uint8)).permute(2, 0, 1)
        difference = (ours[i].int() - theirs.int()).abs()
        assert difference.float().mean() < 0.02, i


def test_larger_images_are_cut_to_their_centre() -> None:
    images, labels, keys = batch()
    for size in (7, 12, 16):
        assert torch.equal(centre(images, size), center_crop(images, [size, size]))
    cut = augment(cut=12, mixup=0.0, cutmix=0.0, erase_prob=0.0)
    x, _ = cut(images, labels, keys, epoch=0, step=0, first=0)
    assert torch.equal(x, normalize(images, cut.mean, cut.std)[..., 2:14, 2:14])


def test_mixing_ends() -> None:
    columns, ending = batch(), augment(mix_epochs=3, erase_prob=0.0)
    mixed, targets = ending(*columns, epoch=2, step=7, first=0)
    assert not torch.equal(targets.partners, columns[1])
    plain, targets = ending(*columns, epoch=3, step=7, first=0)
    assert torch.equal(plain, normalize(columns[0], ending.mean, ending.std))
    assert not torch.equal(mixed, plain)
    assert (targets.lam == 1).all()
    assert torch.equal(targets.partners, columns[1])


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_device_is_asked_for_nothing(recipe: str) -> None:
    """It can be one that has shapes and no values."""
    meta, chosen = torch.device("meta"), augment(**RECIPES[recipe])
    drawn = chosen.draw(torch.arange(256), size=16, epoch=1, step=7, first=0)
    tensors = list(transfer._tensors(drawn))
    moved = transfer._exchanged(drawn, iter([tensor.to(meta) for tensor in tensors]))
    chosen.device, chosen.mean, chosen.std = meta, chosen.mean.to(meta), chosen.std.to(meta)
    images, labels = torch.zeros(256, 3, 16, 16, dtype=torch.uint8, device=meta), torch.zeros(256, device=meta).long()
    assert chosen.apply(images, labels, moved)[0].shape == (256, 3, 16, 16)


DIGESTS = {
    "gab": "a3087f3d7f26d492",
    "deit3": "83a6c531272c27f2",
    "gab_finetune": "6b1aca47602085a5",
    "all": "388b2305aeda347c",
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_same_numbers_in_every_version(recipe: str) -> None:
    """No change of the code may change what is drawn: rows, arguments and strengths, to four digits."""
    drawn = augment(**RECIPES[recipe]).draw(torch.arange(64), size=24, epoch=3, step=17, first=64)
    digest = hashlib.blake2b(digest_size=8)
    for tensor in transfer._tensors(drawn):
        digest.update(repr([round(1e4 * value) for value in tensor.flatten().tolist()]).encode())
    assert digest.hexdigest() == DIGESTS[recipe]


def test_the_network_gets_no_history() -> None:
    assert not augment(**RECIPES["gab"])(*batch(), epoch=0, step=0, first=0)[0].requires_grad


@torch.no_grad()
@pytest.mark.parametrize("recipe", ["gab", "deit3"])
def test_all_is_compiled_at_the_start(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever number of images an operation or a box meets later, wherever its arguments lie in what was moved."""
    graphs = []

    def backend(graph, example):
        graphs.append(graph)
        return graph.forward

    def to_device(tree, device):
        tensors = list(transfer._tensors(tree))
        return transfer._exchanged(tree, iter(transfer.unpack(transfer.pack(tensors), tensors)))

    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    monkeypatch.setattr("gab.augment.batch.to_device", to_device)
    config = AugmentConfig(mixing_group=4, **RECIPES[recipe])
    chosen = Augment(config, seed=0, mean=MEAN, std=STD, device=CPU, compile=True)
    chosen.warm_up(24, 16)
    first = len(graphs)
    assert first == {"gab": 13, "deit3": 4}[recipe]  # kinds: all but the nearest rotation and blur, and the erasing
    images = batch()[0]
    for layer in chosen.layers(torch.arange(9999), epoch=1):
        for op, taps in torch.stack([layer.op, layer.taps], 1).unique(dim=0):
            for count in (1, 2, 3, 16, 24):
                given = Layer(op.repeat(count), torch.ones(count).double(), taps.repeat(count), layer.fill)
                apply(images[:count], to_device(plan(given, 16), CPU), chosen.kinds)
    for count in (1, 2, 4, 16, 24) if config.erase_prob else ():
        boxes = draw_boxes(torch.arange(count), seed=0, epoch=0, size=16, prob=1.0)
        chosen.erase(torch.zeros(24, 3, 16, 16), *to_device(boxes, CPU))
    assert len(graphs) == first


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("recipe", RECIPES)
def test_gpu_as_cpu(recipe: str, compile: bool, photos) -> None:
    """Nearly all values equal: sums of the moves and of the noise are rounded otherwise."""
    images, keys = photos(48).repeat(4, 1, 1, 1), torch.arange(24)
    done = []
    for device in ("cpu", "cuda"):
        config = AugmentConfig(mixing_group=4, **RECIPES[recipe])
        chosen = Augment(
            config, seed=0, mean=MEAN, std=STD, device=torch.device(device), compile=compile and device == "cuda"
        )
        done.append(chosen(images.to(device), keys.to(device), keys, epoch=1, step=7, first=0)[0].cpu())
    difference = (done[0] - done[1]).abs()
    assert (difference > 1e-4).float().mean() < 0.01
    assert difference.max() < 0.1
