"""What changes while a network learns: its weights, their average, the best of those, and the optimizer."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import nn

from model.backbones import Backbone
from model.distributed import sum_gradients
from model.schedule import update_average


class Classifier(nn.Module):
    """A backbone's network with a linear head on its last block: images to logits (n_samples, n_classes).

    With ``n_frozen_stages`` it takes what so many stages make of images (``maps``), and these do not learn.
    """

    def __init__(self, backbone: Backbone, class_count: int, *, n_frozen_stages: int = 0) -> None:
        super().__init__()
        self.network = backbone.network.requires_grad_(requires_grad=True)
        self.network.stages[:n_frozen_stages].requires_grad_(requires_grad=False)
        self.n_frozen_stages = n_frozen_stages
        self.n_last_features = backbone.block_sizes[-1]
        self.head = nn.Linear(self.n_last_features, class_count)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def maps(self, images: torch.Tensor) -> torch.Tensor:
        """Return what the frozen stages make of images."""
        return self.network.maps(images, self.n_frozen_stages)

    def features(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the features of the last block (n_samples, n_last_features)."""
        return self.network.last_block(inputs, self.n_frozen_stages)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        logits: torch.Tensor = self.head(self.features(inputs))
        return logits


class Learner:
    """A model with the moving average of its weights and the best average so far.

    Args:
        model: trained in place.
        optimizer: of the model's parameters.
        average_decay: share that the average keeps at each step.
        max_gradient_norm: longer gradients are shortened to this.
    """

    def __init__(
        self, model: Classifier, optimizer: torch.optim.Optimizer, *, average_decay: float, max_gradient_norm: float
    ) -> None:
        self.model = model
        self.average = copy.deepcopy(model).eval().requires_grad_(False)
        self.best = copy.deepcopy(self.average)
        self.optimizer = optimizer
        self.n_steps = 0
        self._average_decay = average_decay
        self._max_gradient_norm = max_gradient_norm

    def set_head(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        """Give model and average this head: weight (n_classes, n_last_features), bias (n_classes,)."""
        with torch.no_grad():
            for classifier in (self.model, self.average):
                classifier.head.weight.copy_(weight)
                classifier.head.bias.copy_(bias)

    def step(self, *, n_samples: torch.Tensor) -> None:
        """Take the step that the gradients of all ranks, summed over ``n_samples`` images, ask for."""
        sum_gradients(self.model.parameters())
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        if gradients:  # none, when no image of the batch could be read
            torch._foreach_div_(gradients, n_samples.clamp(min=1))
        nn.utils.clip_grad_norm_(self.model.parameters(), self._max_gradient_norm)
        self.optimizer.step()
        update_average(self.average, self.model, decay=self._average_decay, n_updates=self.n_steps)
        self.n_steps += 1

    def keep_as_best(self) -> None:
        """Remember the average as it is now."""
        self.best.load_state_dict(self.average.state_dict())

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return all weights and the optimizer's state, to be saved."""
        tensors = {
            f"{part}.{name}": tensor for part, module in self._parts() for name, tensor in module.state_dict().items()
        }
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in state.items()}
        return tensors

    def restore(self, tensors: Mapping[str, torch.Tensor], *, n_steps: int) -> None:
        """Go back to what ``tensors`` returned after ``n_steps`` steps."""
        for part, module in self._parts():
            prefix = f"{part}."
            own = {name.removeprefix(prefix): each for name, each in tensors.items() if name.startswith(prefix)}
            module.load_state_dict(own)
        state: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimizer."):
                _, index, key = name.split(".")
                state.setdefault(int(index), {})[key] = tensor
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": state})
        self.n_steps = n_steps

    def _parts(self) -> tuple[tuple[str, nn.Module], ...]:
        return (("model", self.model), ("average", self.average), ("best", self.best))
