"""Likelihoods against autograd and torch.distributions, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
import torch.distributions as td
from torch import Tensor

from natgrad_apps.errors import CaptureError, ConfigError, ShapeError
from natgrad_apps.likelihoods import Bernoulli, Categorical, Gaussian, Joint, Likelihood, Targets

pytestmark = pytest.mark.usefixtures("float64")


def assert_equal(actual: Tensor, expected: Tensor) -> None:
    """Equality up to about 1e4 roundings of float64 numbers of order one."""
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12, check_dtype=False)


def leaf(*shape: int) -> Tensor:
    return torch.randn(*shape).requires_grad_()


def categorical() -> tuple[Likelihood, td.Distribution]:
    logits = leaf(5, 4)
    return Categorical(logits), td.Categorical(logits=logits.detach())


def categorical_positions() -> tuple[Likelihood, td.Distribution]:
    logits = leaf(3, 2, 4)
    return Categorical(logits), td.Categorical(logits=logits.detach())


def gaussian_fixed() -> tuple[Likelihood, td.Distribution]:
    mean = leaf(5, 3)
    return Gaussian(mean, scale=0.7), td.Independent(td.Normal(mean.detach(), 0.7), 1)


def gaussian_flat() -> tuple[Likelihood, td.Distribution]:
    mean = leaf(6)
    return Gaussian(mean), td.Normal(mean.detach(), 1.0)


def gaussian_scale_output() -> tuple[Likelihood, td.Distribution]:
    mean, raw = leaf(5, 3), leaf(5, 3)
    scale = raw.exp()
    return Gaussian(mean, scale=scale), td.Independent(td.Normal(mean.detach(), scale.detach()), 1)


def gaussian_log_std_output() -> tuple[Likelihood, td.Distribution]:
    mean, raw = leaf(5, 3), leaf(5, 3)
    log_std = 0.5 * raw
    return Gaussian(mean, log_std=log_std), td.Independent(td.Normal(mean.detach(), log_std.detach().exp()), 1)


def gaussian_log_std_parameter() -> tuple[Likelihood, td.Distribution]:
    mean, log_std = leaf(5, 3), leaf(3)
    return Gaussian(mean, log_std=log_std), td.Independent(td.Normal(mean.detach(), log_std.detach().exp()), 1)


def gaussian_shared_scale() -> tuple[Likelihood, td.Distribution]:
    mean, raw = leaf(5, 3), leaf(3)
    scale = raw.exp()
    return Gaussian(td.Normal(mean, scale)), td.Independent(td.Normal(mean.detach(), scale.detach()), 1)


def bernoulli() -> tuple[Likelihood, td.Distribution]:
    logits = leaf(5, 3)
    return Bernoulli(logits), td.Independent(td.Bernoulli(logits=logits.detach()), 1)


def bernoulli_flat() -> tuple[Likelihood, td.Distribution]:
    logits = leaf(6)
    return Bernoulli(logits), td.Bernoulli(logits=logits.detach())


SINGLE = [
    categorical,
    categorical_positions,
    gaussian_fixed,
    gaussian_flat,
    gaussian_scale_output,
    gaussian_log_std_output,
    gaussian_log_std_parameter,
    gaussian_shared_scale,
    bernoulli,
    bernoulli_flat,
]


def joint() -> Likelihood:
    return Joint(categorical()[0], Joint(gaussian_log_std_output()[0], bernoulli()[0]))


def actor_critic() -> Likelihood:
    return Joint(Categorical(leaf(6, 4)), gaussian_flat()[0])


ALL: list[Callable[[], Likelihood]] = [*((lambda make=make: make()[0]) for make in SINGLE), joint, actor_critic]
NAMES = [*(make.__name__ for make in SINGLE), "joint", "actor_critic"]
every = pytest.mark.parametrize("make", ALL, ids=NAMES)


def autograd_fisher(likelihood: Likelihood, draws: list[Targets], weights: list[Tensor]) -> Tensor:
    """Sum over outcomes of ``p(y) s(y) s(y)^T`` for each term, ``[terms, E, E]``, scores by autograd; E counts all outputs of one term."""
    total = torch.zeros(())
    for y, weight in zip(draws, weights, strict=True):
        scores = torch.autograd.grad(likelihood.log_prob(y).sum(), likelihood.outputs, retain_graph=True)
        flat = torch.cat([s.reshape(likelihood.num_terms, -1) for s in scores], 1)
        total = total + weight.reshape(-1, 1, 1) * flat.unsqueeze(2) * flat.unsqueeze(1)
    return total


def column_fisher(likelihood: Likelihood) -> Tensor:
    """``sum_c v_c v_c^T`` for each term, ``[terms, E, E]``."""
    columns = [torch.cat([v.reshape(likelihood.num_terms, -1) for v in column], 1) for column in likelihood.fisher_columns()]
    assert len(columns) == likelihood.num_columns
    stacked = torch.stack(columns)
    return torch.einsum("cne,cnf->nef", stacked, stacked)


@pytest.mark.parametrize("make", SINGLE, ids=NAMES[: len(SINGLE)])
def test_log_prob_equals_torch_distributions(make: Callable[[], tuple[Likelihood, td.Distribution]]) -> None:
    likelihood, reference = make()
    y = reference.sample()
    assert_equal(likelihood.log_prob(y), reference.log_prob(y))
    assert likelihood.log_prob(y).shape == likelihood.term_shape
    assert likelihood.num_terms == math.prod(likelihood.term_shape)


@every
def test_score_equals_autograd(make: Callable[[], Likelihood]) -> None:
    likelihood = make()
    y = likelihood.sample()
    expected = torch.autograd.grad(likelihood.log_prob(y).sum(), likelihood.outputs)
    actual = likelihood.score(y)
    assert len(actual) == len(expected)
    for a, e, output in zip(actual, expected, likelihood.outputs, strict=True):
        assert_equal(a, e)
        assert not a.requires_grad
        assert a.shape == output.shape


def test_categorical_columns_equal_the_autograd_fisher() -> None:
    likelihood = Categorical(leaf(5, 4))
    draws: list[Targets] = [torch.full((5,), c) for c in range(4)]
    weights = [likelihood.log_prob(y).detach().exp() for y in draws]
    assert_equal(column_fisher(likelihood), autograd_fisher(likelihood, draws, weights))


def test_bernoulli_columns_equal_the_autograd_fisher() -> None:
    likelihood = Bernoulli(leaf(5, 3))
    outcomes = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 3)
    draws: list[Targets] = [bits.expand(5, 3) for bits in outcomes]
    weights = [likelihood.log_prob(y).detach().exp() for y in draws]
    assert_equal(column_fisher(likelihood), autograd_fisher(likelihood, draws, weights))


@pytest.mark.parametrize("make", [gaussian_fixed, gaussian_flat, gaussian_scale_output, gaussian_log_std_output, gaussian_shared_scale])
def test_gaussian_columns_equal_the_autograd_fisher(make: Callable[[], tuple[Likelihood, td.Distribution]]) -> None:
    """Gauss-Hermite quadrature with three nodes is exact for polynomials of degree five; products of scores have degree four."""
    likelihood, reference = make()
    nodes, node_weights = torch.tensor([-math.sqrt(3), 0.0, math.sqrt(3)]), torch.tensor([1 / 6, 2 / 3, 1 / 6])
    event = 1 if reference.mean.ndim == 1 else reference.mean.shape[-1]
    draws: list[Targets] = []
    weights: list[Tensor] = []
    for index in torch.cartesian_prod(*[torch.arange(3)] * event).reshape(-1, event):
        offset = nodes[index] if reference.mean.ndim > 1 else nodes[index[0]]
        draws.append(reference.mean + reference.stddev * offset)
        weights.append(node_weights[index].prod().expand(likelihood.num_terms))
    assert_equal(column_fisher(likelihood), autograd_fisher(likelihood, draws, weights))


@every
def test_sampled_score_has_zero_mean_and_the_fisher_as_covariance(make: Callable[[], Likelihood]) -> None:
    """4,000 draws; every entry within 5 standard errors (fewer than 1e-6 false alarms an entry, at most 300 entries)."""
    likelihood = make()
    generator = torch.Generator().manual_seed(3)
    draws = torch.stack(
        [torch.cat([s.reshape(likelihood.num_terms, -1) for s in likelihood.sampled_score(generator)], 1) for _ in range(4000)]
    )  # [draws, terms, E]
    products = draws.unsqueeze(3) * draws.unsqueeze(2)
    expected = column_fisher(likelihood)
    error = (products.mean(0) - expected).abs()
    standard_error = products.std(0) / math.sqrt(len(draws))
    assert (error <= 5 * standard_error + 1e-12).all()
    assert (draws.mean(0).abs() <= 5 * draws.std(0) / math.sqrt(len(draws)) + 1e-12).all()


@every
def test_output_quadratic_is_the_fisher_form(make: Callable[[], Likelihood]) -> None:
    likelihood = make()
    delta = tuple(torch.randn_like(output) for output in likelihood.outputs)
    flat = torch.cat([d.reshape(likelihood.num_terms, -1) for d in delta], 1)
    expected = torch.einsum("ne,nef,nf->n", flat, column_fisher(likelihood), flat).reshape(likelihood.term_shape)
    assert_equal(likelihood.output_quadratic(delta), expected)


def shifted(likelihood: Likelihood, delta: tuple[Tensor, ...]) -> Likelihood:
    """The likelihood with its outputs moved by `delta`."""
    moved = iter(o.detach() + d for o, d in zip(likelihood.outputs, delta, strict=True))

    def move(one: Likelihood) -> Likelihood:
        if isinstance(one, Joint):
            return Joint(*(move(head) for head in one.heads))
        if isinstance(one, Gaussian):
            mean = next(moved)
            if len(one.outputs) == 2:
                second = next(moved)
                return Gaussian(mean, scale=second) if one._kind == "scale" else Gaussian(mean, log_std=second)
            return Gaussian(mean, scale=one._std)
        return type(one)(next(moved))  # type: ignore[call-arg]

    return move(likelihood)


@every
def test_kl_is_half_the_output_quadratic_to_second_order(make: Callable[[], Likelihood]) -> None:
    likelihood = make()
    direction = tuple(torch.randn_like(output) for output in likelihood.outputs)
    errors = []
    for h in (1e-2, 5e-3, 2.5e-3):
        delta = tuple(h * d for d in direction)
        remainder = likelihood.detach().kl(shifted(likelihood, delta)) - 0.5 * likelihood.output_quadratic(delta)
        errors.append(remainder.abs().max().item() / h**2)
    # the remainder of a second-order expansion is cubic: divided by h^2 it halves with h (or is rounding, where the KL is quadratic)
    assert all(later < 0.6 * earlier or later < 1e-10 for earlier, later in pairwise(errors))


def test_kl_equals_torch_distributions() -> None:
    p, q = torch.randn(5, 4), torch.randn(5, 4)
    expected = td.kl_divergence(td.Categorical(logits=p), td.Categorical(logits=q))
    assert_equal(Categorical(p).kl(Categorical(q)), expected)
    expected = td.kl_divergence(td.Bernoulli(logits=p), td.Bernoulli(logits=q)).sum(-1)
    assert_equal(Bernoulli(p).kl(Bernoulli(q)), expected)
    expected = td.kl_divergence(td.Normal(p, q.exp()), td.Normal(q, p.exp())).sum(-1)
    assert_equal(Gaussian(p, scale=q.exp()).kl(Gaussian(q, log_std=p)), expected)
    both = Joint(Categorical(p), Bernoulli(p)).kl(Joint(Categorical(q), Bernoulli(q)))
    assert_equal(both, Categorical(p).kl(Categorical(q)) + Bernoulli(p).kl(Bernoulli(q)))


def test_kl_of_near_distributions_is_accurate_and_never_negative_in_float32() -> None:
    p = torch.randn(1000, 6, dtype=torch.float32)
    q = p + 1e-3 * torch.randn_like(p)
    for family in (Categorical, Bernoulli, lambda x: Gaussian(torch.zeros_like(x), log_std=x)):
        got, exact = family(p).kl(family(q)), family(p.double()).kl(family(q.double()))
        assert got.dtype == torch.float32
        assert (got >= 0).all()
        # the plain formula has an absolute error of about 1e-7, as large as these divergences; this one is good to a per mille in the mean
        assert abs(got.double().mean() / exact.mean() - 1) < 2e-3


def test_excluded_classes_give_finite_results() -> None:
    logits = torch.tensor([[0.3, -math.inf, 1.0], [0.0, 0.0, -math.inf]]).requires_grad_()
    likelihood = Categorical(logits)
    draws = torch.stack([likelihood.sample() for _ in range(200)])
    assert (draws[:, 0] != 1).all()
    assert (draws[:, 1] != 2).all()
    columns = [column[0] for column in likelihood.fisher_columns()]
    for values in (likelihood.sampled_score()[0], *columns, likelihood.kl(likelihood.detach())):
        assert values.isfinite().all()
    assert Categorical(torch.zeros(2, 3)).kl(likelihood).isinf().all()
    moved = torch.tensor([[0.5, -math.inf, 1.0], [0.0, 0.1, -math.inf]])
    legal = torch.tensor([[0.3, 1.0], [0.0, 0.0]]), torch.tensor([[0.2, 0.0], [0.0, 0.1]])
    # the change of an excluded logit is NaN and does not count; float32, sums of two terms
    torch.testing.assert_close(
        likelihood.output_quadratic((moved - logits.detach(),)), Categorical(legal[0]).output_quadratic((legal[1],)), rtol=1e-5, atol=1e-8
    )


def test_extreme_logits_give_finite_scores_and_columns() -> None:
    for dtype in (torch.float32, torch.float64):
        big = torch.tensor([[800.0, -800.0, 0.0]], dtype=dtype)
        for likelihood in (Categorical(big), Bernoulli(big)):
            assert likelihood.sampled_score()[0].isfinite().all()
            assert column_fisher(likelihood).isfinite().all()
            assert likelihood.kl(likelihood).abs().max() == 0


@every
def test_sampling_is_determined_by_the_generator_and_leaves_the_global_one_alone(make: Callable[[], Likelihood]) -> None:
    likelihood = make()
    before = torch.get_rng_state()
    first = likelihood.sampled_score(torch.Generator().manual_seed(1))
    again = likelihood.sampled_score(torch.Generator().manual_seed(1))
    other = likelihood.sampled_score(torch.Generator().manual_seed(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    likelihood.sample()
    assert not torch.equal(torch.get_rng_state(), before)


@every
def test_sampled_score_is_the_score_at_the_sample(make: Callable[[], Likelihood]) -> None:
    likelihood = make()
    y = likelihood.sample(torch.Generator().manual_seed(5))
    for a, b in zip(likelihood.sampled_score(torch.Generator().manual_seed(5)), likelihood.score(y), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("make", SINGLE, ids=NAMES[: len(SINGLE)])
def test_samples_have_the_right_distribution(make: Callable[[], tuple[Likelihood, td.Distribution]]) -> None:
    """4,000 draws; frequencies or means within 5 standard errors."""
    likelihood, reference = make()
    draws = torch.stack([s for _ in range(4000) if isinstance(s := likelihood.sample(), Tensor)]).double()
    if isinstance(reference, td.Categorical):
        draws = torch.nn.functional.one_hot(draws.long(), 4).double()
        mean, std = reference.probs, (reference.probs * (1 - reference.probs)).sqrt()
    else:
        mean, std = reference.mean, reference.stddev
    assert ((draws.mean(0) - mean).abs() <= 5 * std / math.sqrt(4000)).all()
    assert (draws.std(0) <= 1.15 * std + 1e-12).all()


@every
def test_detach_is_a_copy_that_keeps_the_values(make: Callable[[], Likelihood]) -> None:
    likelihood = make()
    copy = likelihood.detach()
    before = [o.clone() for o in copy.outputs]
    assert [o.shape for o in copy.outputs] == [o.shape for o in likelihood.outputs]
    assert not any(o.requires_grad for o in copy.outputs)
    assert likelihood.kl(copy).abs().max() == 0
    assert copy.known_fisher() == []
    leaves = [o for o in likelihood.outputs if o.is_leaf]
    with torch.no_grad():
        for o in leaves:
            o.add_(1.0)
    assert all(torch.equal(a, b) for a, b in zip(before, copy.outputs, strict=True))


def test_known_fisher_of_a_learned_log_std() -> None:
    mean, log_std = leaf(5, 3), leaf(3)
    likelihood = Gaussian(mean, log_std=log_std)
    assert len(likelihood.outputs) == 1
    ((parameter, diagonal),) = likelihood.known_fisher()
    assert parameter is log_std
    assert torch.equal(diagonal, torch.full((3,), 2.0))
    # against the exact expectation of the squared score of one term (three nodes are exact, see above), with independent dimensions
    expected = torch.zeros(3)
    for node, weight in ((-math.sqrt(3), 1 / 6), (0.0, 2 / 3), (math.sqrt(3), 1 / 6)):
        (grad,) = torch.autograd.grad(likelihood.log_prob((mean + node * log_std.exp()).detach()).sum(), log_std)
        expected += weight * (grad / 5).square()  # every term has the same score here
    assert_equal(diagonal, expected)


@pytest.mark.parametrize(("shape", "value"), [((3,), 2.0), ((1,), 6.0), ((), 6.0), ((5, 3), 0.4), ((5, 1), 1.2)])
def test_known_fisher_counts_the_dimensions_that_share_the_parameter(shape: tuple[int, ...], value: float) -> None:
    parameter = torch.zeros(shape).requires_grad_()
    likelihood = Gaussian(leaf(5, 3), log_std=parameter)
    ((_, diagonal),) = likelihood.known_fisher()
    assert_equal(diagonal, torch.full(shape, value))


def test_joint_adds_the_known_fisher_of_a_shared_parameter() -> None:
    log_std = leaf(3)
    shared = Joint(Gaussian(leaf(5, 3), log_std=log_std), Gaussian(leaf(5, 3), log_std=log_std), Gaussian(leaf(5)))
    ((parameter, diagonal),) = shared.known_fisher()
    assert parameter is log_std
    assert torch.equal(diagonal, torch.full((3,), 4.0))


def test_gradients_of_a_shared_scale_reach_its_parameter() -> None:
    """A scale of lower shape is expanded inside the graph: pulling scores back through it sums over the terms."""
    mean, raw = leaf(5, 3), leaf(3)
    likelihood = Gaussian(mean, scale=raw.exp())
    y = likelihood.sample()
    (expected,) = torch.autograd.grad(likelihood.log_prob(y).sum(), raw, retain_graph=True)
    (actual,) = torch.autograd.grad(likelihood.outputs, raw, likelihood.score(y))
    assert likelihood.outputs[1].shape == (5, 3)
    assert_equal(actual, expected)


def test_accepts_torch_distributions() -> None:
    logits, mean = leaf(5, 4), leaf(5, 3)
    y = torch.randint(4, (5,))
    given = [td.Categorical(logits=logits), td.OneHotCategorical(logits=logits), td.Categorical(probs=logits.softmax(-1))]
    for distribution in given:
        likelihood = Categorical(distribution)
        assert_equal(likelihood.log_prob(y), Categorical(logits).log_prob(y))
        (through,) = torch.autograd.grad(likelihood.outputs, logits, likelihood.score(y), retain_graph=True)
        assert_equal(through, Categorical(logits).score(y)[0])
    z = torch.randn(5, 3)
    for normal in (td.Normal(mean, 0.5), td.Independent(td.Normal(mean, 0.5), 1)):
        assert_equal(Gaussian(normal).log_prob(z), Gaussian(mean, scale=0.5).log_prob(z))
        assert len(Gaussian(normal).outputs) == 1
    assert len(Gaussian(td.Normal(mean, leaf(5, 3).exp())).outputs) == 2
    bits = torch.randint(2, (5, 3)).double()
    for binary in (td.Bernoulli(logits=mean), td.Independent(td.Bernoulli(probs=mean.sigmoid()), 1)):
        assert_equal(Bernoulli(binary).log_prob(bits), Bernoulli(mean).log_prob(bits))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened_and_scores_keep_the_output_dtype(dtype: torch.dtype) -> None:
    x = (3 * torch.randn(6, 4)).to(dtype).requires_grad_()
    for family in (Categorical, Bernoulli, Gaussian):
        likelihood, wide = family(x), family(x.detach().float())
        y = likelihood.sample()
        assert likelihood.log_prob(y).dtype == torch.float32
        assert torch.equal(likelihood.log_prob(y), wide.log_prob(y))
        assert likelihood.sampled_score()[0].dtype == dtype
        assert torch.equal(likelihood.score(y)[0], wide.score(y)[0].to(dtype))
        assert all(column[0].dtype == dtype for column in likelihood.fisher_columns())
        assert likelihood.kl(family((x.detach() + 1).to(dtype))).dtype == torch.float32


def test_joint_flattens_and_keeps_heads_apart() -> None:
    likelihood = joint()
    assert isinstance(likelihood, Joint)
    assert [type(head) for head in likelihood.heads] == [Categorical, Gaussian, Bernoulli]
    assert likelihood.num_columns == 4 + 6 + 3
    heads_of_columns = [tuple(bool(part.any()) for part in column) for column in likelihood.fisher_columns()]
    assert heads_of_columns[0] == (True, False, False, False)
    assert heads_of_columns[4] == (False, True, False, False)
    assert heads_of_columns[-1] == (False, False, False, True)
    y = likelihood.sample()
    expected = sum(head.log_prob(t) for head, t in zip(likelihood.heads, y, strict=True))
    assert isinstance(expected, Tensor)
    assert_equal(likelihood.log_prob(y), expected)


MEAN = torch.zeros(5, 3)
BAD: list[tuple[Callable[[], object], type[Exception], str]] = [
    (lambda: Categorical([[0.0, 1.0]]), TypeError, "must be a tensor, got list"),  # type: ignore[arg-type]
    (lambda: Categorical(torch.zeros(5, 3).long()), TypeError, "floating"),
    (lambda: Categorical(torch.zeros(3)), ShapeError, "unsqueeze"),
    (lambda: Categorical(torch.zeros(5, 1)), ShapeError, "at least 2 classes"),
    (lambda: Categorical(torch.zeros(0, 3)), ShapeError, "empty"),
    (lambda: Categorical(td.Normal(MEAN, 1.0)), TypeError, "got Normal"),
    (lambda: Categorical(MEAN).log_prob(torch.zeros(5)), TypeError, "integer class indices"),
    (lambda: Categorical(MEAN).log_prob(torch.zeros(4).long()), ShapeError, r"\(5,\).*\(4,\)"),
    (lambda: Categorical(MEAN).score(torch.full((5,), 3)), ConfigError, r"\[0, 3\)"),
    (lambda: Categorical(MEAN).score(torch.full((5,), -1)), ConfigError, r"\[0, 3\)"),
    (lambda: Categorical(MEAN).score(torch.zeros(5, 3)), ShapeError, "argmax"),
    (lambda: Categorical(MEAN).score([0, 1, 2, 0, 1]), TypeError, "got list"),  # type: ignore[arg-type]
    (lambda: Gaussian(torch.tensor(0.0)), ShapeError, "unsqueeze"),
    (lambda: Gaussian(MEAN, scale=0.0), ConfigError, "> 0, got 0.0"),
    (lambda: Gaussian(MEAN, scale=-MEAN), ConfigError, "> 0"),
    (lambda: Gaussian(MEAN, scale=torch.ones(4)), ShapeError, r"broadcast.*\(5, 3\).*\(4,\)"),
    (lambda: Gaussian(MEAN, scale=torch.ones(2, 5, 3)), ShapeError, "broadcast"),
    (lambda: Gaussian(MEAN, scale=1.0, log_std=torch.zeros(3)), ConfigError, "one of them"),
    (lambda: Gaussian(td.Normal(MEAN, 1.0), scale=2.0), ConfigError, "brings its own scale"),
    (lambda: Gaussian(MEAN, scale="1"), ConfigError, "must be a number"),  # type: ignore[arg-type]
    (lambda: Gaussian(td.Laplace(MEAN, 1.0)), TypeError, "got Laplace"),
    (lambda: Gaussian(td.Independent(td.Laplace(MEAN, 1.0), 1)), TypeError, "Independent of Laplace"),
    (lambda: Gaussian(td.Independent(td.Normal(MEAN, 1.0), 2)), ShapeError, "one event dimension"),
    (lambda: Gaussian(td.Independent(td.Normal(torch.zeros(3), 1.0), 1)), ShapeError, "one batch dimension"),
    (lambda: Gaussian(MEAN).score(torch.zeros(5)), ShapeError, r"\(5, 3\).*\(5,\)"),
    (lambda: Gaussian(MEAN).score(torch.zeros(5, 3).long()), TypeError, "floating"),
    (lambda: Bernoulli(MEAN).score(torch.full((5, 3), 0.5)), ConfigError, "0 or 1"),
    (lambda: Bernoulli(MEAN).score(torch.zeros(5)), ShapeError, r"\(5, 3\).*\(5,\)"),
    (lambda: Bernoulli(MEAN.to(torch.complex64)), TypeError, "floating"),
    (Joint, ConfigError, "at least one"),
    (lambda: Joint(MEAN), TypeError, "got Tensor"),  # type: ignore[arg-type]
    (lambda: Joint(Categorical(MEAN), Gaussian(torch.zeros(4))), ShapeError, r"Categorical \(5,\), Gaussian \(4,\)"),
    (lambda: Joint(Categorical(MEAN)).score(torch.zeros(5).long()), TypeError, "tuple"),
    (lambda: Joint(Categorical(MEAN)).score(()), ShapeError, "1 heads, got 0"),
    (lambda: Categorical(MEAN).kl(Bernoulli(MEAN)), TypeError, "one family"),
    (lambda: Categorical(MEAN).kl(Categorical(torch.zeros(4, 3))), ShapeError, "equal shapes"),
    (lambda: Joint(Categorical(MEAN)).kl(Joint(Categorical(MEAN), Categorical(MEAN))), ShapeError, "equally many heads"),
    (lambda: Gaussian(MEAN).output_quadratic((torch.zeros(5),)), ShapeError, r"\(5, 3\)"),
    (lambda: Categorical(MEAN).check_differentiable(), CaptureError, "without gradient history"),
]


@pytest.mark.parametrize(("act", "error", "message"), BAD, ids=[f"{i}-{m[:20]}" for i, (_, _, m) in enumerate(BAD)])
def test_bad_input_gets_an_error_that_says_what_is_legal(act: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        act()


def test_outputs_with_history_pass_the_check() -> None:
    Joint(Categorical(leaf(5, 3)), Gaussian(torch.zeros(5))).check_differentiable()
    assert "Categorical(terms=(5,)" in repr(Categorical(leaf(5, 3)))


def test_nan_outputs_do_not_raise() -> None:
    """Detection of non-finite statistics belongs to the step, which skips; building the likelihood must not fail first."""
    bad = torch.full((5, 3), math.nan)
    for likelihood in (Categorical(bad), Gaussian(bad, scale=bad), Bernoulli(bad)):
        assert likelihood.sampled_score()[0].isnan().any()
