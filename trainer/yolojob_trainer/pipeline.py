"""How a rank gets ready: network, data, optimizer and DDP, with Ultralytics' parts in our arrangement."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from copy import copy, deepcopy
from pathlib import Path
from typing import Any

import torch
from torch._C._distributed_c10d import GradBucket
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel
from ultralytics.data import build_dataloader
from ultralytics.data.utils import check_det_dataset
from ultralytics.models.yolo.detect import DetectionTrainer, DetectionValidator
from ultralytics.utils.torch_utils import unwrap_model

from yolojob.run import Run
from yolojob_trainer import precision
from yolojob_trainer.clock import Mark, PhaseClock
from yolojob_trainer.dataset import DetectionDataset, TrainSamples
from yolojob_trainer.errors import BadInput
from yolojob_trainer.machine import available_cpus
from yolojob_trainer.order import SampleOrder
from yolojob_trainer.world import World

NetworkSource = tuple[dict[str, Any], torch.nn.Module | None]
"""Description and starting weights, as `architecture.resolve` gives them."""


class Pipeline(DetectionTrainer):
    """Everything that a rank trains with. `_setup_train` makes it ready."""

    def __init__(
        self, run: Run, world: World, *, data: Path, model: NetworkSource, save_dir: Path, cache: Path
    ) -> None:
        """
        Args:
            run: what is trained.
            world: this process among all, connected.
            data: data file, see `yolojob_trainer.data`.
            model: the network.
            save_dir: where Ultralytics writes what it likes.
            cache: folder of this node for label caches.
        """
        self.run, self.world = run, world
        self._model_source = model
        self._label_cache = cache / "labels"
        super().__init__(overrides=self._overrides(data, save_dir))
        # Upstream counts this process' devices, forces loader processes off, and takes the machine's cores.
        self.world_size = world.world_size
        torch.set_num_threads(world.threads)
        self.args.workers = self._loader_processes(run.spec.train.workers)
        self.dtype = precision.choose(run.spec.train.amp, world.device)
        self.clock = PhaseClock(world.device)
        self._gradients_ready: Mark | None = None

    def _overrides(self, data: Path, save_dir: Path) -> Mapping[str, Any]:
        """Ultralytics' settings: the job's, and those that are not for the job to say."""
        settings = self.run.spec.train
        asked = settings.model_dump(exclude_none=True)
        if settings.fraction and settings.fraction > 1:
            asked["fraction"] = int(settings.fraction)  # Ultralytics tells a count from a part by its type
        return {
            "plots": False,
            "verbose": False,
            **asked,
            "task": "detect",
            "mode": "train",
            "model": "yolojob.yaml",
            "data": str(data),
            "device": "cpu" if self.world.device.type == "cpu" else str(self.world.local_rank),
            "amp": False,  # decided by `precision`; upstream's check wants to download a model
            "save_dir": str(save_dir),
            "exist_ok": True,
            "resume": False,
        }

    @property
    def _shards(self) -> int:
        """Parts of a global batch: as many as the job may have processes."""
        spec = self.run.spec
        most = spec.elastic.max_replicas * spec.workers.processes if spec.elastic else 0
        return max(spec.workers.world_size, self.world.world_size, most)

    def get_dataset(self) -> dict[str, Any]:
        return check_det_dataset(self.args.data, autodownload=False)  # type: ignore[no-any-return]

    def setup_model(self) -> None:
        # The same initial weights on every rank and for every number of ranks.
        torch.manual_seed(self.args.seed)
        description, weights = self._model_source
        try:
            self.model = self.get_model(cfg=deepcopy(description), weights=weights, verbose=False)
        except (TypeError, ValueError, KeyError, AttributeError, IndexError, AssertionError) as error:
            raise BadInput("InvalidModel", f"spec.model: the network cannot be built: {error}") from error

    def build_dataset(self, img_path: str, mode: str = "train", batch: int | None = None) -> DetectionDataset:
        stride = max(int(unwrap_model(self.model).stride.max()), 32)
        kind = DetectionDataset.in_folder(self._label_cache)
        try:
            with self.world.in_turns():
                return kind(
                    img_path=img_path,
                    imgsz=self.args.imgsz,
                    batch_size=batch,
                    augment=mode == "train",
                    hyp=self.args,
                    rect=mode == "val",
                    cache=self.args.cache or None,
                    single_cls=self.args.single_cls or False,
                    stride=stride,
                    pad=0.0 if mode == "train" else 0.5,
                    prefix=f"{mode}: ",
                    task="detect",
                    classes=self.args.classes,
                    data=self.data,
                    fraction=self.args.fraction if mode == "train" else 1.0,
                )
        except (RuntimeError, ValueError, FileNotFoundError, AssertionError) as error:
            words = " ".join(str(error).split()).partition(" See https://")[0]
            raise BadInput("InvalidDataset", f"spec.dataset: {mode}: {words}") from error

    def _loader_processes(self, asked: int | None) -> int:
        """Loader processes of this rank: none on a CPU unless asked for, where they would take the model's cores."""
        default = 0 if self.world.device.type == "cpu" else 8
        return min(default if asked is None else asked, max(available_cpus() // self.world.local_world_size, 1))

    def _build_train_pipeline(self) -> None:
        """Data, DDP and optimizer. Called by upstream's `_setup_train` once the model is on its device."""
        if self.args.channels_last is not False:
            self.model = self.model.to(memory_format=torch.channels_last)
        dataset = self.build_dataset(self.data["train"], "train", self.args.batch)
        self.order = SampleOrder(samples=len(dataset), batch=self.args.batch, shards=self._shards, seed=self.args.seed)
        self._check_batch_norm(dataset)
        self.samples = TrainSamples(
            dataset,
            seed=self.args.seed,
            close_mosaic_at=self.args.epochs - self.args.close_mosaic if self.args.close_mosaic else self.args.epochs,
            hyp=copy(self.args),  # switching mosaic off must not change what is saved
        )
        self.train_loader = _Loaded(dataset)
        validation = self.build_dataset(self.data[self.args.split], "val", self._validation_batch())
        self.test_loader = build_dataloader(
            validation,
            batch=self._validation_batch(),
            workers=self.args.workers,
            shuffle=False,
            rank=self.world.rank if self.world.world_size > 1 else -1,
            device=self.device,
        )
        DetectionValidator._check_max_det(self.args, {"train": dataset, "val": validation})
        unwrap_model(self.model).set_head_attr(max_det=self.args.max_det)

        # As upstream, but of the global batch.
        nominal = max(round(self.args.nbs / self.args.batch), 1)
        self.accumulate = self.nominal_accumulate = min(nominal, self.order.steps * self.epochs)
        decay = self.args.weight_decay * self.args.batch * self.accumulate / self.args.nbs
        self.optimizer = self.build_optimizer(
            model=self.model,
            name=self.args.optimizer,
            lr=self.args.lr0,
            momentum=self.args.momentum,
            decay=decay,
            iterations=-(-self.order.samples // max(self.args.batch, self.args.nbs)) * self.epochs,
        )
        self._setup_scheduler()
        if self.world.world_size > 1:
            self._wrap()

    def _validation_batch(self) -> int:
        return max(self.run.spec.train.batch // self.world.world_size, 1) * 2

    def _check_batch_norm(self, dataset: DetectionDataset) -> None:
        """Batch norm needs more than one value per channel."""
        smallest = min(
            n
            for step in {0, self.order.steps - 1}
            for n in self.order.sizes(step, self.world.rank, self.world.world_size)
        )
        if smallest <= 1 and self.args.imgsz < 2 * self.stride:
            raise BadInput(
                "BatchTooSmall",
                f"spec.train.batch: {self.args.batch}: {len(dataset)} images leave a worker a batch of one, which batch "
                f"norm cannot normalise at spec.train.imgsz: {self.args.imgsz}; change batch, or use imgsz of at least "
                f"{2 * self.stride}",
            )

    def _wrap(self) -> None:
        # Batch norm statistics stay a rank's own; rank 0's are saved. The argument's name changed with torch 2.13.
        accepted = inspect.signature(DistributedDataParallel).parameters
        options: dict[str, Any] = {
            "forward_sync_buffers" if "forward_sync_buffers" in accepted else "broadcast_buffers": False
        }
        self.model = DistributedDataParallel(
            self.model,
            device_ids=None if self.device.type == "cpu" else [self.device.index],
            gradient_as_bucket_view=True,
            **options,
        )

        def reduce(group: Any, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
            # Called when a bucket's gradients are there; for the last bucket that is the end of the computation.
            self._gradients_ready = self.clock.now()
            return default_hooks.allreduce_hook(group, bucket)

        reduce.__annotations__.clear()  # torch compares them with types, and here they are strings
        self.model.register_comm_hook(None, reduce)

    def _setup_train(self) -> None:
        """Upstream's set-up as if alone: the wrapping, the sharing and the precision are ours."""
        self.world_size = 1
        super()._setup_train()
        self.world_size = self.world.world_size
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        self.amp = self.device.type == "cuda" and self.dtype != torch.float32  # the validator's precision

    def facts(self) -> dict[str, str]:
        """What trains on what, for people and for the info metric."""
        if self.device.type == "cuda":
            device = torch.cuda.get_device_name(self.device)
        else:
            threads = torch.get_num_threads()
            device = f"CPU, {threads} thread{'s' if threads > 1 else ''}"
        return {
            "device": device,
            "precision": precision.name(self.dtype),
            "torch": torch.__version__,
            "world_size": str(self.world.world_size),
        }


class _Loaded:
    """What upstream's set-up reads of a train loader; the loading itself is `dataset.loader`."""

    def __init__(self, dataset: DetectionDataset) -> None:
        self.dataset = dataset
