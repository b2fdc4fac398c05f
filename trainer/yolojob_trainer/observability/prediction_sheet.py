"""Draws what the best model predicts for some images of the validation, on one sheet beside the weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from ultralytics import YOLO

from yolojob.api.constants import PREDICTIONS
from yolojob_trainer.checkpoint.run_folder import RunFolder
from yolojob_trainer.training.callbacks import Callback, TrainerView

IMAGES, COLUMNS = 12, 4
CELL, MARGIN = 320, 2
"""Side of an image on the sheet in pixels, and what is left free on each side."""
GRAY = 114
"""Colour of what no image covers."""
Pixels = NDArray[np.uint8]
"""(height, width, 3), BGR."""


class PredictionSheet(Callback):
    """Writes the sheet when the training has ended. Of rank 0 only."""

    def __init__(self, run_folder: RunFolder | None, warn: Callable[[str], None]) -> None:
        """
        Args:
            run_folder: where the run is kept; None on other ranks.
            warn: called with the reason if the sheet cannot be drawn: no training fails for it.
        """
        self._run_folder, self._warn = run_folder, warn

    def on_trained(self, trainer: TrainerView) -> None:
        folder = self._run_folder
        if folder is None or not (weights := folder.path / "weights" / "best.pt").exists():
            return
        try:
            sheet = draw(weights, chosen(trainer.validation_images()), trainer.image_size)
        except Exception as error:  # noqa: BLE001 - upstream's prediction may raise anything
            self._warn(f"{PREDICTIONS} was not drawn: {type(error).__name__}: {error}")
            return
        folder.write(PREDICTIONS, sheet)
        folder.upload(PREDICTIONS)


def chosen(images: Sequence[str]) -> list[str]:
    """Return at most IMAGES of the images, evenly spaced."""
    count = min(len(images), IMAGES)
    return [images[i * len(images) // count] for i in range(count)]


def draw(weights: Path, images: Sequence[str], imgsz: int) -> bytes:
    """Return a JPEG with the predictions of a model.

    Args:
        weights: of the model, as stock Ultralytics opens them.
        images: to predict; those that OpenCV cannot read are left out.
        imgsz: of the training.

    Raises:
        ValueError: no image can be read.
    """
    model = YOLO(weights)
    cells = [
        _fitted(result.plot(pil=False, line_width=2))
        for image in images
        if (pixels := cv2.imread(image)) is not None
        # On the CPU: the GPU's memory may be full, and a dozen images take seconds.
        for result in model.predict(_enlarged(pixels), imgsz=imgsz, device="cpu", verbose=False, save=False)
    ]
    if not cells:
        raise ValueError("no image of the validation can be read")
    cells += [np.full_like(cells[0], GRAY)] * (-len(cells) % COLUMNS)
    rows = [np.hstack(cells[i : i + COLUMNS]) for i in range(0, len(cells), COLUMNS)]
    written, jpeg = cv2.imencode(".jpg", np.vstack(rows), [cv2.IMWRITE_JPEG_QUALITY, 90])
    if not written:
        raise ValueError("the picture cannot be encoded")
    return jpeg.tobytes()


def _enlarged(image: Pixels) -> Pixels:
    """Return an image whose longer side has CELL pixels or more, so that the drawn text can be read."""
    factor = CELL / max(image.shape[:2])
    return image if factor <= 1 else cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_NEAREST)


def _fitted(image: Pixels) -> Pixels:
    """Return an image that is scaled into a cell."""
    factor = (CELL - 2 * MARGIN) / max(image.shape[:2])
    height, width = (max(round(side * factor), 1) for side in image.shape[:2])
    cell = np.full((CELL, CELL, 3), GRAY, np.uint8)
    top, left = (CELL - height) // 2, (CELL - width) // 2
    cell[top : top + height, left : left + width] = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    return cell
