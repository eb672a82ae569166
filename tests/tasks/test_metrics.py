import dataclasses
import math

import numpy as np
import pytest
import torch

from eqscale.errors import InputError
from eqscale.tasks import Field, Kind, Wording
from eqscale.tasks.metrics import asymmetry, averaged, equivariance, evaluate
from eqscale.tasks.samples import StoredSamples
from eqscale.tasks.symmetry import random_orthogonal

TARGETS = {
    "energies of a sample": Field("energy", Kind.INVARIANT, "sample", channels=2),
    "charges of tokens": Field("moment", Kind.INVARIANT),
    "dipole of a sample": Field("dipole", Kind.DIRECTION, "sample"),
    "forces on tokens": Field("force", Kind.DIRECTION, at="position"),
}


@pytest.fixture(params=TARGETS)
def samples(request, toys) -> StoredSamples:
    """The toy's inputs with another target, of random numbers."""
    target = TARGETS[request.param]
    batch, tokens = toys.batch(np.arange(40)), toys.tokens[:40]
    per_token = target.per == "token"
    shapes = {f.name: batch[f.name].shape[1:] for f in toys.schema.fields}
    shapes |= {"target": (5, target.width) if per_token else (target.width,)}
    shapes |= {"weight": (5,) if per_token else ()}
    records = np.zeros(40, [("tokens", "<i4"), *((name, "<f4", shape) for name, shape in shapes.items())])
    records["tokens"] = tokens
    for name, value in batch.values.items():
        records[name] = value
    real = np.arange(5) < tokens[:, None]
    records["target"] = np.random.default_rng(0).normal(size=records["target"].shape)
    records["weight"] = real / real.sum(1, keepdims=True) if per_token else 1.0
    if per_token:
        records["target"] *= real[..., None]
    return StoredSamples(dataclasses.replace(toys.schema, target=target), [records[:30], records[30:]], 2.0, {})


def zero(batch):
    return torch.zeros_like(batch.target)


def sums(values: torch.Tensor, batch) -> np.ndarray:
    """Weighted sums over each sample, by a loop."""
    found = []
    for value, weight in zip(values.double(), batch.weight.double(), strict=True):
        rows = zip(value, weight, strict=True) if weight.ndim else [(value, weight)]
        found.append(sum(float(w) * float((v**2).sum()) for v, w in rows))
    return np.array(found)


def test_errors_are_those_of_a_loop_over_samples(samples):
    indices = np.arange(40)
    batch = samples.batch(indices)
    shift = torch.linspace(0.1, 1, 40).reshape(-1, *[1] * (batch.target.ndim - 1))

    def off(batch):
        return batch.target + shift[batch.system]

    error, scale = sums(off(batch) - batch.target, batch), sums(batch.target, batch)
    found = evaluate(off, samples, indices, batch_size=7)
    assert found.nmse == pytest.approx(error.sum() / scale.sum(), rel=1e-6)
    assert (found.mse, found.scale) == pytest.approx((error.mean(), scale.mean()), rel=1e-6)
    spread = math.sqrt(40 / 39 * np.square(error - found.nmse * scale).sum()) / scale.sum()
    assert found.nmse_se == pytest.approx(spread, rel=1e-6)
    assert found.n_systems == 40
    assert evaluate(zero, samples, indices).nmse == pytest.approx(1, abs=1e-12)
    assert math.isnan(evaluate(off, samples, indices[:1]).nmse_se)


def test_observers_see_every_batch_in_float64(samples):
    seen = []
    found = evaluate(
        zero, samples, np.arange(40), 16, observe=lambda batch, prediction, square: seen.append((batch, square))
    )
    assert [len(batch) for batch, _ in seen] == [16, 16, 8]
    assert all(batch.target.dtype == square.dtype == torch.float64 for batch, square in seen)
    assert sum(float(square.sum()) for _, square in seen) / 40 == pytest.approx(found.mse)


def like(value: torch.Tensor, batch) -> torch.Tensor:
    """A number of each token, (B, T, 1 or 3), in the target's shape."""
    if batch.schema.target.per == "sample":
        value = (value * batch.mask[..., None]).sum(1)
    return value.expand(batch.target.shape)


def covariant(batch):
    """Transforms as the target does."""
    if batch.schema.target.kind is Kind.DIRECTION:
        return like(batch["velocity"], batch)
    return like(batch["velocity"].square().sum(-1, keepdim=True), batch)


def errors(predict, samples) -> dict[str, float]:
    return equivariance(predict, samples, np.arange(40), random_orthogonal, batch_size=15)


def test_a_covariant_predictor_has_no_equivariance_error(samples):
    assert max(errors(covariant, samples).values()) < 1e-5


def test_a_preferred_axis_is_an_equivariance_error_that_averaging_lessens(samples):
    def tilted(batch):
        return covariant(batch) + like(batch["velocity"][..., 2:], batch)

    found = errors(tilted, samples)
    assert min(found["equivariance_rotation"], found["equivariance_reflection"]) > 0.1
    assert max(found["equivariance_translation"], found["equivariance_permutation"]) < 1e-5
    better = errors(averaged(tilted, random_orthogonal, 30), samples)
    assert better["equivariance_rotation"] < 0.5 * found["equivariance_rotation"]
    assert 0 < better["equivariance_loss_share"] < 0.5 * found["equivariance_loss_share"]


def test_the_asymmetry_is_the_share_of_the_loss_with_its_error(samples):
    def tilted(batch):
        return covariant(batch) + like(batch["velocity"][..., 2:], batch)

    found = asymmetry(tilted, samples, np.arange(40), random_orthogonal, batch_size=15)
    assert 0 < found["share_se"] < 0.5 * found["share"]
    assert abs(found["share"] - errors(tilted, samples)["equivariance_loss_share"]) < 4 * found["share_se"]
    assert asymmetry(covariant, samples, np.arange(40), random_orthogonal)["share"] < 1e-9


def test_averaging_leaves_a_covariant_predictor_as_it_is(samples):
    batch = samples.batch(np.arange(40))
    torch.testing.assert_close(averaged(covariant, random_orthogonal, 5)(batch), covariant(batch))
    noisy = averaged(lambda b: b.target + b["position"].sum(), random_orthogonal, 1)
    assert torch.equal(noisy(batch), batch.target + batch["position"].sum())
    with pytest.raises(InputError, match="averaging over 0 group elements"):
        averaged(covariant, random_orthogonal, 0)


def test_a_task_evaluates_with_what_it_measures_itself(toy, toys, known):
    class Measured(type(toy)):
        words = Wording("measured", "")

        def measure(self, errors, samples):
            return {"rmse": math.sqrt(errors.mse) * samples.target_rms}

    found = known(Measured).evaluate(zero, toys, np.arange(len(toys)))
    assert found.keys() == {"nmse", "nmse_se", "rmse"}
    assert (found["nmse"], found["rmse"]) == pytest.approx((1.0, toys.target_rms))
    names = {"rotation", "reflection", "translation", "permutation", "loss_share"}
    assert toy.equivariance(zero, toys, np.arange(8)).keys() == {f"equivariance_{name}" for name in names}
