"""Defines `spec.train`: Ultralytics' training settings under their own names, typed.

The list is written here so that CRD and operator do not need Ultralytics; a test compares it with the package. A
setting that is not set is not passed on: Ultralytics' default (given in the field's description) applies.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from yolojob.api.base import ApiModel
from yolojob.api.fields import (
    MAX_COUNT,
    MAX_INT32,
    Amp,
    Batch,
    Cache,
    Classes,
    Compile,
    Count,
    Freeze,
    NonNegative,
    Scale,
)

Fraction = Annotated[float, Field(ge=0, le=1)]

REPLACED: dict[str, str] = {
    "model": "use spec.model.name",
    "data": "use spec.dataset",
    "device": "use spec.workers.gpu",
    "project": "use spec.storage.uri",
    "name": "use metadata.name",
    "exist_ok": "each job has a folder of its own, by metadata.name",
    "resume": "a run always resumes from its newest checkpoint",
    "save": "use spec.checkpoint",
    "cfg": "write the settings directly under spec.train",
    "time": "use spec.runPolicy.activeDeadlineSeconds",
    "task": "use spec.task",
    "mode": "a job always trains",
    "pretrained": "use spec.model.weights",
    "rect": "rectangular batches cannot be combined with shuffling samples across workers",
    "quantize": "quantization-aware training is not supported",
    "distill_model": "distillation is not supported",
    "dis": "distillation is not supported",
    "profile": "use spec.tuning and the job's metrics",
}
"""Ultralytics' training settings that `spec.train` does not have, each with what to use instead."""
OWN_SETTINGS = ("val_period",)
"""Settings of `spec.train` that Ultralytics does not have."""


class TrainSettings(ApiModel):
    """Training settings, with Ultralytics' names and meanings."""

    model_config = ConfigDict(alias_generator=None)

    epochs: Annotated[int, Field(ge=1, le=MAX_INT32)] = 100
    """Number of epochs."""
    batch: Batch = 16
    """Global batch: images per step, shared evenly by all worker processes."""
    imgsz: Annotated[int, Field(ge=32, le=8192)] = 640
    """Side of the square training image in pixels; rounded up to a multiple of the model's stride."""
    amp: Amp = "auto"
    """Mixed precision: bf16, fp16 or false. auto, and Ultralytics' true: bf16 if the hardware is fast with it, fp16 on
    older GPUs, otherwise false."""

    patience: Count | None = None
    """Stop after this many epochs without a better validation; 0 never stops early. Default: 100."""
    cache: Cache | None = None
    """Cache decoded images in memory (true, ram), on disk next to the images (disk), or in the memory of the GPU, which
    then augments them (gpu; on a CPU the same as ram). Default: false."""
    workers: Count | None = None
    """Loader processes per worker process, limited to the number of CPUs. Default: 8, or 0 on a CPU."""
    optimizer: Literal["auto", "SGD", "MuSGD", "Adam", "Adamax", "AdamW", "NAdam", "RAdam", "RMSProp"] | None = None
    """Optimizer. Default: auto, which also chooses lr0 and momentum."""
    seed: Count | None = None
    """Seed of initial weights, sample order and augmentation. Default: 0."""
    deterministic: bool | None = None
    """Use deterministic operations. Default: true."""
    single_cls: bool | None = None
    """Treat all classes as one. Default: false."""
    cos_lr: bool | None = None
    """Cosine instead of linear learning rate schedule. Default: false."""
    close_mosaic: Count | None = None
    """Switch mosaic, mixup, cutmix and copy_paste off for the last epochs. Default: 10."""
    fraction: Annotated[float, Field(gt=0, le=MAX_COUNT)] | None = None
    """Fraction of the training images to use; a whole number above 1 is a count. Default: 1.0."""
    freeze: Freeze | None = None
    """Freeze the first N layers, or the listed layers. Default: none."""
    multi_scale: Fraction | None = None
    """Vary the image size by this fraction of imgsz. Default: 0.0."""
    compile: Compile | None = None
    """Use torch.compile, or one of its modes. Default: false."""
    channels_last: bool | None = None
    """Use the channels-last memory format. Default: if it is faster."""
    cls_remap: bool | None = None
    """Map the rows of a pretrained class head by class name. Default: true."""
    save_period: Annotated[int, Field(ge=-1, le=MAX_INT32)] | None = None
    """Also keep the weights of every Nth epoch as epochN.pt. Default: -1, off."""
    verbose: bool | None = None
    """Enable Ultralytics' log output. Default: false here."""
    plots: bool | None = None
    """Draw Ultralytics' plots of labels and results. Default: false here."""

    val: bool | None = None
    """Validate while training; the last epoch is always validated. Default: true."""
    val_period: Annotated[int, Field(ge=1, le=MAX_INT32)] | None = None
    """Validate after every Nth epoch instead of each one. Default: 1. Not a setting of Ultralytics."""
    split: Literal["val", "test", "train"] | None = None
    """Split to validate on. Default: val."""
    conf: Fraction | None = None
    """Confidence threshold of the validation. Default: 0.001."""
    iou: Fraction | None = None
    """IoU threshold of the non-maximum suppression in validation. Default: 0.7."""
    max_det: Annotated[int, Field(ge=1, le=MAX_INT32)] | None = None
    """Detections per image in validation. Default: 300."""
    agnostic_nms: bool | None = None
    """Non-maximum suppression across classes. Default: false."""
    classes: Classes | None = None
    """Train and validate on these class ids only: a list, or a single one. Default: all."""
    augment: bool | None = None
    """Test-time augmentation in validation. Default: false."""

    lr0: Fraction | None = None
    """Initial learning rate. Default: 0.01."""
    lrf: Fraction | None = None
    """Final learning rate as a fraction of lr0. Default: 0.01."""
    momentum: Fraction | None = None
    """SGD momentum, or Adam's beta1. Default: 0.937."""
    weight_decay: Fraction | None = None
    """Weight decay. Default: 0.0005."""
    warmup_epochs: NonNegative | None = None
    """Warm-up epochs, fractions allowed. Default: 3.0."""
    warmup_momentum: Fraction | None = None
    """Momentum at the start of the warm-up. Default: 0.8."""
    warmup_bias_lr: Fraction | None = None
    """Learning rate of biases at the start of the warm-up. Default: 0.1."""
    nbs: Annotated[int, Field(ge=1, le=MAX_INT32)] | None = None
    """Nominal batch: gradients accumulate over round(nbs / batch) steps. Default: 64."""

    box: NonNegative | None = None
    """Gain of the box loss. Default: 7.5."""
    cls: NonNegative | None = None
    """Gain of the class loss. Default: 0.5."""
    cls_pw: Fraction | None = None
    """Power of the inverse class frequency as class weight. Default: 0.0, off."""
    dfl: NonNegative | None = None
    """Gain of the distribution focal loss. Default: 1.5."""

    hsv_h: Fraction | None = None
    """Hue augmentation. Default: 0.015."""
    hsv_s: Fraction | None = None
    """Saturation augmentation. Default: 0.7."""
    hsv_v: Fraction | None = None
    """Brightness augmentation. Default: 0.4."""
    degrees: Annotated[float, Field(ge=0, le=180)] | None = None
    """Rotation in degrees. Default: 0.0."""
    translate: Fraction | None = None
    """Translation as a fraction of the image size. Default: 0.1."""
    scale: Scale | None = None
    """Scale gain, or [min, max]. Default: 0.5."""
    shear: Annotated[float, Field(ge=-180, le=180)] | None = None
    """Shear in degrees. Default: 0.0."""
    perspective: Annotated[float, Field(ge=0, le=0.001)] | None = None
    """Perspective. Default: 0.0."""
    flipud: Fraction | None = None
    """Probability of a vertical flip. Default: 0.0."""
    fliplr: Fraction | None = None
    """Probability of a horizontal flip. Default: 0.5."""
    bgr: Fraction | None = None
    """Probability of swapped colour channels. Default: 0.0."""
    mosaic: Fraction | None = None
    """Probability of mosaic. Default: 1.0."""
    mixup: Fraction | None = None
    """Probability of MixUp. Default: 0.0."""
    cutmix: Fraction | None = None
    """Probability of CutMix. Default: 0.0."""
    copy_paste: Fraction | None = None
    """Copy-paste (segment only). Default: 0.0."""
    copy_paste_mode: Literal["flip", "mixup"] | None = None
    """Kind of copy-paste (segment only). Default: flip."""
    auto_augment: Literal["randaugment", "autoaugment", "augmix"] | None = None
    """Augmentation policy (classify only). Default: randaugment."""
    erasing: Fraction | None = None
    """Probability of random erasing (classify only). Default: 0.4."""

    overlap_mask: bool | None = None
    """Merge masks (segment only). Default: true."""
    mask_ratio: Annotated[int, Field(ge=1, le=MAX_INT32)] | None = None
    """Downsampling of masks (segment only). Default: 4."""
    dropout: Fraction | None = None
    """Dropout of the head (classify only). Default: 0.0."""
    pose: NonNegative | None = None
    """Gain of the pose loss (pose only). Default: 12.0."""
    kobj: NonNegative | None = None
    """Gain of the keypoint objectness loss (pose only). Default: 1.0."""
    rle: NonNegative | None = None
    """Gain of the RLE loss (pose only). Default: 1.0."""
    angle: NonNegative | None = None
    """Gain of the angle loss (obb only). Default: 1.0."""
    dlog: NonNegative | None = None
    """Gain of the log depth loss (depth only). Default: 1.0."""
    dgrad: NonNegative | None = None
    """Gain of the depth gradient loss (depth only). Default: 0.5."""
    dlam: Fraction | None = None
    """Variance focus of the depth loss (depth only). Default: 1.0."""

    def validates(self, epoch: int) -> bool:
        """Return whether a validation follows this epoch, counted from 0."""
        return self.validations(epoch) > self.validations(epoch + 1)

    def validations(self, start: int) -> int:
        """Return the number of validations from this epoch on, counted from 0."""
        if start >= self.epochs:
            return 0
        if self.val is False:
            return 1
        period = self.val_period or 1
        return self.epochs // period - start // period + (self.epochs % period > 0)
