"""Sets up a rank for training: network, data, optimizer and DDP, built from the components of Ultralytics."""

from __future__ import annotations

import inspect
import itertools
import sys
from collections.abc import Callable, Iterator, Mapping
from copy import copy, deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch._C._distributed_c10d import GradBucket
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel
from ultralytics.data import build_dataloader
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.utils.torch_utils import unwrap_model

from yolojob.api.reasons import Reason
from yolojob.api.run import Run
from yolojob.api.train_settings import OWN_SETTINGS
from yolojob.api.trainer_report import TuningReport
from yolojob_trainer.data import recent_images
from yolojob_trainer.data.dataset import DetectionDataset, LimitedLoader, MicroBatches, TrainSamples, loader
from yolojob_trainer.data.mosaic_window import MosaicWindow
from yolojob_trainer.data.sample_order import SampleOrder
from yolojob_trainer.data.scan import one_line, summarize
from yolojob_trainer.distributed.world import World
from yolojob_trainer.errors import BadInput
from yolojob_trainer.model import precision
from yolojob_trainer.system import host, shared_memory
from yolojob_trainer.system.compiler import has_c_compiler
from yolojob_trainer.system.process import available_cpus
from yolojob_trainer.system.torch_patches import without_annotations
from yolojob_trainer.system.upstream_patches import raise_detection_limit
from yolojob_trainer.training.execution import ExecutionSettings
from yolojob_trainer.training.phase_clock import Mark, PhaseClock
from yolojob_trainer.training.train_state import TrainedObjects, TrainState
from yolojob_trainer.training.validator import ArrayValidator

NetworkSource = tuple[dict[str, Any], torch.nn.Module | None]
"""Network description and starting weights, as `yolojob_trainer.model.resolve.resolve` returns them."""


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


class TrainerSetup(DetectionTrainer):
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
            cache=run.spec.train.cache or False,
            workers=self.args.workers,
            compile=bool(run.spec.train.compile),
        )
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
        if settings.fraction and settings.fraction > 1:
            requested["fraction"] = int(settings.fraction)  # for Ultralytics an int is a count and a float is a share
        return {
            "plots": False,
            "verbose": False,
            **requested,
            "task": "detect",
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

    @property
    def _shards(self) -> int:
        """Number of shards of a global batch: the largest number of processes that the job may have."""
        spec = self.run.spec
        elastic_limit = spec.elastic.max_replicas * spec.workers.processes if spec.elastic else 0
        return max(spec.workers.world_size, self.world.world_size, elastic_limit)

    def setup_model(self) -> None:
        # The initial weights must be the same on every rank and for every number of ranks.
        torch.manual_seed(self.args.seed)
        description, weights = self._network_source
        try:
            self.model = self.get_model(cfg=deepcopy(description), weights=weights, verbose=bool(self.args.verbose))
        except (TypeError, ValueError, KeyError, AttributeError, IndexError, AssertionError) as error:
            raise BadInput(Reason.INVALID_MODEL, f"spec.model: the network cannot be built: {error}") from error

    def build_dataset(self, img_path: str, mode: str = "train", batch: int | None = None) -> DetectionDataset:
        stride = max(int(unwrap_model(self.model).stride.max()), 32)
        try:
            with self.world.rank0_then_node_then_rest(f"labels/{mode}"):
                dataset = DetectionDataset(
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
                    task="detect",
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

    def _unlink_shared_images(self, dataset: DetectionDataset) -> None:
        """Remove the name of the shared images. All ranks of this node must have opened them."""
        if dataset.shared and self.world.local_rank == 0:
            dataset.shared.unlink()

    def _initial_cache(self, mode: str) -> str | None:
        """Return where decoded images are kept from the start. `configure` loads training images into memory."""
        requested = "ram" if self.args.cache is True else self.args.cache or None
        return None if mode == "train" and requested == "ram" else requested

    def _report_scan(self, dataset: DetectionDataset, mode: str) -> None:
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
        labelled = sum(len(label["cls"]) > 0 for label in dataset.labels)
        for note in [*dataset.scan.warnings(labelled), *dataset.notes]:
            self.warn(f"{mode}: {note}")
        if dataset.left_out:
            # All of them in the log: the warning names only a few.
            for message in dataset.left_out:
                print(f"yolojob: {mode}: left out: {message}", file=sys.stderr)  # noqa: T201
            images = len(dataset.left_out)
            self.warn(f"{mode}: {images} image(s) cannot be used and are left out: {summarize(dataset.left_out)}")

    @property
    def _cpus(self) -> int:
        """CPUs of this rank."""
        return max(available_cpus() // self.world.local_world_size, 1)

    def loader_limit(self, prefetch: int) -> int:
        """Return the number of loader processes of this rank for which there is room in shared memory."""
        images = -(-self.args.batch // self.world.world_size)
        free = shared_memory.free_bytes() // self.world.local_world_size
        return shared_memory.loader_limit(images * 3 * self.args.imgsz**2, prefetch, free)

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
        raise_detection_limit(self.args, {"train": dataset, "val": validation})
        unwrap_model(self.model).set_head_attr(max_det=self.args.max_det)

        self.tune()
        self.configure(self.execution)
        self._build_optimizer()
        if self.world.world_size > 1:
            self._wrap()

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

    def get_validator(self) -> ArrayValidator:
        return ArrayValidator(
            self.world, self.test_loader, save_dir=self.save_dir, args=copy(self.args), _callbacks=self.callbacks
        )

    # --- execution --------------------------------------------------------------------------------------------------

    def configure(self, execution: ExecutionSettings) -> None:
        """Use these settings from now on. The network must not be wrapped by DDP yet.

        Raises:
            OSError: the images do not fit in memory.
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
        keep = execution.cache in (True, "ram")
        if keep != (dataset.shared is not None):
            with self.world.rank0_then_node_then_rest(f"cache/{next(self._cache_changes)}"):
                dataset.keep_in_memory(keep)
            self._unlink_shared_images(dataset)
        self._keep_recent_images()

    def _keep_recent_images(self) -> None:
        """Keep the images in memory of which the loader processes of this rank make mosaics."""
        window, execution = self.samples.window, self.execution
        shards = len(window.order.shards_of(self.world.rank, self.world.world_size))
        loading = (execution.workers * execution.prefetch + 1) * -(-self.args.batch // window.order.shards)
        free = host.free_memory(torch.device("cpu")) / self.world.local_world_size
        needed = shards * window.length + loading if self.args.mosaic else 0
        self.samples.dataset.keep_recent(needed, recent_images.MEMORY_SHARE * free)

    def reshard(self, micro_batches: int) -> None:
        """Split each shard of the global batch into this number of microbatches; the settings stay as they are."""
        self.order = self._sample_order(self.samples.dataset, replace(self.execution, micro_batches=micro_batches))

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

    def _sample_order(self, dataset: DetectionDataset, execution: ExecutionSettings) -> SampleOrder:
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

    def forward(self, batch: dict[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Run the forward pass on a microbatch from the loader.

        Returns:
            (loss items times the number of images, mean of each item by name).
        """
        batch = self.to_device(batch)
        return self.compute_loss(batch, self.predict(batch))

    def to_device(self, batch: dict[str, Any]) -> dict[str, Any]:
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

    def _validation_batch(self) -> int:
        return max(self.run.spec.train.batch // self.world.world_size, 1) * 2

    def _check_batch_norm(self, dataset: DetectionDataset) -> None:
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
        self.amp = self.device.type == "cuda" and self.dtype != torch.float32  # precision of the validator
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

    def __init__(self, dataset: DetectionDataset) -> None:
        self.dataset = dataset
