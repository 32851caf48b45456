"""One shape for all of torchvision's classification networks: a sequence of stages, some of whose outputs are pooled.

A linear head learns more from few labels when it also sees what the network knew before its last block, so a
``FeatureNetwork`` returns the pooled outputs of up to two earlier blocks and, last, the pooled output that
torchvision's own classifier would see.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn
from torch.func import functional_call
from torchvision import models

_EARLIER_BLOCKS = 2
_GRID_SIZE = 4
_SEQUENCES = {"features", "layers", "blocks", "trunk_output"}
_AUXILIARY = {"aux1", "aux2", "AuxLogits"}
_AFTER_POOLING = {"avgpool", "dropout", "classifier", "fc", "head", "permute", "flatten"}


class FeatureNetwork(nn.Module):
    """Images (n, 3, height, width) to features (n, n_features) in float32: the pooled blocks side by side.

    ``block_ends`` are the indices of the stages whose outputs are pooled, ``block_sizes`` the number of features
    of each. A block ends before each reduction of the resolution; in a network of one resolution throughout, the
    earlier blocks end at a third and two thirds of the depth.

    ``shallow`` is for untrained networks: it ends with the first of these blocks, whose output is averaged over
    the fields of a grid. Random filters still tell what an image looks like where; each further random layer
    blurs it.
    """

    def __init__(self, network: nn.Module, crop_size: int, *, shallow: bool = False) -> None:
        """Cut a torchvision network into its stages, sharing its parameters."""
        super().__init__()
        stages = _stages(network)
        self.channel_axis = -1 if isinstance(network, models.SwinTransformer | models.VisionTransformer) else 1
        shapes = _output_shapes(stages, self.channel_axis, crop_size)
        ends = _block_ends([shape[2:].numel() for shape in shapes])
        self.shallow = shallow
        self.block_ends = ends[:1] if shallow else ends
        self.stages = nn.ModuleList(stages[: self.block_ends[-1] + 1])
        n_fields = _GRID_SIZE**2 if shallow and len(shapes[ends[0]]) == 4 else 1
        self.block_sizes = tuple(shapes[end][1] * n_fields for end in self.block_ends)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the features of images."""
        blocks = []
        output = images
        for index, stage in enumerate(self.stages):
            output = stage(output)
            if index in self.block_ends:
                blocks.append(self._pool(output))
        return torch.cat(blocks, dim=1)

    @property
    def n_stages_before_last_block(self) -> int:
        """How many stages there are before the last block, or none where it is the only one."""
        return self.block_ends[-2] + 1 if len(self.block_ends) > 1 else 0

    def maps(self, images: torch.Tensor, n_stages: int) -> torch.Tensor:
        """Return what the first stages make of images (n, *shape): what ``last_block`` goes on from."""
        output = images
        for stage in self.stages[:n_stages]:
            output = stage(output)
        return output

    def last_block(self, maps: torch.Tensor, n_stages: int) -> torch.Tensor:
        """Return the features of the last block (n, n_features of it), given what ``n_stages`` stages made of images.

        With ``n_stages`` 0 the maps are the images.
        """
        output = maps
        for stage in self.stages[n_stages:]:
            output = stage(output)
        return self._pool(output)

    def _pool(self, output: torch.Tensor) -> torch.Tensor:
        """Average each channel over all positions, or over those of each field of the grid.

        Tokens have no rows and columns, so no grid; an output without positions stays as it is.
        """
        if output.ndim > 2:
            output = output.movedim(self.channel_axis, 1)
        if output.ndim == 4 and self.shallow:
            return nn.functional.adaptive_avg_pool2d(output.to(torch.float32), _GRID_SIZE).flatten(1)
        if output.ndim > 2:
            output = output.flatten(2).mean(2, dtype=torch.float32)
        return output.to(torch.float32)


def _output_shapes(stages: list[nn.Module], channel_axis: int, crop_size: int) -> list[torch.Size]:
    """Return the shape (1, channels, *positions) of each stage's output, computed without any arithmetic."""
    shapes = []
    output = torch.empty(1, 3, crop_size, crop_size, device="meta")
    with torch.inference_mode():
        for stage in stages:
            tensors = {**dict(stage.named_parameters()), **dict(stage.named_buffers())}
            output = functional_call(stage, {name: each.to("meta") for name, each in tensors.items()}, (output,))
            shapes.append(output.movedim(channel_axis, 1).shape)
    return shapes


def _block_ends(n_positions: list[int]) -> tuple[int, ...]:
    """Return the indices of the stages that end a block, given the number of positions after each stage."""
    last = len(n_positions) - 1
    earlier = [index for index, (here, after) in enumerate(pairwise(n_positions)) if here > after > 1]
    if not earlier:
        earlier = [last // 3, last * 2 // 3]
    return (*earlier[-_EARLIER_BLOCKS:], last)


def _stages(network: nn.Module) -> list[nn.Module]:
    """Return the modules that, one after the other, are the network up to its pooled output."""
    if isinstance(network, models.VisionTransformer):
        return [_Tokens(network), *network.encoder.layers, network.encoder.ln, _FirstToken()]
    stages: list[nn.Module] = []
    for name, child in network.named_children():
        if name in _AFTER_POOLING:
            break
        if name not in _AUXILIARY:
            stages.extend(child.children() if name in _SEQUENCES else [child])
    match network:
        case models.DenseNet():
            stages.append(nn.ReLU())
        case models.ConvNeXt():
            stages.extend([network.avgpool, network.classifier[0]])
        case models.MaxVit():
            stages.extend(network.classifier[:3])
        case models.AlexNet() | models.VGG():
            stages.pop()  # pooled by maximum, then by mean: the same features twice
        case models.GoogLeNet() | models.Inception3():
            stages.insert(0, _HalfRange())
    return stages


class _Tokens(nn.Module):
    """The start of a vision transformer: images to tokens (n, 1 + n_patches, channels), the class token first."""

    def __init__(self, network: models.VisionTransformer) -> None:
        super().__init__()
        self.projection = network.conv_proj
        self.class_token = network.class_token
        self.position = network.encoder.pos_embedding
        self.dropout = network.encoder.dropout

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        patches = self.projection(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(len(images), -1, -1), patches], dim=1)
        return self.dropout(tokens + self.position)  # type: ignore[no-any-return]


class _FirstToken(nn.Module):
    """Tokens (n, n_tokens, channels) to the class token (n, channels)."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens[:, 0]


class _HalfRange(nn.Module):
    """From ImageNet's mean and deviation to the -1..1 that GoogLeNet and Inception, from TensorFlow, were trained on.

    torchvision's networks do this themselves when they come with weights (``transform_input``).
    """

    def __init__(self) -> None:
        super().__init__()
        preset = models.Inception_V3_Weights.IMAGENET1K_V1.transforms()
        mean, std = torch.tensor(preset.mean).view(1, 3, 1, 1), torch.tensor(preset.std).view(1, 3, 1, 1)
        self.scale: torch.Tensor
        self.shift: torch.Tensor
        self.register_buffer("scale", std / 0.5, persistent=False)
        self.register_buffer("shift", (mean - 0.5) / 0.5, persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images * self.scale + self.shift
