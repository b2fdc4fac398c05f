"""The same computation on the GPU and on the CPU. `python -m gpu.kernels CHECK`."""

from __future__ import annotations

import random

from gpu.loop import prepared_trainer, settings  # first

import numpy as np  # isort: skip
import torch  # isort: skip
from yolojob_trainer.data import device_images  # isort: skip
from yolojob_trainer.data.recipe import Recipe  # isort: skip
from yolojob_trainer.data.render_batch import RecipeBatch, render_batch  # isort: skip

from gpu import check_process  # isort: skip
from gpu.scale import scale  # isort: skip
from gpu.table import Row, figure, verdict  # isort: skip

MAX_LOSS_DIFFERENCE, MAX_GRADIENT_DIFFERENCE = 1e-3, 2e-2
"""Relative, in single precision without TF32: the order of additions differs."""
MAX_DIFFERENT_BYTES = 1e-3


def gradients() -> list[Row]:
    """Compare loss and gradients of the same images and weights in single precision."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    batch, imgsz = (8, 160) if scale().gpu else (4, 64)
    losses: list[float] = []
    gradients: list[dict[str, torch.Tensor]] = []
    for on_cpu in (True, False):
        with prepared_trainer(settings(batch, False, imgsz=imgsz, workers=0), on_cpu=on_cpu) as trainer:
            trainer.set_train_mode()
            loss, _ = trainer.forward(next(trainer.batches(0, 0)))
            loss.sum().backward()  # type: ignore[no-untyped-call]
            named = trainer.model.named_parameters()
            losses.append(float(loss.sum()))
            gradients.append({key: p.grad.detach().float().cpu() for key, p in named if p.grad is not None})
            device = trainer.device.type
    if gradients[0].keys() != gradients[1].keys():
        return [verdict("fp32: parameters with a gradient", len(gradients[1]), str(len(gradients[0])), False)]
    by_cpu, by_gpu = (torch.cat([values[key].flatten() for key in gradients[0]]) for values in gradients)
    loss_difference = abs(losses[0] - losses[1]) / abs(losses[0])
    difference = float((by_cpu - by_gpu).norm() / by_cpu.norm())
    expected_device = "cuda" if scale().gpu else "cpu"
    return [
        verdict("fp32: device", device, expected_device, device == expected_device),
        verdict(
            "fp32: loss, difference from the CPU's",
            f"{loss_difference:.1e}",
            f"< {MAX_LOSS_DIFFERENCE}",
            loss_difference < MAX_LOSS_DIFFERENCE,
        ),
        verdict(
            "fp32: gradient, difference from the CPU's",
            f"{difference:.1e}",
            f"< {MAX_GRADIENT_DIFFERENCE}",
            difference < MAX_GRADIENT_DIFFERENCE,
        ),
        verdict("fp32: parameters with a gradient", len(gradients[1]), str(len(gradients[0])), True),
    ]


def rendering() -> list[Row]:
    """Compare samples that the device renders with those of OpenCV, and measure the device's rate."""
    with prepared_trainer(settings(scale().training_batches[0], False, cache=False, workers=0)) as trainer:
        dataset = trainer.samples.dataset
        dataset.buffer = list(range(len(dataset)))  # mosaics take their images from all
        recipes: list[Recipe] = []
        for number in range(scale().recipes):
            random.seed(number)
            np.random.seed(number)
            recipes.append(dataset.draw(number % len(dataset))["recipe"])
        images = device_images.load(dataset, trainer.device)
        batch = RecipeBatch.of_samples(recipes).to(trainer.device)
        rendered = render_batch(batch, images).cpu()
        expected = torch.empty_like(rendered, memory_format=torch.contiguous_format)
        for recipe, pixels in zip(recipes, expected, strict=True):
            dataset.render(recipe, pixels)
        difference = (rendered.int() - expected.int()).abs()
        different, largest = int((difference > 0).sum()), int(difference.max())
    share = different / rendered.numel()
    return [
        verdict(
            f"rendering: bytes that differ from OpenCV's, of {len(recipes)} samples",
            f"{share:.4%}",
            f"<= {MAX_DIFFERENT_BYTES:.1%}",
            share <= MAX_DIFFERENT_BYTES,
        ),
        figure("rendering: largest difference", largest),
    ]


if __name__ == "__main__":
    check_process.main(gradients, rendering)
