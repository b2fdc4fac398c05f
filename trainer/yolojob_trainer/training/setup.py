"""How a rank gets ready: network, data, optimizer and DDP, with Ultralytics' parts in our arrangement."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping
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

from yolojob.api.reasons import Reason
from yolojob.api.run import Run
from yolojob.api.trainer_report import TuningReport
from yolojob_trainer.data.dataset import IGNORED, DetectionDataset, MicroBatches, TrainSamples, loader
from yolojob_trainer.data.sample_order import SampleOrder
from yolojob_trainer.distributed.world import World
from yolojob_trainer.errors import BadInput
from yolojob_trainer.model import precision
from yolojob_trainer.system.process import available_cpus
from yolojob_trainer.training.autotune import Choice
from yolojob_trainer.training.phase_clock import Mark, PhaseClock

NetworkSource = tuple[dict[str, Any], torch.nn.Module | None]
"""Description and starting weights, as `architecture.resolve` gives them."""


class Pipeline(DetectionTrainer):
    """Everything that a rank trains with. `_setup_train` makes it ready."""

    def __init__(
        self,
        run: Run,
        world: World,
        *,
        data: Path,
        model: NetworkSource,
        save_dir: Path,
        cache: Path,
        warn: Callable[[str], None],
    ) -> None:
        """
        Args:
            run: what is trained.
            world: this process among all, connected.
            data: data file, see `yolojob_trainer.data.dataset_config`.
            model: the network.
            save_dir: where Ultralytics writes what it likes.
            cache: folder of this node for label caches.
            warn: called with every warning for the user.
        """
        self.run, self.world, self.warn = run, world, warn
        self._model_source = model
        self._label_cache = cache / "labels"
        super().__init__(overrides=self._overrides(data, save_dir))
        # Upstream counts this process' devices, forces loader processes off, and takes the machine's cores.
        self.world_size = world.world_size
        torch.set_num_threads(world.threads)
        self.args.workers = self._loader_processes(run.spec.train.workers)
        self.choice = Choice(
            amp=precision.name(precision.choose(run.spec.train.amp, world.device)),
            channels_last=run.spec.train.channels_last is not False,
            cache=run.spec.train.cache or False,
            workers=self.args.workers,
            compile=bool(run.spec.train.compile),
        )
        self.tuning: TuningReport | None = None
        self.clock = PhaseClock(world.device)
        self._turns = itertools.count()
        self._reductions: list[Mark] = []
        """When the gradients of each bucket were there, in this backward pass."""
        self._reduced: Mark | None = None
        """When the last bucket to be ready was reduced."""

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
            "compile": False,  # by `configure`
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
            raise BadInput(Reason.INVALID_MODEL, f"spec.model: the network cannot be built: {error}") from error

    def build_dataset(self, img_path: str, mode: str = "train", batch: int | None = None) -> DetectionDataset:
        stride = max(int(unwrap_model(self.model).stride.max()), 32)
        kind = DetectionDataset.in_folder(self._label_cache)
        try:
            with self.world.in_turns(f"labels/{mode}"):
                dataset = kind(
                    img_path=img_path,
                    imgsz=self.args.imgsz,
                    batch_size=batch,
                    augment=mode == "train",
                    hyp=self.args,
                    rect=mode == "val",
                    cache=self._cache(mode),
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
            words = _clear(str(error)).partition(" See https://")[0]
            raise BadInput(Reason.INVALID_DATASET, f"spec.dataset: {mode}: {words}") from error
        self._opened(dataset)
        self._judge(dataset.messages, mode)
        return dataset

    def _opened(self, dataset: DetectionDataset) -> None:
        """Every rank of this node has the images in memory open by now: their name is not needed any more."""
        if dataset.shared and self.world.local_rank == 0:
            dataset.shared.unlink()

    def _cache(self, mode: str) -> str | None:
        """Where decoded images are kept from the start. Training images in memory are `configure`'s."""
        asked = "ram" if self.args.cache is True else self.args.cache or None
        return None if mode == "train" and asked == "ram" else asked

    def _judge(self, messages: list[str], mode: str) -> None:
        """Labels of classes that there are not are a mistake; images that cannot be read happen, and are left out."""
        messages = [_clear(m.removeprefix(f"{mode}: ")) for m in messages]
        if wrong := [m for m in messages if "exceeds dataset class count" in m]:
            where, _, why = wrong[0].partition(f": {IGNORED}: ")
            raise BadInput(
                Reason.INVALID_DATASET, f"spec.dataset: {mode}: labels of {where}: {why} ({len(wrong)} in all)"
            )
        if not self.world.is_main:
            return
        for note in [m for m in messages if IGNORED not in m]:
            self.warn(f"{mode}: {note}")
        if messages := [m for m in messages if IGNORED in m]:
            first = "; ".join(m.replace(f" {IGNORED}:", "") for m in messages[:3])
            more = " …" if len(messages) > 3 else ""
            self.warn(f"{mode}: {len(messages)} image(s) cannot be used and are left out: {first}{more}")

    def _loader_processes(self, asked: int | None) -> int:
        """Loader processes of this rank: none on a CPU unless asked for, where they would take the model's cores."""
        default = 0 if self.world.device.type == "cpu" else 8
        return min(default if asked is None else asked, max(available_cpus() // self.world.local_world_size, 1))

    def _build_train_pipeline(self) -> None:
        """Data, DDP and optimizer. Called by upstream's `_setup_train` once the model is on its device."""
        dataset = self.build_dataset(self.data["train"], "train", self.args.batch)
        self.order = self._order(dataset, self.choice)
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

        self.tune()
        self.configure(self.choice)

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
        for group in self.optimizer.param_groups:
            if "fused" in group:  # one kernel over all parameters in place of hundreds, on CPUs, too
                group["fused"] = True
        self._setup_scheduler()
        if self.world.world_size > 1:
            self._wrap()

    def tune(self) -> None:
        """Choose by trials where the job asks for it. Called on all ranks, before the optimizer is built."""

    def configure(self, choice: Choice) -> None:
        """Train with these settings from now on. The network must not be wrapped yet.

        Raises:
            OSError: images cannot be kept in memory.
        """
        self.choice = choice
        self.dtype = precision.by_name(choice.amp)
        network = unwrap_model(self.model)
        self.model = network.to(memory_format=torch.channels_last if choice.channels_last else torch.contiguous_format)
        if choice.compile:
            mode = self.args.compile if isinstance(self.args.compile, str) else None
            self.model = torch.compile(network, mode=mode)
        dataset = self.samples.dataset
        self.order = self._order(dataset, choice)
        keep = choice.cache in (True, "ram")
        if keep != (dataset.shared is not None):
            with self.world.in_turns(f"cache/{next(self._turns)}"):
                dataset.keep_in_memory(keep)
            self._opened(dataset)

    def _order(self, dataset: DetectionDataset, choice: Choice) -> SampleOrder:
        shards = self._shards * choice.micro_batches
        return SampleOrder(samples=len(dataset), batch=self.args.batch, shards=shards, seed=self.args.seed)

    def batches(self, epoch: int, step: int) -> Iterator[dict[str, Any]]:
        """This rank's micro-batches from a point on, for ever."""
        return loader(
            self.samples,
            MicroBatches(self.order, rank=self.world.rank, world_size=self.world.world_size, epoch=epoch, step=step),
            workers=self.choice.workers,
            prefetch=self.choice.prefetch,
            pin_memory=self.device.type == "cuda",
        )

    def forward(self, batch: dict[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """A micro-batch as the loader gives it: (loss items times its images, their means by name)."""
        batch = self.to_device(batch)
        return self.losses_of(batch, self.predict(batch))

    def to_device(self, batch: dict[str, Any]) -> dict[str, Any]:
        batch = self.preprocess_batch(batch)
        if self.choice.channels_last:
            batch["img"] = batch["img"].contiguous(memory_format=torch.channels_last)
        return batch

    def predict(self, batch: dict[str, Any]) -> Any:
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return self.model(batch["img"])

    def losses_of(self, batch: dict[str, Any], predictions: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        found: tuple[torch.Tensor, dict[str, torch.Tensor]]
        found = unwrap_model(self.model).loss(batch, precision.float_predictions(predictions))
        return found

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
                Reason.BATCH_TOO_SMALL,
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
            self._reductions.append(self.clock.now())
            return default_hooks.allreduce_hook(group, bucket).then(reduced)

        def reduced(future: torch.futures.Future[torch.Tensor]) -> torch.Tensor:
            # On a GPU this runs in a stream that waits for the reduction, so the mark lies behind it.
            self._reduced = self.clock.now()
            return future.value()

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


def _clear(words: str) -> str:
    """Upstream's words in one line; of what is no image it says that a plugin for one more format is missing."""
    return " ".join(words.split()).replace("No module named 'pi_heif'", "cannot identify image file")


class _Loaded:
    """What upstream's set-up reads of a train loader; the loading itself is `dataset.loader`."""

    def __init__(self, dataset: DetectionDataset) -> None:
        self.dataset = dataset
