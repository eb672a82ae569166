import numpy as np
import pytest

from eqscale.errors import InputError
from eqscale.training.order import DataOrder


def order(seed=0, systems=300, batch_size=16):
    tokens = np.random.default_rng(1).integers(12, 61, systems)
    return DataOrder(tokens, samples_per_system=24, batch_size=batch_size, seed=seed)


def test_an_epoch_draws_every_sample_at_most_once():
    data = order()
    drawn = np.concatenate([data.batch(step) for step in range(data.batches_per_epoch)])
    assert len(np.unique(drawn)) == len(drawn) == data.batches_per_epoch * 16
    assert drawn.max() < data.samples


def test_epochs_and_seeds_differ_and_steps_repeat():
    data = order()
    assert not np.array_equal(data.batch(0), data.batch(data.batches_per_epoch))
    assert not np.array_equal(data.batch(0), order(seed=1).batch(0))
    assert np.array_equal(data.batch(700), order().batch(700))


def test_padding_stays_below_five_per_cent():
    data = order(systems=2000)
    steps = range(data.batches_per_epoch)
    padded = 16 * sum(data.counts(step)[2] for step in steps)
    real = sum(int(data.tokens[data.batch(step) // 24].sum()) for step in steps)
    assert 1 <= padded / real < 1.05


def test_a_batch_is_an_unbiased_draw_of_the_samples():
    data = order(systems=2000)
    mean_of_first = np.mean([data.tokens[data.batch(step) // 24].mean() for step in range(400)])
    assert mean_of_first == pytest.approx(data.tokens.mean(), rel=0.02)


def test_a_batch_larger_than_the_data_is_an_error():
    with pytest.raises(InputError, match="batch size 100 exceeds the 48 training samples"):
        DataOrder(np.array([10, 12]), samples_per_system=24, batch_size=100, seed=0)
