"""Terms of the loss and of the Fisher: weights, pseudo-labels, and what each choice of nodes means."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from natgrad_apps.errors import ConfigError
from natgrad_apps.graphs.counting import Counter, PseudoLabels

Y = torch.tensor([0, 2, 1, 1, 0, 2])
TRAIN = torch.tensor([1, 4])
LOGITS = torch.tensor([[3.0, 0, 0], [0, 0, 1], [0, 0.1, 0], [0, 0, 2.5], [1, 0, 0], [0, 2, 0]])
UNLABELLED = [0, 2, 3, 5]


def counter(pseudo: PseudoLabels, epochs: int = 10) -> Counter:
    return Counter(Y, 3, TRAIN, pseudo, epochs)


def test_without_pseudo_labels_the_loss_is_the_mean_over_labelled_nodes() -> None:
    counted = counter(PseudoLabels()).count(7, LOGITS)
    torch.testing.assert_close(counted.loss(LOGITS), F.cross_entropy(LOGITS[TRAIN], Y[TRAIN]))
    assert counted.support.tolist() == TRAIN.tolist()


def test_labels_outside_training_are_never_read() -> None:
    """Other labels of the other nodes give the same terms."""
    other = Y.clone()
    other[UNLABELLED] = torch.tensor([2, 0, 0, 1])
    pseudo = PseudoLabels(enabled=True, gamma=1)
    first, second = (Counter(y, 3, TRAIN, pseudo, 10).count(5, LOGITS) for y in (Y, other))
    assert torch.equal(first.weights, second.weights)
    assert torch.equal(first.targets, second.targets)


@pytest.mark.parametrize("kind", ["hard", "soft"])
@pytest.mark.parametrize("gamma", [1.0, 2.0])
def test_pseudo_labels_add_a_mean_with_weight_lambda(kind: str, gamma: float) -> None:
    """``L (1 + lambda) = mean over labelled + lambda mean over unlabelled`` with ``lambda = (t/T)^gamma``; t = 4, T = 10."""
    counted = counter(PseudoLabels(enabled=True, gamma=gamma, kind=kind)).count(4, LOGITS)  # type: ignore[arg-type]
    share = 0.4**gamma
    log_p = LOGITS[UNLABELLED].log_softmax(-1)
    guess = LOGITS[UNLABELLED].softmax(-1) if kind == "soft" else F.one_hot(LOGITS[UNLABELLED].argmax(-1), 3).float()
    expected = (F.cross_entropy(LOGITS[TRAIN], Y[TRAIN]) - share * (guess * log_p).sum(-1).mean()) / (1 + share)
    # float32, a sum of six terms
    torch.testing.assert_close(counted.loss(LOGITS), expected, rtol=1e-6, atol=1e-6)


def test_unsure_nodes_are_left_out() -> None:
    """Largest probabilities of the unlabelled nodes: 0.91, 0.36, 0.86, 0.79; the total weight stays lambda times the labelled one."""
    counted = counter(PseudoLabels(enabled=True, gamma=0, confidence=0.8)).count(1, LOGITS)
    assert counted.weights.tolist() == pytest.approx([1.0, 1.0, 0.0, 1.0, 1.0, 0.0])
    counted = counter(PseudoLabels(enabled=True, gamma=0, confidence=0.95)).count(1, LOGITS)
    assert counted.weights.tolist() == pytest.approx([0.0, 1.0, 0.0, 0.0, 1.0, 0.0])
    torch.testing.assert_close(counted.loss(LOGITS), F.cross_entropy(LOGITS[TRAIN], Y[TRAIN]))


def test_no_gradient_flows_into_pseudo_labels() -> None:
    logits = LOGITS.clone().requires_grad_()
    counted = counter(PseudoLabels(enabled=True, gamma=0, kind="soft")).count(1, logits.detach())
    assert not counted.targets.requires_grad
    counted.loss(logits).backward()
    # at its own prediction, the gradient of a soft label's cross entropy is p - p = 0
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad[UNLABELLED], torch.zeros(4, 3), rtol=0, atol=1e-7)


def test_nodes_of_the_fisher() -> None:
    made = counter(PseudoLabels(enabled=True, gamma=1))
    counted = made.count(5, LOGITS)
    labelled, support = made.fisher("labelled", counted)
    assert labelled.tolist() == [0, 1, 0, 0, 1, 0]
    assert support.tolist() == [1, 4]
    weights, _ = made.fisher("counted", counted)
    # lambda = 1/2; two labelled nodes, four others
    assert weights.tolist() == pytest.approx([0.25, 1, 0.25, 0.25, 1, 0.25])
    weights, support = made.fisher("all", counted)
    assert weights.tolist() == [1] * 6
    assert len(support) == 6


def test_lambda_zero_leaves_the_labelled_nodes() -> None:
    made = counter(PseudoLabels(enabled=True, gamma=1))
    counted = made.count(0, LOGITS)
    assert counted.weights.tolist() == [0, 1, 0, 0, 1, 0]
    assert made.fisher("counted", counted)[1].tolist() == [1, 4]


@pytest.mark.parametrize(("options", "words"), [({"gamma": -1.0}, "gamma must be >= 0"), ({"confidence": 1.0}, "confidence must be in")])
def test_illegal_options(options: dict[str, float], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        PseudoLabels(enabled=True, **options)  # type: ignore[arg-type]
