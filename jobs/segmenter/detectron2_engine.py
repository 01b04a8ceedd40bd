# pyright: reportMissingImports=false, reportMissingModuleSource=false
"""Engine `detectron2`: its registry, trainer, checkpointer, scheduler and evaluator around our network and crops.

Imported only where it is chosen. Same crops, losses, schedule, weights and random numbers as engine `ray`.
"""

from __future__ import annotations

import json
import logging
import tempfile
import time
from collections.abc import Generator, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.engine import DefaultTrainer, HookBase, defaults
from detectron2.evaluation import SemSegEvaluator
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.solver import LRMultiplier
from detectron2.utils import comm
from fvcore.common.param_scheduler import ParamScheduler
from ray.train import get_context
from ray.train.torch import get_device
from torch import nn

from fmwsss.cluster.execution.gradients import group_of_node
from fmwsss.cluster.models.device import pick_device, use_threads
from fmwsss.cluster.models.segmenters import new_segmenter, segmenter_files, spec_from_json
from fmwsss.cluster.storage.seal import sealed, unsealed
from fmwsss.cluster.telemetry.tensorboard import EventLog
from fmwsss.core.errors import InputError
from fmwsss.core.segmenter.base import Segmenter
from fmwsss.core.segmenter.inference import probabilities
from fmwsss.core.segmenter.optimizer import clip_gradients, make_optimizer, poly_factor
from fmwsss.jobs.run_layout import BEST
from fmwsss.jobs.segmenter.crops import CropBatch
from fmwsss.jobs.segmenter.detectron2_data import evaluator, register_dataset, test_loader
from fmwsss.jobs.segmenter.train_job import TrainJob
from fmwsss.jobs.segmenter.train_step import finish, is_logged, log_entry, log_scalars, prepare, seed_step

CHECKPOINT_FILE = "_checkpoint_detectron2.pth"
LATEST = "latest"
_create_ddp_model = defaults.create_ddp_model


def create_ddp_model(model: nn.Module, **options: Any) -> nn.Module:
    """As detectron2's own; for workers on CPUs too, and for networks with parameters that no step reaches (Swin)."""
    device = next(model.parameters()).device
    # Its own choice, the rank on the node, is the GPU only where no GPU of the node is another job's.
    options["device_ids"] = [device] if device.type == "cuda" else None
    return _create_ddp_model(model, find_unused_parameters=True, **options)


# Its trainer calls this function from its constructor, and has no other place for these options.
defaults.create_ddp_model = create_ddp_model


@META_ARCH_REGISTRY.register()
class FmwsssSegmenter(nn.Module):
    """A `Segmenter` as detectron2 calls its models: a list of dictionaries in; losses, or a list of results out."""

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        spec = spec_from_json(cfg.MODEL.SEGMENTER)
        self.segmenter = prepare(new_segmenter(spec).to(cfg.MODEL.DEVICE), comm.get_world_size())
        self.short_side_px = spec.short_side_px
        self.uses_bfloat16 = cfg.MODEL.PRECISION == "bfloat16"

    def forward(self, inputs: list[dict[str, Any]]) -> Any:
        """In training losses by name, else the probabilities of each image as `sem_seg`."""
        if not self.training:
            return [{"sem_seg": probabilities(self.segmenter, each["image"], self.short_side_px)} for each in inputs]
        device = next(self.segmenter.parameters()).device
        images = torch.stack([each["image"] for each in inputs]).to(device)
        labels = torch.stack([each["sem_seg"] for each in inputs]).to(device)
        weights = torch.stack([each["weights"] for each in inputs]).to(device) if "weights" in inputs[0] else None
        totals = self.segmenter.measure(labels, weights).to(device)
        num_workers = comm.get_world_size()
        if num_workers > 1:
            torch.distributed.all_reduce(totals)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.uses_bfloat16):
            losses = self.segmenter.losses(images, labels, weights, totals, [each["random_seed"] for each in inputs])
        # Our losses add up over workers; detectron2 takes the mean of gradients and of what it writes down.
        return {name: loss * num_workers for name, loss in losses.items()}


class _Crops:
    """Batches as detectron2 takes them, from the iteration on at which the trainer starts."""

    def __init__(self, job: TrainJob) -> None:
        self.job, self.first = job, 0
        self.running: Generator[CropBatch, None, None] | None = None

    def close(self) -> None:
        """Ends the tasks that draw, if a training ended before its time."""
        if self.running is not None:
            self.running.close()

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        job, rank, size = self.job, comm.get_rank(), comm.get_world_size()
        self.running = job.source.batches(self.first, job.num_iterations, rank, size, job.num_feeders)
        for batch in self.running:
            rows = zip(batch.image_ids, batch.images, batch.labels, batch.random_seeds, strict=True)
            keys = ("image_id", "image", "sem_seg", "random_seed")
            inputs: list[dict[str, Any]] = [dict(zip(keys, row, strict=True)) for row in rows]
            for each, weights in zip(inputs, batch.weights if batch.weights is not None else (), strict=False):
                each["weights"] = weights
            yield inputs


class _Poly(ParamScheduler):
    """Our schedule, as a function of how much of the training is done."""

    def __init__(self, job: TrainJob) -> None:
        self.job = job

    def __call__(self, where: float) -> float:
        section, total = self.job.section, self.job.num_iterations
        schedule = (section.power, section.warmup_iterations, section.rate_floor)
        return poly_factor(round(where * total), total, *schedule)


class _Steps(HookBase):
    """What the loop of engine `ray` does around a step: random numbers, history, board, pictures, checkpoints."""

    def __init__(self, job: TrainJob, board: Any) -> None:
        self.job, self.board = job, board
        self.history: list[dict[str, float]] = []
        self.log: EventLog | None = None
        self.last_saved_s = time.monotonic()
        self.seen_miou = -1

    def before_train(self) -> None:
        """Starts the log where the trainer starts."""
        self.board.set.remote(self.trainer.iter, "")
        if comm.is_main_process():
            self.log = EventLog(
                self.job.run.folder.child(self.job.stage),
                self.trainer.start_iter,
                self.job.checkpoint_every_s,
                self.board.tell.remote,
            )

    def before_step(self) -> None:
        """See `fmwsss.jobs.segmenter.train_step.seed_step`."""
        seed_step(self.job.random_seed, self.trainer.iter, comm.get_rank())

    def after_step(self) -> None:
        """After the optimizer's step, on the first worker."""
        if self.log is None:
            return
        job, iteration, done = self.job, self.trainer.iter, self.trainer.iter + 1
        latest = self.trainer.storage.latest()
        if is_logged(iteration, job.num_iterations):
            parts = {name: value for name, (value, _) in latest.items() if name in self.trainer.loss_names}
            entry = log_entry(job, iteration, parts)
            self.history.append(entry)
            log_scalars(self.log, entry)
            self.board.set.remote(done, f"loss {entry['loss']:.3f}")
        self._look_for_miou()
        if time.monotonic() - self.last_saved_s > job.checkpoint_every_s:
            self._save()
            self.last_saved_s = time.monotonic()

    def after_train(self) -> None:
        """Stores the trained segmenter."""
        if self.log is not None and self.trainer.iter + 1 >= self.job.num_iterations:
            self._look_for_miou()
            self.log.save()
            finish(self.job, self.trainer.segmenter, self.history)

    def state_dict(self) -> dict[str, Any]:
        """Goes into the trainer's checkpoint."""
        return {"history": self.history}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Comes out of it."""
        self.history = state["history"]

    def _look_for_miou(self) -> None:
        """What detectron2's evaluation hook, which comes before this one, has put down since the last look."""
        value, iteration = self.trainer.storage.latest().get("sem_seg/mIoU", (0.0, self.seen_miou))
        if iteration <= self.seen_miou or self.log is None:
            return
        self.seen_miou, miou = iteration, value / 100
        best = max((entry.get("validation_miou", -1.0) for entry in self.history), default=-1.0)
        self.log.scalars(self.trainer.iter + 1, {"validation_miou": miou})
        self.history[-1]["validation_miou"] = miou
        if miou > best:
            folder = self.job.run.folder.child(self.job.stage).child(BEST)
            folder.write_many(segmenter_files(self.trainer.segmenter, self.job.spec))

    def _save(self) -> None:
        self.trainer.checkpointer.save(LATEST, iteration=self.trainer.iter)
        path = Path(self.trainer.checkpointer.save_dir) / f"{LATEST}.pth"
        self.job.run.folder.child(self.job.stage).write(CHECKPOINT_FILE, sealed(path.read_bytes()))


def make_trainer(job: TrainJob, board: Any, output: str) -> DefaultTrainer:
    """detectron2's trainer for a job of ours.

    Args:
        job: what engine `ray` would run.
        board: where progress is told.
        output: a folder of this machine.

    Raises:
        ValueError: settings that this engine does not have.
    """
    section = job.section
    if section.micro_batches > 1:
        raise InputError("segmenter.micro_batches: detectron2 has no gradient accumulation; use `engine: ray`")
    crops = _Crops(job)

    class Trainer(DefaultTrainer):
        """Our parts in detectron2's places."""

        loss_names = ("class", "mask", "dice", "pixels", "auxiliary")

        @property
        def segmenter(self) -> Segmenter:
            model = self._trainer.model
            return getattr(model, "module", model).segmenter

        @classmethod
        def build_train_loader(cls, cfg: CfgNode) -> _Crops:
            return crops

        @classmethod
        def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
            segmenter: Any = model.segmenter
            optimizer = make_optimizer(
                segmenter, section.optimizer, section.learning_rate, section.weight_decay, section.backbone_multiplier
            )
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            optimizer.register_step_pre_hook(lambda *_: clip_gradients(parameters, section.clip_norm))
            return optimizer

        @classmethod
        def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LRMultiplier:
            return LRMultiplier(optimizer, _Poly(job), cfg.SOLVER.MAX_ITER)

        @classmethod
        def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
            assert job.validation is not None
            return test_loader(job.validation, dataset_name)

        @classmethod
        def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> SemSegEvaluator:
            assert job.validation is not None
            return evaluator(job.validation, dataset_name)

        def build_writers(self) -> list[Any]:
            return []  # curves go into the run, see _Steps

        def resume_or_load(self, resume: bool = True) -> None:
            super().resume_or_load(resume)
            crops.first = self.start_iter

    names: tuple[str, ...] = ()
    if job.validation is not None:
        names = (register_dataset(job.validation, "images", "truth", job.spec.class_names),)
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE = FmwsssSegmenter.__name__
    cfg.MODEL.DEVICE = pick_device()
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.SEGMENTER = json.dumps(asdict(job.spec))
    cfg.MODEL.PRECISION = job.precision
    cfg.DATASETS.TRAIN = (register_dataset(job.run, *job.source.labels, job.spec.class_names),)
    cfg.DATASETS.TEST = names
    cfg.SOLVER.MAX_ITER = job.num_iterations
    cfg.SOLVER.CHECKPOINT_PERIOD = job.num_iterations + 1  # by time, see _Steps
    cfg.TEST.EVAL_PERIOD = section.validate_every or 0
    cfg.OUTPUT_DIR = output
    trainer = Trainer(cfg)
    trainer.register_hooks([_Steps(job, board)])
    return trainer


def train_loop(settings: dict[str, Any]) -> None:
    """What every worker of the Ray job runs."""
    _tell_process_groups()
    train_segmenter(settings["job"], settings["board"])


def train_segmenter(job: TrainJob, board: Any) -> None:
    """One worker's part of a training; a checkpoint in its stage is gone on from.

    Args:
        job: what is trained, on what.
        board: shows how far it is.

    Raises:
        ValueError: settings that this engine does not have, or a loss that is not finite.
    """
    use_threads(job.num_threads)
    # Enabled, detectron2 leaves logging as it is; else it would set up its own, which prints the whole network.
    logging.getLogger("detectron2").setLevel(logging.INFO)
    folder = job.run.folder.child(job.stage)
    with tempfile.TemporaryDirectory() as output:
        if folder.exists(CHECKPOINT_FILE):
            content = unsealed(folder.read(CHECKPOINT_FILE), f"{folder.url}/{CHECKPOINT_FILE}")
            (Path(output) / f"{LATEST}.pth").write_bytes(content)
            (Path(output) / "last_checkpoint").write_text(f"{LATEST}.pth")
        trainer = make_trainer(job, board, output)
        trainer.resume_or_load(resume=True)
        try:
            trainer.train()
        finally:
            trainer._trainer.data_loader.close()


def _tell_process_groups() -> None:
    """Ray Train has made the process group; detectron2 also wants to know who shares a machine.

    Its own function for that wants as many workers on every machine.
    """
    context = get_context()
    if context.get_world_size() == 1:
        return
    if pick_device() == "cuda":
        torch.cuda.set_device(get_device())
    comm._LOCAL_PROCESS_GROUP = group_of_node(context.get_node_rank())
