"""The training step of DirectCLR, and of SimCLR without projector, in PyTorch on given views: a benchmark's peer."""

from collections.abc import Callable

import torch
from torch.nn import functional

from experiments.benchmarks import torch_resnet


class TorchStep:
    """One step on two views: encode each, contrast z = r[:, :d0], train the online classifier, update by LARS.

    Args:
      encoder: name, width and stem as `torch_resnet.make` takes them.
      dims: how many entries of r are the embedding.
      classes: classes of the online classifier.
      temperature: the divisor of the similarities.
      lars: learning rate, momentum, weight decay and trust coefficient.
      device: `cuda` or `cpu`; on `cuda` it computes in bfloat16 by autocast, with the convolutions that cuDNN measures
        to be the fastest and TF32 products elsewhere, as XLA does.
      channels_last: the layout of images and weights.
      compiled: whether `torch.compile` compiles the objective.
    """

    def __init__(
        self,
        encoder: tuple[str, float, str],
        *,
        dims: int,
        classes: int,
        temperature: float,
        lars: tuple[float, float, float, float],
        device: str,
        compiled: bool,
        channels_last: bool,
    ):
        self.device, self._dims, self._temperature, self._lars = device, dims, temperature, lars
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")
        layout = torch.channels_last if channels_last else torch.contiguous_format
        self.encoder = torch_resnet.make(*encoder).to(device).to(memory_format=layout).train()
        features = self.encoder(torch.zeros((2, 3, 64, 64), device=device)).shape[1]
        self.classifier = torch.nn.Linear(features, classes).to(device)
        self._parameters = [*self.encoder.parameters(), *self.classifier.parameters()]
        self._momenta = [torch.zeros_like(p) for p in self._parameters]
        self._objective: Callable[..., torch.Tensor] = torch.compile(self._loss) if compiled else self._loss

    def __call__(self, x: torch.Tensor, x_prime: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The contrastive loss, a scalar, before the update."""
        for parameter in self._parameters:
            parameter.grad = None
        contrastive, online = self._objective(x, x_prime, labels)
        (contrastive + online).backward()
        self._update()
        return contrastive.detach()

    def _loss(self, x: torch.Tensor, x_prime: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.autocast(self.device, torch.bfloat16, enabled=self.device == "cuda"):
            r, r_prime = self.encoder(x), self.encoder(x_prime)
        r, r_prime = r.float(), r_prime.float()
        z, z_prime = (functional.normalize(rows[:, : self._dims]) for rows in (r, r_prime))
        logits = z @ z_prime.T / self._temperature
        own = torch.arange(len(x), device=x.device)
        contrastive = (functional.cross_entropy(logits, own) + functional.cross_entropy(logits.T, own)) / 2
        return contrastive, functional.cross_entropy(self.classifier(r.detach()), labels)

    @torch.no_grad()
    def _update(self) -> None:
        rate, momentum, decay, trust = self._lars
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        matrices = [i for i, p in enumerate(self._parameters) if p.ndim > 1]
        weights, own = [self._parameters[i] for i in matrices], [gradients[i] for i in matrices]
        torch._foreach_add_(own, weights, alpha=decay)
        ratios = torch._foreach_norm(weights)
        torch._foreach_div_(ratios, torch._foreach_norm(own))
        torch._foreach_mul_(ratios, trust)
        torch._foreach_mul_(own, ratios)
        torch._foreach_mul_(self._momenta, momentum)
        torch._foreach_add_(self._momenta, gradients)
        torch._foreach_add_(self._parameters, self._momenta, alpha=-rate)
