"""ResNet-18 and ResNet-50 in PyTorch, with the names of torchvision's modules: the peer of the benchmarks and tests."""

import torch
from torch import nn


def _conv(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride=stride, padding=size // 2, bias=False)


class Block(nn.Module):
    """A residual block: two 3x3 convolutions, or with `bottleneck` 1x1, 3x3 (which carries the stride) and 1x1."""

    def __init__(self, inputs: int, filters: int, stride: int, bottleneck: bool):
        super().__init__()
        outputs = 4 * filters if bottleneck else filters
        if bottleneck:
            plan = [(inputs, filters, 1, 1), (filters, filters, 3, stride), (filters, outputs, 1, 1)]
        else:
            plan = [(inputs, filters, 3, stride), (filters, filters, 3, 1)]
        self.depth = len(plan)
        for i, (c_in, c_out, size, step) in enumerate(plan, start=1):
            setattr(self, f"conv{i}", _conv(c_in, c_out, size, step))
            setattr(self, f"bn{i}", nn.BatchNorm2d(c_out))
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(_conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[n, c, h, w]` -> `[n, c', h', w']`."""
        y = x
        for i in range(1, self.depth + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
            if i < self.depth:
                y = self.relu(y)
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class TorchResNet(nn.Module):
    """An encoder without classifier.

    Args:
      stage_sizes: number of blocks of each stage.
      bottleneck: ResNet-50's block instead of ResNet-18's.
      width: factor on the 64 base channels.
      stem: "imagenet" or "small".
    """

    def __init__(self, stage_sizes: tuple[int, ...], bottleneck: bool, width: float = 1.0, stem: str = "imagenet"):
        super().__init__()
        channels = int(64 * width)
        self.conv1 = _conv(3, channels, 7, 2) if stem == "imagenet" else _conv(3, channels, 3)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1) if stem == "imagenet" else nn.Identity()
        self.stages = len(stage_sizes)
        inputs = channels
        for stage, size in enumerate(stage_sizes):
            filters = channels * 2**stage
            blocks = []
            for index in range(size):
                blocks.append(Block(inputs, filters, 2 if stage > 0 and index == 0 else 1, bottleneck))
                inputs = 4 * filters if bottleneck else filters
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images `[n, 3, h, w]` -> representations `[n, d]`."""
        h = self.pool(self.relu(self.bn1(self.conv1(x))))
        for stage in range(self.stages):
            h = getattr(self, f"layer{stage + 1}")(h)
        return h.mean(dim=(2, 3))


def make(name: str, width: float = 1.0, stem: str = "imagenet") -> TorchResNet:
    """`resnet18` or `resnet50`; parameters as PyTorch initialises them."""
    stage_sizes, bottleneck = {"resnet18": ((2, 2, 2, 2), False), "resnet50": ((3, 4, 6, 3), True)}[name]
    return TorchResNet(stage_sizes, bottleneck, width, stem)
