import pytest
import torch
from torch import nn

from model.schedule import (
    freeze_batch_norm_statistics,
    make_optimizer,
    set_learning_rates,
    update_average,
    warmup_cosine,
)


def test_learning_rates_grow_from_input_to_output_and_biases_do_not_decay() -> None:
    layers = [nn.Linear(2, 2) for _ in range(3)]
    head = nn.Linear(2, 2)
    optimizer = make_optimizer(
        [list(layer.parameters()) for layer in layers],
        head,
        learning_rate=1e-2,
        head_learning_rate=1.0,
        first_layer_share=0.01,
        weight_decay=0.1,
    )
    rate = {id(each): group["lr"] for group in optimizer.param_groups for each in group["params"]}
    decay = {id(each): group["weight_decay"] for group in optimizer.param_groups for each in group["params"]}
    assert [rate[id(layer.weight)] for layer in [*layers, head]] == pytest.approx([1e-4, 1e-3, 1e-2, 1.0])
    assert {decay[id(layer.weight)] for layer in [*layers, head]} == {0.1}
    assert {decay[id(layer.bias)] for layer in [*layers, head]} == {0.0}
    set_learning_rates(optimizer, 0.5)
    set_learning_rates(optimizer, 0.5)
    assert optimizer.param_groups[-1]["lr"] == 0.5


def test_one_group_learns_at_the_full_rate() -> None:
    layer = nn.Linear(2, 2)
    optimizer = make_optimizer(
        [[layer.weight]],
        nn.Linear(2, 2),
        learning_rate=1e-2,
        head_learning_rate=1.0,
        first_layer_share=0.1,
        weight_decay=0.0,
    )
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-2)


def test_warms_up_then_falls_to_zero() -> None:
    factors = [warmup_cosine(step, n_warmup_steps=3, n_steps=11) for step in range(12)]
    assert factors[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 0.9619397])
    assert factors[7] == pytest.approx(0.5)
    assert factors[11] == pytest.approx(0)
    assert warmup_cosine(0, n_warmup_steps=0, n_steps=0) == 1


def test_average_follows_fast_at_first_then_slowly_and_copies_buffers() -> None:
    average, model = nn.BatchNorm1d(1), nn.BatchNorm1d(1)
    nn.init.constant_(average.weight, 0.0)
    nn.init.constant_(model.weight, 1.0)
    model.running_mean.fill_(7.0)
    update_average(average, model, decay=0.9, n_updates=0)
    assert average.weight.item() == pytest.approx(0.9)
    assert average.running_mean.item() == 7
    update_average(average, model, decay=0.9, n_updates=1000)
    assert average.weight.item() == pytest.approx(0.9 * 0.9 + 0.1)


def test_frozen_statistics_stay_while_scale_and_shift_learn() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout())
    network.train()
    freeze_batch_norm_statistics(network)
    network(torch.randn(8, 2) + 5).sum().backward()
    assert network[1].running_mean.tolist() == [0, 0]
    assert network[1].bias.grad is not None
    assert network[2].training
