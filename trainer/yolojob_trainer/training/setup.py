"""Sets up a rank for training: network, data, optimizer and DDP, built from the components of Ultralytics."""

from __future__ import annotations

import inspect
import itertools
import sys
from collections.abc import Callable, Mapping
from copy import copy, deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch._C._distributed_c10d import GradBucket
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel
from ultralytics.data import build_dataloader
from ultralytics.utils.torch_utils import unwrap_model

from yolojob.api.reasons import Reason
from yolojob.api.run import Run
from yolojob.api.train_settings import OWN_SETTINGS
from yolojob.api.trainer_report import TuningReport
from yolojob_trainer.data import device_images
from yolojob_trainer.data.dataset import LimitedLoader, NodeDataset, TrainSamples
from yolojob_trainer.data.mosaic_window import MosaicWindow
from yolojob_trainer.data.render_batch import ImageMemory, render_batch
from yolojob_trainer.distributed.world import World
from yolojob_trainer.errors import BadInput
from yolojob_trainer.model import network, precision
from yolojob_trainer.model.resolve import NetworkSource
from yolojob_trainer.system.compiler import has_c_compiler
from yolojob_trainer.system.torch_patches import without_annotations
from yolojob_trainer.system.upstream_patches import raise_detection_limit
from yolojob_trainer.training.execution import ExecutionSettings
from yolojob_trainer.training.phase_clock import Mark, PhaseClock
from yolojob_trainer.training.train_state import TrainedObjects, TrainState
from yolojob_trainer.training.trainer_data import GPU_CACHE, TrainerData


@dataclass(frozen=True, kw_only=True)
class TrainerInputs:
    """What a trainer needs from its process."""

    run: Run
    world: World
    """Connected."""
    data_config: Path
    """Data file, see `yolojob_trainer.data.dataset_config`."""
    data_boundary: Path | None
    """Folder that links in the dataset must not leave; None if they may lead anywhere."""
    network: NetworkSource
    save_dir: Path
    """Folder for the files that Ultralytics writes."""
    cache: Path
    """Cache folder of this node."""
    warn: Callable[[str], None]
    """Called with every warning for the user."""


class CacheError(OSError):
    """Decoded images cannot be kept where the settings say; raised on all ranks. The message is for the user."""


class TrainerSetup(TrainerData):
    """Network, data, optimizer and state of a rank. `_setup_train` builds them."""

    def __init__(self, inputs: TrainerInputs) -> None:
        run, world = inputs.run, inputs.world
        self.run, self.world, self.warn = run, world, inputs.warn
        self.state = TrainState()  # before upstream's constructor, which sets `best_fitness`
        self._network_source = inputs.network
        self._label_cache = inputs.cache / "labels"
        self._data_boundary = inputs.data_boundary
        super().__init__(overrides=self._overrides(inputs.data_config, inputs.save_dir))
        # Upstream counts the devices of this process, disables loader processes on CPUs, and uses all cores.
        self.world_size = world.world_size
        torch.set_num_threads(world.threads)
        self.args.workers = self._loader_processes(run.spec.train.workers)
        self.execution = ExecutionSettings(
            amp=precision.name(precision.choose(run.spec.train.amp, world.device)),
            channels_last=run.spec.train.channels_last is not False,
            cache=self._image_cache(run.spec.train.cache or False),
            workers=self.args.workers,
            compile=bool(run.spec.train.compile),
        )
        self.images: ImageMemory | None = None
        """The decoded images, if they are kept on the device."""
        self.tuning: TuningReport | None = None
        self.clock = PhaseClock(world.device)
        self._cache_changes = itertools.count()
        self._reductions: list[Mark] = []
        """When the gradients of each bucket were complete, in this backward pass."""
        self._reduced: Mark | None = None
        """When the last bucket was reduced."""

    # --- attributes that upstream reads or sets, kept in the state --------------------------------------------------

    @property
    def epoch(self) -> int:
        return self.state.epoch

    @property
    def step(self) -> int:
        return self.state.step

    @property
    def best_fitness(self) -> float | None:
        return self.state.best_fitness

    @best_fitness.setter
    def best_fitness(self, value: float | None) -> None:
        self.state.best_fitness = value

    # --- settings ---------------------------------------------------------------------------------------------------

    def _overrides(self, data: Path, save_dir: Path) -> Mapping[str, Any]:
        """Return the settings for Ultralytics: those of the job, and those that a job must not change."""
        settings = self.run.spec.train
        requested = settings.model_dump(exclude_none=True, exclude=set(OWN_SETTINGS))
        if settings.cache == GPU_CACHE:
            requested["cache"] = "ram" if self.world.device.type == "cpu" else False  # Ultralytics does not know it
        if settings.fraction and settings.fraction > 1:
            requested["fraction"] = int(settings.fraction)  # for Ultralytics an int is a count and a float is a share
        return {
            "plots": False,
            "verbose": False,
            **requested,
            "task": self.task.name.value,  # it is saved with the weights
            "mode": "train",
            "model": "yolojob.yaml",
            "data": str(data),
            "device": "cpu" if self.world.device.type == "cpu" else str(self.world.local_rank),
            "compile": False,  # `configure` compiles
            "amp": False,  # `precision` decides; upstream's check would download a model
            "save_dir": str(save_dir),
            "exist_ok": True,
            "resume": False,
        }

    def setup_model(self) -> None:
        # The initial weights must be the same on every rank and for every number of ranks.
        torch.manual_seed(self.args.seed)
        source = self._network_source
        with network.building("spec.model"):
            self.model = self.get_model(
                cfg=deepcopy(source.description), weights=source.weights, verbose=bool(self.args.verbose)
            )

    def _build_train_pipeline(self) -> None:
        """Build data, optimizer and DDP. Upstream's `_setup_train` calls it when the model is on its device."""
        dataset = self.build_dataset(self.data["train"], "train", self.args.batch)
        self.order = self._sample_order(dataset, self.execution)
        self._check_batch_norm(dataset)
        if dataset.not_recorded and self.world.is_main:
            reason = f"the samples are made by Ultralytics' transforms, which take more time: {dataset.not_recorded}"
            print(f"yolojob: train: {reason}", file=sys.stderr)  # noqa: T201
        self.samples = TrainSamples(
            dataset,
            seed=self.args.seed,
            window=MosaicWindow(self._sample_order(dataset, replace(self.execution, micro_batches=1))),
            close_mosaic_at=self.args.epochs - self.args.close_mosaic if self.args.close_mosaic else self.args.epochs,
            hyp=copy(self.args),  # closing mosaic changes it, and the settings in the saved weights must not change
        )
        self.train_loader = _LoaderStub(dataset)
        validation = self.build_dataset(self.data[self.args.split], "val", self._validation_batch())
        self.test_loader = build_dataloader(
            validation,
            batch=self._validation_batch(),
            workers=min(2 * self.args.workers, self._cpus),
            shuffle=False,
            rank=self.world.rank if self.world.world_size > 1 else -1,
            device=self.device,
        )
        if self.task.has_objects:
            raise_detection_limit(self.args, {"train": dataset, "val": validation})
            unwrap_model(self.model).set_head_attr(max_det=self.args.max_det)
        self.task.finish_network(unwrap_model(self.model), validation)

        self._configure_or_decode()
        if self.device.type == "cuda":
            self.fit_memory()
        configured = self.execution
        self.tune()
        if self.execution != configured:
            self._configure_or_decode()
        self._build_optimizer()
        if self.world.world_size > 1:
            self._wrap()

    def _configure_or_decode(self) -> None:
        """Use the execution settings. Images that cannot be cached are decoded in every epoch."""
        try:
            self.configure(self.execution)
        except CacheError as error:
            self.warn(f"{error}: images are decoded in every epoch")
            self.configure(replace(self.execution, cache=False))

    def _build_optimizer(self) -> None:
        """Build optimizer and schedule like upstream, but for the global batch."""
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
        for group in self.optimizer.param_groups:
            if "fused" in group:  # one kernel for all parameters instead of hundreds, also on CPUs
                group["fused"] = True
        self._setup_scheduler()

    def tune(self) -> None:
        """Choose execution settings by trials if the job asks for it. Called on all ranks, without an optimizer yet."""

    def get_validator(self) -> Any:
        return self.task.validator(
            self.world, self.test_loader, save_dir=self.save_dir, args=copy(self.args), _callbacks=self.callbacks
        )

    # --- execution --------------------------------------------------------------------------------------------------

    def configure(self, execution: ExecutionSettings) -> None:
        """Use these settings from now on. The network must not be wrapped by DDP yet.

        Raises:
            CacheError: the images cannot be kept where `execution.cache` says; on all ranks.
        """
        self.execution = execution
        self.dtype = precision.by_name(execution.amp)
        network = unwrap_model(self.model)
        memory_format = torch.channels_last if execution.channels_last else torch.contiguous_format
        self.model = network.to(memory_format=memory_format)
        if execution.compile:
            if not has_c_compiler():
                raise BadInput(
                    Reason.INVALID_SPEC,
                    "spec.train.compile: torch.compile needs a C compiler, and this image has none: leave it out, or "
                    "use an image with gcc and libc6-dev",
                )
            requested = self.run.spec.train.compile
            mode = requested if isinstance(requested, str) else None
            self.model = torch.compile(network, mode=mode)
        dataset = self.samples.dataset
        self.order = self._sample_order(dataset, execution)
        keep, on_device = execution.cache in (True, "ram"), execution.cache == GPU_CACHE
        if not on_device:
            self.images = None
        reason = device_images.why_not(dataset, self.device) if on_device and not self.images else None
        if keep and not dataset.in_memory:
            reason = dataset.why_not_in_memory()
        if self.world.any(reason is not None):
            raise CacheError(reason or f"cache: {execution.cache}: the images do not fit on another worker")
        if on_device and not self.images:
            self.images = device_images.load(dataset, self.device)
        self.samples.sends_recipes = on_device
        if keep != dataset.in_memory:
            with self.world.rank0_then_node_then_rest(f"cache/{next(self._cache_changes)}"):
                dataset.keep_in_memory(keep)
            self._unlink_shared_images(dataset)
        self._keep_recent_images()

    def reshard(self, micro_batches: int) -> None:
        """Split each shard of the global batch into this number of microbatches; the settings stay as they are."""
        self.order = self._sample_order(self.samples.dataset, replace(self.execution, micro_batches=micro_batches))

    def fit_memory(self) -> None:
        """Split microbatches until one fits into memory. Called on all ranks, without an optimizer yet."""

    def seek(self, epoch: int, step: int) -> None:
        """Continue with this epoch and step, counted from 0."""
        self.state.epoch, self.state.step = epoch, step

    def unwrap(self) -> None:
        """Remove DDP and torch.compile from the network."""
        self.model = unwrap_model(self.model)

    def set_network(self, network: torch.nn.Module) -> None:
        """Use this network, not wrapped by DDP or torch.compile."""
        self.model = network

    def set_train_mode(self) -> None:
        """Put the network into training mode, with frozen layers as upstream keeps them."""
        self._model_train()

    def limit_validation(self, batches: int | None) -> None:
        """Validate only this number of batches from now on; None validates all."""
        loader = self.test_loader
        self.validator.dataloader = loader if batches is None else LimitedLoader(loader, batches)

    def forward(self, batch: dict[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Run the forward pass on a microbatch from the loader.

        Returns:
            (loss items times the number of images, mean of each item by name).
        """
        batch = self.to_device(batch)
        return self.compute_loss(batch, self.predict(batch))

    def to_device(self, batch: dict[str, Any]) -> dict[str, Any]:
        if self.images:
            batch["img"] = render_batch(batch.pop("recipes").to(self.device), self.images)
        batch = self.preprocess_batch(batch)
        if self.execution.channels_last:
            batch["img"] = batch["img"].contiguous(memory_format=torch.channels_last)
        return batch

    def predict(self, batch: dict[str, Any]) -> Any:
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return self.model(batch["img"])

    def compute_loss(self, batch: dict[str, Any], predictions: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        result: tuple[torch.Tensor, dict[str, torch.Tensor]]
        result = unwrap_model(self.model).loss(batch, precision.float_predictions(predictions))
        return result

    def _wrap(self) -> None:
        # Each rank keeps its own batch norm statistics; rank 0's are saved. torch 2.13 renamed the argument.
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
            # Called when the gradients of a bucket are complete; for the last bucket the computation ends here.
            self._reductions.append(self.clock.now())
            return default_hooks.allreduce_hook(group, bucket).then(reduced)

        def reduced(future: torch.futures.Future[torch.Tensor]) -> torch.Tensor:
            # On a GPU this runs in a stream that waits for the reduction, so the mark comes after it.
            self._reduced = self.clock.now()
            return future.value()

        self.model.register_comm_hook(None, without_annotations(reduce))

    def _setup_train(self) -> None:
        """Run upstream's set-up as for one rank; DDP, sharding and precision are set up here."""
        self.world_size = 1
        super()._setup_train()
        self.world_size = self.world.world_size
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        # Upstream validates in fp16, whose range a network that was trained in bf16 may exceed.
        self.amp = self.device.type == "cuda" and self.dtype == torch.float16
        self.trained = TrainedObjects(
            network=unwrap_model(self.model),
            ema=self.ema,
            optimizer=self.optimizer,
            scaler=self.scaler,
            stopper=self.stopper,
            scheduler=self.scheduler,
        )

    def facts(self) -> dict[str, str]:
        """Return device, precision, torch version and world size, for people and for the info metric."""
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


class _LoaderStub:
    """The part of a train loader that upstream's set-up reads; `data.dataset.loader` loads the batches."""

    def __init__(self, dataset: NodeDataset) -> None:
        self.dataset = dataset
