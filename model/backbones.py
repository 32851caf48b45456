"""Backbones: any of torchvision's classification networks, by name, as a network from images to features.

Pretrained weights come from torchvision, from a file, or from a folder written by ``save_backbone``; without any,
the network is untrained, which is said loudly: features of an untrained network are poor.
"""

from __future__ import annotations

import copy
import difflib
import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import structlog
import torch
import torchvision
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision.models import WeightsEnum

from model.blocks import FeatureNetwork
from model.classifier import PretrainedClassifier, find_classifier
from model.transforms import TRANSFORMS_VERSION, InputSpec
from model.weights import WeightsUnavailable, download, load_weights, read_weights

_log = structlog.get_logger()

_WEIGHTS_FILE = "backbone.safetensors"
_DESCRIPTION_FILE = "backbone.json"


class UnknownBackbone(ValueError):
    """A name that is no classification network of torchvision."""


class CorruptBackbone(Exception):
    """A saved backbone that is incomplete or was altered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backbone:
    """A network that turns images into features, and all one must know to use it.

    Attributes:
        name: torchvision's name of the architecture.
        network: In eval mode; normalised images (n, 3, crop_size, crop_size) to features (n, n_features), float32.
        block_sizes: How many features come from each block, in the order of the features; the last block is the
            pooled output before torchvision's classifier, or the only one of an untrained network.
        input_spec: What images must look like.
        digest: SHA-256, in hex, of name, input specification, transforms version and weights: features with the
            same digest can be compared, others not.
        pretrained: Whether it has learned anything.
        note: What a user should know about it, in plain words; often nothing.
        classifier: What the weights were trained to tell apart, and how to tell it from features; ``None`` where the
            weights have no such part, or it needs more than features (``model.classifier.find_classifier``).
    """

    name: str
    network: FeatureNetwork
    block_sizes: tuple[int, ...]
    input_spec: InputSpec
    digest: str
    pretrained: bool
    note: str = ""
    classifier: PretrainedClassifier | None = None

    @property
    def n_features(self) -> int:
        """Length of one image's features."""
        return sum(self.block_sizes)


def backbone_names() -> list[str]:
    """Return the names ``load_backbone`` knows, sorted."""
    names: list[str] = torchvision.models.list_models(torchvision.models)
    return names


def load_backbone(name: str, weights: str | Path = "auto", *, n_views: int = 1, seed: int = 0) -> Backbone:
    """Build a backbone and load its weights.

    Args:
        name: Any of ``backbone_names()``.
        weights: ``auto`` for torchvision's own, from its cache or its server (see ``choose_weights``), which falls
            back to an untrained network when they cannot be had; ``none`` for an untrained one; or a state dict
            in torchvision's layout, ``.safetensors`` or else what ``torch.save`` wrote.
        n_views: How many views of an image its features are the mean of, see ``InputSpec``.
        seed: What an untrained network is drawn from: the same seed gives the same digest.

    Raises:
        UnknownBackbone: torchvision has no such classification network.
        WrongWeights: the file is missing, no state dict, or that of another architecture.
    """
    published = choose_weights(name)
    spec = InputSpec.from_preset(published.transforms(), n_views=n_views)
    network = _build(name, spec, seed)
    untrained = FeatureNetwork(network, spec.crop_size, shallow=True).eval()
    if weights == "none":
        return _describe(name, untrained, spec, note="untrained network, as WEIGHTS=none asks for: features are poor")
    trunk = FeatureNetwork(network, spec.crop_size).eval()
    if weights != "auto":
        classifier = _load(network, trunk, read_weights(Path(weights)), str(weights), published)
        return _describe(name, trunk, spec, pretrained=True, classifier=classifier)
    try:
        state_dict = download(published)
    except WeightsUnavailable as error:
        _log.warning("pretrained weights cannot be had, the backbone is untrained", backbone=name, error=str(error))
        note = (
            f"untrained network, features are poor: the weights of {name} could not be downloaded ({error}). "
            f"Connect once, or download {published.url} elsewhere and set WEIGHTS to the file"
        )
        return _describe(name, untrained, spec, note=note)
    classifier = _load(network, trunk, state_dict, published.url, published)
    licence = published.meta.get("license")
    note = f"these weights have a licence of their own: {licence}" if licence else ""
    return _describe(name, trunk, spec, pretrained=True, note=note, classifier=classifier)


def _load(
    network: nn.Module, trunk: FeatureNetwork, state_dict: dict[str, torch.Tensor], source: str, published: WeightsEnum
) -> PretrainedClassifier | None:
    """Load weights into a network, and return its classifier if they have one for the published weights' categories.

    Raises:
        WrongWeights: see ``load_weights``.
    """
    layers = find_classifier(network, trunk)
    categories = tuple(published.meta.get("categories") or ())
    if load_weights(network, trunk, layers, state_dict, source) and layers is not None and categories:
        return PretrainedClassifier(layers=layers, n_inputs=trunk.block_sizes[-1], categories=categories)
    return None


def choose_weights(name: str) -> WeightsEnum:
    """Return the published weights that ``auto`` means: the first ImageNet ones, else torchvision's default.

    Newer weights (``IMAGENET1K_V2``) are better ImageNet classifiers by label smoothing, mixup and long training,
    which is known to make frozen features transfer worse (Kornblith, Shlens and Le, "Do Better ImageNet Models
    Transfer Better?", CVPR 2019; Kornblith et al., "Why Do Better Loss Functions Lead to Less Transferable
    Features?", NeurIPS 2021). SWAG weights transfer well but may not be used commercially, so they are taken only
    where there are no others.

    Raises:
        UnknownBackbone: torchvision has no such classification network.
    """
    names = backbone_names()
    if name not in names:
        close = difflib.get_close_matches(name, names, n=5)
        hint = f"did you mean {', '.join(close)}?" if close else f"it must be one of {', '.join(names)}"
        raise UnknownBackbone(f"torchvision has no classification network named {name!r}: {hint}")
    published = torchvision.models.get_model_weights(name)
    return next((each for each in published if each.name == "IMAGENET1K_V1"), published.DEFAULT)


def with_network(backbone: Backbone, network: FeatureNetwork) -> Backbone:
    """Return the backbone with another network of the same architecture, after fine-tuning, and its new digest."""
    network.eval()
    digest = _digest(backbone.name, backbone.input_spec, network, TRANSFORMS_VERSION)
    return replace(backbone, network=network, digest=digest, pretrained=True, note="", classifier=None)


def between(start: Backbone, end: Backbone, share: float) -> Backbone:
    """Return the backbone whose weights lie between those of two of the same architecture, the share to the end."""
    network = copy.deepcopy(start.network)
    weights = end.network.state_dict()
    for name, tensor in start.network.state_dict().items():
        if tensor.is_floating_point():
            weights[name] = torch.lerp(tensor, weights[name], share)
    network.load_state_dict(weights)
    return with_network(start, network)


def layer_groups(backbone: Backbone) -> list[list[nn.Parameter]]:
    """Return the network's parameters stage by stage from input to output, for learning rates by depth."""
    groups = [list(stage.parameters()) for stage in backbone.network.stages]
    return [group for group in groups if group]


def save_backbone(backbone: Backbone, folder: Path) -> None:
    """Write a backbone into an existing folder, as safetensors and JSON."""
    tensors = {key: tensor.contiguous().cpu() for key, tensor in backbone.network.state_dict().items()}
    save_file(tensors, folder / _WEIGHTS_FILE)
    description = {
        "name": backbone.name,
        "input_spec": asdict(backbone.input_spec),
        "transforms_version": TRANSFORMS_VERSION,
        "shallow": backbone.network.shallow,
        "pretrained": backbone.pretrained,
        "note": backbone.note,
        "digest": backbone.digest,
    }
    (folder / _DESCRIPTION_FILE).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def load_saved_backbone(folder: Path) -> Backbone:
    """Read what ``save_backbone`` wrote.

    Raises:
        CorruptBackbone: a file is missing, or the content does not have the digest it should have.
    """
    try:
        description = json.loads((folder / _DESCRIPTION_FILE).read_text(encoding="utf-8"))
        fields = description["input_spec"]
        spec = InputSpec(**{**fields, "mean": tuple(fields["mean"]), "std": tuple(fields["std"])})
        network = _build(description["name"], spec, seed=0)
        trunk = FeatureNetwork(network, spec.crop_size, shallow=description["shallow"]).eval()
        trunk.load_state_dict(load_file(folder / _WEIGHTS_FILE))
        digest = _digest(description["name"], spec, trunk, description["transforms_version"])
        if digest != description["digest"]:
            raise CorruptBackbone(f"{folder}: digest is {digest}, should be {description['digest']}")
        return _describe(
            description["name"],
            trunk,
            spec,
            pretrained=description["pretrained"],
            note=description["note"],
        )
    except (OSError, SafetensorError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise CorruptBackbone(f"{folder} does not hold a complete backbone: {error}") from error


def _build(name: str, spec: InputSpec, seed: int) -> nn.Module:
    """Build torchvision's network with weights drawn from a seed, leaving torch's own generator as it was."""
    arguments: dict[str, object] = {}
    if name in ("googlenet", "inception_v3"):
        arguments = {"init_weights": False, "aux_logits": False}
    elif name.startswith("vit_"):
        arguments = {"image_size": spec.crop_size}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network: nn.Module = torchvision.models.get_model(name, weights=None, **arguments)
    return network


def _describe(
    name: str,
    network: FeatureNetwork,
    spec: InputSpec,
    *,
    pretrained: bool = False,
    note: str = "",
    classifier: PretrainedClassifier | None = None,
) -> Backbone:
    return Backbone(
        name=name,
        network=network,
        block_sizes=network.block_sizes,
        input_spec=spec,
        digest=_digest(name, spec, network, TRANSFORMS_VERSION),
        pretrained=pretrained,
        note=note,
        classifier=classifier,
    )


def _digest(name: str, spec: InputSpec, network: nn.Module, transforms_version: int) -> str:
    digest = hashlib.sha256(json.dumps([name, asdict(spec), transforms_version], sort_keys=True).encode())
    for key, tensor in sorted(network.state_dict().items()):
        if not key.endswith("num_batches_tracked"):  # counts training steps, has no influence
            digest.update(key.encode())
            digest.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()
