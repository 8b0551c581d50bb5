"""Patch -> embedding by a few strided convolutions, for fields whose small scales matter.

Arrives: `Tokens`. Leaves: one embedding a token. Convolutions stay inside the patch: the encoder may be shown any
subset of the tokens, and a stem that looked across a border would show it hidden neighbours. We decided against
normalising layers: they would remove the amplitude of the field.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from sciJEPA.tokenizers.base import Tokens, parameter_name

CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}


class ConvolutionalEmbedding(nn.Module):
    """Convolutions of kernel 3 and stride 2 until a patch is at most 2 wide, then one linear map.

    Features double from layer to layer, up to half the width, as in Xiao et al. 2021 (https://arxiv.org/abs/2106.14881).
    The first layer knows its weights by channel name, is summed over the channels that are there and scaled by their
    number; a missing value enters as zero and contributes through a flag with weights of its own, whatever fills it.
    Steps of time are taken as further inputs of the first layer. Outside the patch lie zeros, the mean of a normalised
    field, whatever the sides of the box are: weights that knew of them would fit one size of box alone.

    Parameters
    ----------
    channels
        Names of all channels that may come.
    patch_time, patch
        Steps of a patch, and its cells along each of one to three dimensions.
    width
        Latent width L.
    """

    def __init__(self, channels: Sequence[str], patch_time: int, patch: Sequence[int], width: int) -> None:
        super().__init__()
        self.patch = tuple(patch)
        layers = max(1, math.ceil(math.log2(max(patch) / 2)))
        features = [max(8, width // 2 ** (layers - layer)) for layer in range(layers)]
        sides = [[-(-side // 2**layer) for side in patch] for layer in range(layers + 1)]
        kernels = [[3 if side > 1 else 1 for side in before] for before in sides[:-1]]
        first = (features[0], patch_time, *kernels[0])
        # Pairs and not a dict: ParameterDict would sort its keys, and weights would meet the values of other channels.
        self.value = nn.ParameterDict([(parameter_name(name), _random(first)) for name in channels])
        self.missing = nn.ParameterDict([(parameter_name(name), torch.zeros(first)) for name in channels])
        shapes = [(features[i], features[i - 1], *kernels[i]) for i in range(1, layers)]
        self.weights = nn.ParameterList([_random(shape) for shape in shapes])
        self.biases = nn.ParameterList([torch.zeros(count) for count in features])
        self.leave = nn.Parameter(_random((width, features[-1] * math.prod(sides[-1]))))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, tokens: Tokens) -> Float[Tensor, "B N L"]:
        """Embeddings of the tokens."""
        names = [parameter_name(name) for name in tokens.channels]
        weight, values = torch.cat([self.value[name] for name in names], dim=1), tokens.values
        if tokens.observed is not None:
            values = values.where(tokens.observed, 0)
            values = torch.cat([values, (~tokens.observed).to(values.dtype)], dim=2)
            weight = torch.cat([weight, *(self.missing[name] for name in names)], dim=1)
        convolve = CONVOLUTIONS[len(self.patch)]
        boxes = (values * len(names) ** -0.5).reshape(-1, weight.shape[1], *self.patch)
        for layer, bias in enumerate(self.biases):
            weight = self.weights[layer - 1] if layer else weight
            # Every side of length n becomes n / 2, rounded up.
            padding = [kernel // 2 for kernel in weight.shape[2:]]
            boxes = convolve(boxes, weight, bias, stride=2, padding=padding)
            boxes = functional.gelu(boxes, approximate="tanh")
        return functional.linear(boxes.flatten(1), self.leave, self.bias).unflatten(0, tokens.values.shape[:2])


def _random(shape: Sequence[int]) -> Tensor:
    """Normal weights that keep the variance through a GELU: 2 over the number of inputs of one output."""
    return torch.randn(*shape) * (2 / math.prod(shape[1:])) ** 0.5
