"""Metrics against numbers worked out by hand, and what evaluating must not do to the model."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from psd.data.batches import InMemory
from psd.data.images import ImageData
from psd.tasks.classification import measure
from psd.training.evaluation import evaluate, predict

CLASSES = 7


class Net(nn.Module):
    """Its batch normalisation and dropout answer differently in training mode."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.drop, self.out = nn.BatchNorm2d(3), nn.Dropout(0.5), nn.Linear(3 * 16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        self.mode = self.training
        return self.out(self.drop(self.norm(x).flatten(1)))


def some(count: int = 23) -> ImageData:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(256, (count, 3, 4, 4), generator=generator, dtype=torch.uint8)
    names = tuple("abcdefg")
    return ImageData(images, torch.arange(count) % CLASSES, names, "some", (0.4,) * 3, (0.3,) * 3, 4, True)


def logits(*probabilities: list[float]) -> Tensor:
    return torch.tensor(probabilities, dtype=torch.float64).log()


# --- measure


def test_top1_is_the_percentage_of_right_answers():
    z = logits([0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.6, 0.3, 0.1], [0.2, 0.2, 0.6])
    assert measure(z, torch.tensor([0, 1, 2, 2])).top1 == pytest.approx(75)


def test_top1_counts_images_not_classes():
    z = logits([0.9, 0.1], [0.9, 0.1], [0.9, 0.1], [0.9, 0.1])
    assert measure(z, torch.tensor([0, 0, 0, 1])).top1 == pytest.approx(75)  # the mean over classes is 50


def test_top5_counts_the_label_among_the_five_largest():
    z = torch.arange(CLASSES, dtype=torch.float64).repeat(4, 1)  # class 6 first, then 5, 4, 3, 2
    assert measure(z, torch.tensor([6, 2, 1, 0])).top5 == pytest.approx(50)


@pytest.mark.parametrize("classes", [2, 5])
def test_top5_is_none_below_six_classes(classes):
    assert measure(torch.eye(classes), torch.arange(classes)).top5 is None


def test_top5_is_a_number_from_six_classes_on():
    assert measure(torch.eye(6), torch.arange(6)).top5 == pytest.approx(100)


def test_nll_is_the_mean_of_minus_log_of_the_label_s_probability():
    z = logits([0.5, 0.25, 0.25], [0.1, 0.8, 0.1])
    expected = -(math.log(0.25) + math.log(0.8)) / 2
    assert measure(z, torch.tensor([1, 1])).nll == pytest.approx(expected, rel=1e-6)


def test_ece_is_the_gap_of_confidence_and_accuracy_weighted_by_bin():
    # Bins of 1/15: 0.61 and 0.65 share the one from 9/15 to 10/15, 0.90 lies from 13/15 to 14/15.
    z = logits([0.61, 0.39], [0.65, 0.35], [0.90, 0.10], [0.10, 0.90])
    targets = torch.tensor([0, 1, 0, 1])  # right, wrong, right, right
    expected = 2 / 4 * abs(0.63 - 1 / 2) + 2 / 4 * abs(0.90 - 1)
    assert measure(z, targets).ece == pytest.approx(expected, rel=1e-6)


def test_ece_has_15_bins():
    # 0.61 and 0.65 share a bin of 15 but none of 20; 0.65 and 0.68 share one of 10 but none of 15.
    shared, apart = logits([0.61, 0.39], [0.65, 0.35]), logits([0.65, 0.35], [0.68, 0.32])
    targets = torch.tensor([0, 1])  # right, wrong
    assert measure(shared, targets).ece == pytest.approx(abs((0.61 - 1) + 0.65) / 2, rel=1e-6)
    assert measure(apart, targets).ece == pytest.approx((abs(0.65 - 1) + 0.68) / 2, rel=1e-6)


def test_ece_averages_gaps_and_does_not_square_them():
    z = logits([0.61, 0.39], [0.90, 0.10])
    assert measure(z, torch.tensor([0, 0])).ece == pytest.approx((0.39 + 0.10) / 2, rel=1e-6)


def test_perfect_predictions():
    metrics = measure(50 * torch.eye(CLASSES).double(), torch.arange(CLASSES))
    assert (metrics.top1, metrics.top5) == (100, 100)
    assert metrics.nll == pytest.approx(0, abs=1e-12) and metrics.ece == pytest.approx(0, abs=1e-12)


def test_uniform_predictions_have_the_entropy_of_a_guess_and_are_calibrated():
    metrics = measure(torch.zeros(CLASSES, CLASSES), torch.arange(CLASSES))
    assert metrics.nll == pytest.approx(math.log(CLASSES))
    assert metrics.top1 == pytest.approx(100 / CLASSES)
    assert metrics.ece == pytest.approx(0, abs=1e-6)


def test_confident_nonsense_has_an_ece_near_one():
    metrics = measure(50 * torch.eye(CLASSES), torch.arange(CLASSES).roll(1))
    assert metrics.top1 == 0 and metrics.ece == pytest.approx(1) and metrics.nll == pytest.approx(50)


def test_logits_that_are_probabilities_by_chance_are_still_logits():
    z = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.9, 0.0]], dtype=torch.float64)
    confidence = z.softmax(1).amax(1)
    assert measure(z, torch.tensor([0, 1])).ece == pytest.approx(float((1 - confidence).mean()), rel=1e-6)


def test_metrics_do_not_depend_on_the_order_of_the_images():
    generator = torch.Generator().manual_seed(0)
    z, targets = torch.randn(200, CLASSES, generator=generator).double(), torch.arange(200) % CLASSES
    order = torch.randperm(200, generator=generator)
    a, b = measure(z, targets), measure(z[order], targets[order])
    for name in ("top1", "top5", "nll", "ece"):
        assert getattr(a, name) == pytest.approx(getattr(b, name), rel=1e-6), name


def test_metrics_are_plain_numbers():
    metrics = measure(torch.zeros(3, CLASSES), torch.arange(3))
    assert [type(value) for value in metrics.values()] == [float] * 5 + [int]


# --- predict and evaluate


def test_predictions_are_the_model_s_answers_to_the_unaugmented_images():
    model, data = Net(), some()
    with torch.no_grad():
        expected = model.eval()(next(InMemory(data).batches(range(23), 23, "cpu"))[0])
    torch.testing.assert_close(predict(model, data), expected)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_keeps_its_mode(training):
    model = Net().train(training)
    evaluate(model, some())
    assert model.training is training and model.drop.training is training


def test_a_frozen_part_of_the_model_keeps_its_mode():
    model = Net().train()
    model.norm.eval()
    predict(model, some())
    assert model.training and not model.norm.training


@pytest.mark.parametrize("training", [True, False])
def test_the_model_answers_in_eval_mode(training):
    model = Net().train(training)
    evaluate(model, some())
    assert model.mode is False


def test_the_model_keeps_its_mode_when_an_image_fails():
    class Broken(Net):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("broken")

    model = Broken().train()
    with pytest.raises(RuntimeError, match="broken"):
        predict(model, some())
    assert model.training


def test_evaluating_changes_no_weight_and_no_statistic():
    model = Net().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    evaluate(model, some())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_predictions_carry_no_gradient():
    assert not predict(Net(), some()).requires_grad


def test_predictions_of_a_bf16_model_are_float32():
    class Bf16(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).bfloat16()

    assert predict(Bf16(), some()).dtype == torch.float32


@pytest.mark.parametrize("batch_size", [1, 10, 22, 23, 1000])
def test_the_result_does_not_depend_on_the_batch_size(batch_size):
    model, data = Net(), some()
    torch.testing.assert_close(predict(model, data, batch_size), predict(model, data))


def test_all_images_are_counted():
    assert evaluate(Net(), some(23), batch_size=10).n_test == 23


def test_evaluate_measures_the_predictions():
    model, data = Net(), some()
    assert evaluate(model, data) == measure(predict(model, data), data.targets)


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_size_below_1_is_refused(batch_size):
    with pytest.raises(ValueError, match=f"batch_size must be at least 1, got {batch_size}"):
        evaluate(Net(), some(), batch_size)


def test_a_label_that_the_model_does_not_know_is_refused():
    with pytest.raises(ValueError, match=r"2 classes .* label 5"):
        measure(torch.zeros(3, 2), torch.tensor([0, 1, 5]))
