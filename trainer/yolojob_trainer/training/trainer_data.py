"""The data of a trainer: datasets, their caches and loader processes, and the order of the samples."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from ultralytics.data.utils import check_det_dataset
from ultralytics.engine.trainer import BaseTrainer
from ultralytics.utils.torch_utils import unwrap_model

from yolojob.api.reasons import Reason
from yolojob.api.run import Run
from yolojob.api.task import Task
from yolojob_trainer.data import recent_images
from yolojob_trainer.data.dataset import MicroBatches, NodeDataset, TrainSamples, loader
from yolojob_trainer.data.render_batch import ImageMemory
from yolojob_trainer.data.sample_order import SampleOrder
from yolojob_trainer.data.scan import one_line, summarize
from yolojob_trainer.distributed.world import World
from yolojob_trainer.errors import BadInput
from yolojob_trainer.system import host, shared_memory
from yolojob_trainer.system.process import available_cpus
from yolojob_trainer.tasks.vision_task import VisionTask
from yolojob_trainer.training.execution import ExecutionSettings

GPU_CACHE = "gpu"
"""Value of spec.train.cache."""


class TrainerData(BaseTrainer):  # type: ignore[misc]
    """Builds datasets and loads batches for a rank. `TrainerSetup` sets the attributes.

    A class to use has upstream's trainer of a task as another base, see `yolojob_trainer.training.trainer`.
    """

    task: VisionTask

    run: Run
    world: World
    """Connected."""
    warn: Callable[[str], None]
    execution: ExecutionSettings
    order: SampleOrder
    samples: TrainSamples
    images: ImageMemory | None
    """The decoded images, if they are kept on the device."""
    _label_cache: Path
    _data_boundary: Path | None

    @property
    def _shards(self) -> int:
        """Number of shards of a global batch: the largest number of processes that the job may have."""
        spec = self.run.spec
        elastic_limit = spec.elastic.max_replicas * spec.workers.processes if spec.elastic else 0
        return max(spec.workers.world_size, self.world.world_size, elastic_limit)

    def get_dataset(self) -> dict[str, Any]:
        """Return the content of the data file. Upstream would look for the folders of a classification itself."""
        if self.task.name is not Task.CLASSIFY:
            return super().get_dataset()  # type: ignore[no-any-return]
        data: dict[str, Any] = check_det_dataset(self.args.data, split=self.args.split)
        return {**data, "names": {0: "item"}, "nc": 1} if self.args.single_cls else data

    def build_dataset(self, img_path: str, mode: str = "train", batch: int | None = None) -> NodeDataset:
        stride = max(int(unwrap_model(self.model).stride.max()), 32)
        try:
            with self.world.rank0_then_node_then_rest(f"labels/{mode}"):
                dataset: NodeDataset = self.task.dataset(
                    label_folder=self._label_cache,
                    boundary=self._data_boundary,
                    img_path=img_path,
                    imgsz=self.args.imgsz,
                    batch_size=batch,
                    augment=mode == "train",
                    hyp=self.args,
                    rect=mode == "val",
                    cache=self._initial_cache(mode),
                    single_cls=self.args.single_cls or False,
                    stride=stride,
                    pad=0.0 if mode == "train" else 0.5,
                    prefix=f"{mode}: ",
                    task=self.task.name.value,
                    classes=self.args.classes,
                    data=self.data,
                    fraction=self.args.fraction if mode == "train" else 1.0,
                )
        except (RuntimeError, ValueError, FileNotFoundError, AssertionError) as error:
            message = one_line(str(error).removeprefix(f"{mode}: ")).partition(" See https://")[0]
            raise BadInput(Reason.INVALID_DATASET, f"spec.dataset: {mode}: {message}") from error
        self._unlink_shared_images(dataset)
        self._report_scan(dataset, mode)
        return dataset

    def _unlink_shared_images(self, dataset: NodeDataset) -> None:
        """Remove the name of the shared images. All ranks of this node must have opened them."""
        if self.world.local_rank == 0:
            dataset.unlink_shared()

    def _image_cache(self, requested: bool | str) -> bool | str:
        """Return where decoded images are kept. On a CPU the memory of the device is that of the machine."""
        return "ram" if requested == GPU_CACHE and self.world.device.type == "cpu" else requested

    def _initial_cache(self, mode: str) -> str | None:
        """Return where decoded images are kept from the start. `configure` loads training images into memory."""
        requested = "ram" if self.args.cache is True else self.args.cache or None
        return None if mode == "train" and requested == "ram" else requested

    def _report_scan(self, dataset: NodeDataset, mode: str) -> None:
        """Warn about images that are left out or have no labels.

        Raises:
            BadInput: labels use a class that the dataset does not define.
        """
        if class_errors := [m for m in dataset.left_out if "exceeds dataset class count" in m]:
            raise BadInput(
                Reason.INVALID_DATASET, f"spec.dataset: {mode}: {len(class_errors)} images: {summarize(class_errors)}"
            )
        if not self.world.is_main:
            return
        for note in [*dataset.warnings(), *dataset.notes]:
            self.warn(f"{mode}: {note}")
        if dataset.left_out:
            # All of them in the log: the warning names only a few.
            for message in dataset.left_out:
                print(f"yolojob: {mode}: left out: {message}", file=sys.stderr)  # noqa: T201
            images = len(dataset.left_out)
            self.warn(f"{mode}: {images} image(s) cannot be used and are left out: {summarize(dataset.left_out)}")

    def _check_batch_norm(self, dataset: NodeDataset) -> None:
        """Check that batch norm gets more than one value per channel.

        Raises:
            BadInput: a microbatch of one image has a single value per channel in the last layer.
        """
        smallest = min(
            n
            for step in {0, self.order.steps - 1}
            for n in self.order.sizes(step, self.world.rank, self.world.world_size)
        )
        if smallest <= 1 and self.args.imgsz < 2 * self.stride:
            raise BadInput(
                Reason.BATCH_TOO_SMALL,
                f"spec.train.batch: {self.args.batch}: {len(dataset)} images leave a worker a batch of one, which "
                f"batch norm cannot normalise at spec.train.imgsz: {self.args.imgsz}; change batch, or use imgsz of at "
                f"least {2 * self.stride}",
            )

    def _validation_batch(self) -> int:
        return max(self.run.spec.train.batch // self.world.world_size, 1) * self.task.validation_batches

    def _sample_order(self, dataset: NodeDataset, execution: ExecutionSettings) -> SampleOrder:
        shards = self._shards * execution.micro_batches
        return SampleOrder(samples=len(dataset), batch=self.args.batch, shards=shards, seed=self.args.seed)

    def batches(self, epoch: int, step: int) -> Iterator[dict[str, Any]]:
        """Return this rank's microbatches from a step on, without an end."""
        return loader(
            self.samples,
            MicroBatches(self.order, rank=self.world.rank, world_size=self.world.world_size, start=(epoch, step)),
            workers=self.execution.workers,
            prefetch=self.execution.prefetch,
            pin_memory=self.device.type == "cuda",
        )

    def _keep_recent_images(self) -> None:
        """Keep the images in memory of which the loader processes of this rank make mosaics."""
        window, execution = self.samples.window, self.execution
        shards = len(window.order.shards_of(self.world.rank, self.world.world_size))
        loading = (execution.workers * execution.prefetch + 1) * -(-self.args.batch // window.order.shards)
        free = host.free_memory(torch.device("cpu")) / self.world.local_world_size
        needed = shards * window.length + loading if self.args.mosaic and not self.images else 0
        self.samples.dataset.keep_recent(needed, recent_images.MEMORY_SHARE * free)

    @property
    def _cpus(self) -> int:
        """CPUs of this rank."""
        return max(available_cpus() // self.world.local_world_size, 1)

    def loader_limit(self, prefetch: int) -> int:
        """Return the number of loader processes of this rank for which there is room in shared memory."""
        images = -(-self.args.batch // self.world.world_size)
        free = shared_memory.free_bytes() // self.world.local_world_size
        return shared_memory.loader_limit(images * self.task.pixel_bytes * self.args.imgsz**2, prefetch, free)

    def _loader_processes(self, requested: int | None) -> int:
        """Return the number of loader processes of this rank.

        The default on a CPU is 0, because loader processes would take cores from the model.
        """
        default = 0 if self.world.device.type == "cpu" else 8
        wanted = min(default if requested is None else requested, self._cpus)
        limit = self.loader_limit(ExecutionSettings.prefetch)
        if wanted > limit:
            self.warn(
                f"{limit} loader process(es) instead of {wanted}: {shared_memory.FOLDER} is too small for their "
                "batches; raise spec.workers.sharedMemory, or the memory limit of which it is half by default"
            )
        return min(wanted, limit)
