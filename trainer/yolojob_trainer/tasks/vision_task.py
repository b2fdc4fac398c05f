"""What differs between the tasks, in one object for each. The training loop is the same for all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ultralytics.engine.trainer import BaseTrainer
from ultralytics.models.yolo.classify import ClassificationTrainer
from ultralytics.models.yolo.depth import DepthTrainer
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.models.yolo.obb import OBBTrainer
from ultralytics.models.yolo.pose import PoseTrainer
from ultralytics.models.yolo.segment import SegmentationTrainer
from ultralytics.models.yolo.semantic import SemanticSegmentationTrainer

from yolojob.api.task import Task
from yolojob_trainer.data.dataset import NodeDataset
from yolojob_trainer.data.image_folders import ImageFolders
from yolojob_trainer.data.pixel_labels import depth_images, semantic_images
from yolojob_trainer.tasks import validators
from yolojob_trainer.tasks.validators import GatheredStatistics


def _nothing(network: Any, validation: Any) -> None:
    """Leave the network as it is."""


def _set_transforms(network: Any, validation: Any) -> None:
    """Give a network the transforms of the validation, which Ultralytics' prediction applies to images."""
    network.transforms = validation.torch_transforms


def _reset_calibration(network: Any, _validation: Any) -> None:
    """Drop the calibration of weights to start from: it is for their depths, and the training ignores it."""
    head = network.model[-1]
    head.cal_a.fill_(1.0)
    head.cal_b.fill_(0.0)


@dataclass(frozen=True, kw_only=True)
class VisionTask:
    """The parts of Ultralytics that a task uses, and what else the training must know of it."""

    name: Task
    upstream: type[BaseTrainer]
    """Upstream's trainer: it builds the network, tells it the classes, and prepares the batches."""
    dataset: Callable[..., Any]
    """Returns a dataset for the arguments of upstream's, with `label_folder` and `boundary`; see `NodeDataset`."""
    validator: type[GatheredStatistics]
    has_objects: bool = False
    """Whether a label is a list of objects, whose number `max_det` limits."""
    pixel_bytes: int = 3
    """Bytes of a sample for each pixel, with a label of the pixel."""
    mean_loss: bool = False
    """Whether upstream's loss is the mean over the images of a batch; otherwise it is the sum."""
    validation_batches: int = 1
    """Size of a batch of the validation, in batches of the training, as in upstream's set-up."""
    finish_network: Callable[[Any, Any], None] = _nothing
    """Called with the network and the dataset of the validation."""


VISION_TASKS = {
    task.name: task
    for task in (
        VisionTask(
            name=Task.DETECT,
            upstream=DetectionTrainer,
            dataset=NodeDataset,
            validator=validators.BoxValidator,
            has_objects=True,
            validation_batches=2,
        ),
        VisionTask(
            name=Task.SEGMENT,
            upstream=SegmentationTrainer,
            dataset=NodeDataset,
            validator=validators.InstanceMaskValidator,
            has_objects=True,
            validation_batches=2,
        ),
        VisionTask(
            name=Task.POSE,
            upstream=PoseTrainer,
            dataset=NodeDataset,
            validator=validators.KeypointValidator,
            has_objects=True,
            validation_batches=2,
        ),
        VisionTask(
            name=Task.OBB,
            upstream=OBBTrainer,
            dataset=NodeDataset,
            validator=validators.RotatedBoxValidator,
            has_objects=True,
        ),
        VisionTask(
            name=Task.CLASSIFY,
            upstream=ClassificationTrainer,
            dataset=ImageFolders,
            validator=validators.ClassValidator,
            pixel_bytes=3 * 4,  # fp32
            mean_loss=True,
            validation_batches=2,
            finish_network=_set_transforms,
        ),
        VisionTask(
            name=Task.SEMANTIC,
            upstream=SemanticSegmentationTrainer,
            dataset=semantic_images,
            validator=validators.ClassMaskValidator,
            pixel_bytes=3 + 4,  # int32
        ),
        VisionTask(
            name=Task.DEPTH,
            upstream=DepthTrainer,
            dataset=depth_images,
            validator=validators.DepthMapValidator,
            pixel_bytes=3 + 4,  # fp32
            finish_network=_reset_calibration,
        ),
    )
}
