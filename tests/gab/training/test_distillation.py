from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gab.augment import Targets
from gab.config import DistillationConfig, TimmConfig
from gab.errors import UserError
from gab.training.distillation import Teacher, check_size, load_teacher, make_teacher
from gab.training.objective import Objective, mixed_cross_entropy

HALF = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}


class Brightness(nn.Module):
    """Knows three classes by the sum of the channels that it sees."""

    num_classes = 3

    def __init__(self, mean: float = 0.5, std: float = 0.5):
        super().__init__()
        self.pretrained_cfg = {"mean": (mean,) * 3, "std": (std,) * 3}
        self.drop = nn.Dropout()
        self.weight = nn.Parameter(torch.tensor([[1.0, 0.5, -1.0]]))

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(x.mean((1, 2, 3)))[:, None] * self.weight


def teacher(network: nn.Module | None = None, **config) -> Teacher:
    return Teacher(DistillationConfig("t", **config), network or Brightness(), **HALF, bf16=False)


IMAGES = torch.linspace(-1, 1, 4)[:, None, None, None].expand(4, 3, 2, 2)  # normalised, from dark to bright
LOGITS = torch.tensor([[0.1, 0.2, 0.3], [1.0, 0.0, 0.5], [0.3, 0.3, 0.3], [2.0, 1.0, 0.0]])


def test_hard_labels_are_the_teachers_classes() -> None:
    expected = F.cross_entropy(LOGITS, torch.tensor([2, 2, 0, 0]))
    assert torch.equal(teacher().loss(LOGITS, IMAGES), expected)


def test_soft_labels_are_its_distribution_at_a_temperature() -> None:
    theirs = (IMAGES.mean((1, 2, 3))[:, None] * torch.tensor([[1.0, 0.5, -1.0]]) / 2).softmax(1)
    ours = (LOGITS / 2).softmax(1)
    divergence = (theirs * (theirs / ours).log()).sum(1).mean()
    found = teacher(kind="soft", temperature=2.0).loss(LOGITS, IMAGES)
    assert found.item() == pytest.approx(4 * divergence.item(), rel=1e-5)


def test_a_student_without_a_second_head_is_refused() -> None:
    config = SimpleNamespace(model=TimmConfig(name="resnet18", base="resnet18"))
    with pytest.raises(UserError, match="needs a network with a head for it, which resnet18 lacks"):
        make_teacher(config, Brightness(), 3, torch.device("cpu"))


def test_the_two_losses_share() -> None:
    targets = Targets(torch.arange(4) % 3, torch.arange(4) % 3, torch.ones(4))
    classes, distilled = LOGITS.clone().requires_grad_(), LOGITS.flip(1).clone().requires_grad_()
    of = teacher(alpha=0.25)
    loss = Objective("ce", 0.1, of)((classes, distilled), targets, IMAGES)
    expected = 0.75 * mixed_cross_entropy(classes, targets, 0.1) + 0.25 * of.loss(distilled, IMAGES)
    assert loss.item() == pytest.approx(expected.item())
    loss.backward()
    assert classes.grad is not None
    assert distilled.grad is not None


def test_it_sees_images_normalised_as_it_is_used_to() -> None:
    pixels = IMAGES * 0.5 + 0.5
    own = teacher(Brightness(0.4, 0.2))
    assert "normalised by its own" in own.describe()
    assert "normalised" not in teacher().describe()
    expected = ((pixels - 0.4) / 0.2).mean((1, 2, 3))[:, None] * torch.tensor([[1.0, 0.5, -1.0]])
    torch.testing.assert_close(own.logits(IMAGES), expected)


def test_it_is_not_trained() -> None:
    network = Brightness().train()
    of = teacher(network)
    assert not network.training
    assert not any(p.requires_grad for p in network.parameters())
    assert not of.logits(IMAGES.clone().requires_grad_()).requires_grad


def test_weights_of_a_file(tmp_path: Path) -> None:
    network = timm.create_model("test_resnet", num_classes=5)
    torch.save(network.state_dict(), tmp_path / "teacher.pth")
    config = DistillationConfig("test_resnet", weights=str(tmp_path / "teacher.pth"))
    found = load_teacher(config, 5)
    assert torch.equal(found.get_classifier().weight, network.get_classifier().weight)
    first, second = (Teacher(config, n, **HALF, bf16=False).digest for n in (found, network))
    assert first == second
    with pytest.raises(UserError, match=r"test_resnet has 5 classes, the data set has 10: .*weights"):
        load_teacher(config, 10)


def test_a_teacher_of_one_size(tmp_path: Path) -> None:
    check_size("test_vit", [160])
    check_size("test_resnet", [32, 99])
    with pytest.raises(
        UserError, match=r"test_vit works at 160 pixels only, .* trains at 96, 128: set data\.image_size=160"
    ):
        check_size("test_vit", [128, 160, 96])
    torch.save(timm.create_model("test_vit", img_size=64).state_dict(), tmp_path / "teacher.pth")
    config = DistillationConfig("test_vit", weights=str(tmp_path / "teacher.pth"))
    assert load_teacher(config, 1000, [64])(torch.zeros(1, 3, 64, 64)).shape == (1, 1000)
    with pytest.raises(UserError, match=r"works at 64 pixels only, and the run trains at 160"):
        load_teacher(config, 1000, [160])


def test_a_teacher_that_there_is_not(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="timm has no model named 'regnety_16'; did you mean regnety_16"):
        load_teacher(DistillationConfig("regnety_16"), 10)
    with pytest.raises(UserError, match="absent.pth cannot be read"):
        load_teacher(DistillationConfig("test_resnet", weights=str(tmp_path / "absent.pth")), 10)
    with pytest.raises(UserError, match="timm has no weights of test_mambaout to give"):
        load_teacher(DistillationConfig("test_mambaout"), 10)
