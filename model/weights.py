"""Weights for torchvision's networks: downloaded or read from a file, and checked to fit."""

from __future__ import annotations

import http.client
import re
import socket
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError  # noqa: TID251 - torch raises it; nothing is unpickled

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torchvision.models import WeightsEnum

_DOWNLOAD_TIMEOUT_S = 10.0


class WeightsUnavailable(Exception):
    """Published weights that are not in torch's cache and cannot be downloaded."""


class WrongWeights(ValueError):
    """A file that does not hold weights, or those of another network."""


def download(published: WeightsEnum) -> dict[str, torch.Tensor]:
    """Return published weights from torch's cache, or else from torchvision's server.

    Raises:
        WeightsUnavailable: no network, or what came is not what was published.
    """
    try:
        with _socket_timeout(_DOWNLOAD_TIMEOUT_S):
            state_dict: dict[str, torch.Tensor] = published.get_state_dict(
                progress=False, check_hash=True, map_location="cpu", weights_only=True
            )
    # torch raises the last three for a download or a cached file with the wrong content.
    except (OSError, http.client.HTTPException, RuntimeError, EOFError, UnpicklingError) as error:
        raise WeightsUnavailable(str(error)) from error
    return state_dict


@contextmanager
def _socket_timeout(timeout_s: float) -> Iterator[None]:
    """Limit the waiting of torch's download, which has no limit of its own."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(timeout_s)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Read a state dict: ``.safetensors``, or else what ``torch.save`` wrote.

    Raises:
        WrongWeights: it is not there, or no state dict.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state_dict = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise WrongWeights(f"there is no file {path}: set WEIGHTS to auto, none or a file with a state dict") from None
    except (OSError, SafetensorError, UnpicklingError, RuntimeError, ValueError, EOFError, LookupError) as error:
        raise WrongWeights(f"{path} is not a state dict that torch can read safely: {error}") from error
    if not isinstance(state_dict, dict) or not all(isinstance(each, torch.Tensor) for each in state_dict.values()):
        raise WrongWeights(f"{path} does not hold a state dict: it must map names to tensors")
    return state_dict


def load_weights(
    network: nn.Module, trunk: nn.Module, classifier: nn.Module | None, state_dict: dict[str, torch.Tensor], source: str
) -> bool:
    """Load a state dict in torchvision's layout into a network; return whether it has weights for its classifier too.

    Args:
        network: torchvision's.
        trunk: the part of it that must be in the state dict.
        classifier: the part that may be missing there or have another shape, and is then left as it is.
        state_dict: names to tensors, of any float type.
        source: for messages, where the state dict comes from.

    Raises:
        WrongWeights: it is that of another architecture.
    """
    own = network.state_dict(keep_vars=True)
    trunk_keys = _keys_of(trunk, own)
    classifier_keys = _keys_of(classifier, own) if classifier is not None else set()
    # torchvision's own DenseNet files still have the names of 2017; other old names are known to its modules.
    renamed = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", key): each for key, each in state_dict.items()
    }
    has_classifier = bool(classifier_keys) and all(
        key in renamed and renamed[key].shape == own[key].shape for key in classifier_keys
    )
    wanted = trunk_keys | classifier_keys if has_classifier else trunk_keys
    given = OrderedDict((key, each) for key, each in renamed.items() if key not in own or key in wanted)
    given._metadata = getattr(state_dict, "_metadata", own._metadata)  # type: ignore[attr-defined]  # torch's own way
    try:
        missing, unexpected = network.load_state_dict(given, strict=False)
    except RuntimeError as error:  # names the tensors of another shape
        raise WrongWeights(f"{source} does not fit: {error}") from error
    prefixes = {key.partition(".")[0] for key in trunk_keys}
    missing = [key for key in missing if key in trunk_keys and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in unexpected if key.partition(".")[0] in prefixes]
    if missing or unexpected:
        raise WrongWeights(
            f"{source} holds weights of another network: {_listed(missing)} missing, {_listed(unexpected)} unexpected"
        )
    return has_classifier


def _keys_of(part: nn.Module, own: dict[str, torch.Tensor]) -> set[str]:
    """Return under which keys of a network's state dict the tensors of a part of it are."""
    used = {id(tensor) for tensor in part.state_dict(keep_vars=True).values()}
    return {key for key, tensor in own.items() if id(tensor) in used}


def _listed(keys: list[str]) -> str:
    return f"{len(keys)} keys ({', '.join(keys[:3])}{', …' if len(keys) > 3 else ''})" if keys else "no key"
