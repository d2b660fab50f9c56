"""Loaders for training, evaluation and the filling of the memory banks, with or without worker processes."""

from __future__ import annotations

import contextlib
import logging
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetFromList, MapDataset
from detectron2.data.build import trivial_batch_collator
from detectron2.data.samplers import InferenceSampler
from detectron2.utils import comm
from detectron2.utils.serialize import PicklableWrapper
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.sampler import Sampler

from ..errors import ConfigError, DatasetError, LoaderError, PersonSearchError
from .mapper import UnreadableImageError
from .workers import WORKER_TIMEOUT, failure_of_workers, worker_arguments


class EpochSampler(Sampler[tuple[int, int]]):
    """Endless stream of the draws of one rank, that can start at any iteration without replaying those before it.

    Every epoch is a fresh permutation of all images, padded with its own first entries to a multiple of the global
    batch, so that an epoch is a whole number of iterations. Rank r of W gets the places r, r + W, ... of every global
    batch: together the ranks see the batch that a single process would see.

    Yields (position, index): `position` numbers all draws of the run from 0 (iteration * batch_size + place in the
    batch) and so names a draw for ever; `index` is the image, in [0, size).
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        seed: int,
        *,
        start_iteration: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        shuffle: bool = True,
    ) -> None:
        """Checks the arguments; nothing is drawn yet.

        Args:
            size: number of images.
            batch_size: images in an iteration, over all ranks together.
            seed: base of every epoch's permutation, 0 <= seed < 2**32.
            start_iteration: the iteration, counted from 0 over all epochs, of the first draw.
            rank: this process; by default Detectron2's.
            world_size: number of processes; by default Detectron2's.
            shuffle: False keeps the order of the data set in every epoch.

        Raises:
            ConfigError: the batch cannot be split over the ranks, or the seed is out of range.
            ValueError: `size` or `start_iteration` is negative or zero where it must not be.
        """
        self.rank = comm.get_rank() if rank is None else rank
        self.world_size = comm.get_world_size() if world_size is None else world_size
        if size < 1 or start_iteration < 0 or not 0 <= self.rank < self.world_size:
            raise ValueError(
                f"sampler of {size} images from iteration {start_iteration} on rank {self.rank} of {self.world_size}"
            )
        if batch_size < 1 or batch_size % self.world_size:
            raise ConfigError(
                f"SOLVER.IMS_PER_BATCH is {batch_size}; it must be a positive multiple of the {self.world_size} "
                "processes that share a batch"
            )
        if not 0 <= seed < 2**32:
            raise ConfigError(f"SEED is {seed}; the order of the images needs a seed from 0 to 4294967295")
        self.size = size
        self.batch_size = batch_size
        self.seed = seed
        self.start_iteration = start_iteration
        self.shuffle = shuffle

    @property
    def iterations_per_epoch(self) -> int:
        """Iterations in which every image is seen once: size / batch_size, rounded up."""
        return -(-self.size // self.batch_size)

    def epoch_order(self, epoch: int) -> np.ndarray:
        """Returns the images of one epoch, padded: int64, shape (iterations_per_epoch * batch_size,)."""
        if self.shuffle:
            # numpy promises that this generator's streams never change; its newer ones (and torch's) may.
            order = np.random.RandomState([self.seed, epoch]).permutation(self.size)
        else:
            order = np.arange(self.size)
        return np.resize(order, self.iterations_per_epoch * self.batch_size)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch, iteration = divmod(self.start_iteration, self.iterations_per_epoch)
        while True:
            order = self.epoch_order(epoch)
            begin = epoch * len(order)
            for place in range(iteration * self.batch_size + self.rank, len(order), self.world_size):
                yield begin + place, int(order[place])
            epoch, iteration = epoch + 1, 0


logger = logging.getLogger(__name__)

Record = dict[str, Any]
Mapper = Callable[[Record], dict[str, Any]]


@dataclass(frozen=True)
class _Sample:
    """Sample of a worker. Errors travel as values: raised in a worker, torch would wrap them in a traceback."""

    data: dict[str, Any] | None = None
    error: PersonSearchError | None = None
    skipped: tuple[tuple[str, str], ...] = ()  # (file, why)


class _SampleLoader:
    """Unpacks the samples of a torch loader: raises their errors here and counts the skipped images.

    Attributes:
        skipped: image file -> how often it could not be read. Each is named in one warning line.
    """

    def __init__(self, loader: DataLoader[list[_Sample]]) -> None:
        self._loader = loader
        self.skipped: Counter[str] = Counter()

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        for samples in self._samples():
            batch = [data for sample in samples if (data := self._unpack(sample)) is not None]
            if batch:
                yield batch

    def _samples(self) -> Iterator[list[_Sample]]:
        batches = iter(self._loader)
        while True:
            try:
                samples = next(batches)
            except StopIteration:
                return
            except (RuntimeError, OSError) as error:
                reason = failure_of_workers(error, self._loader)
                if reason is None:
                    raise
                raise LoaderError(reason) from error
            yield samples

    def _unpack(self, sample: _Sample) -> dict[str, Any] | None:
        for file, why in sample.skipped:
            if file not in self.skipped:
                logger.warning("skipped: %s", why if file in why else f"{file}: {why}")
            self.skipped[file] += 1
        if sample.error is not None:
            raise sample.error
        return sample.data


class TrainLoader(_SampleLoader):
    """Endless batches for one rank: lists of mapped dicts, each with `skipped_files`, the images it stands in for.

    Attributes:
        skipped: image file -> how often it could not be read, as seen by this rank.
        sampler: the order of the images.
    """

    def __init__(self, loader: DataLoader[list[_Sample]], sampler: EpochSampler) -> None:
        super().__init__(loader)
        self.sampler = sampler

    @property
    def iterations_per_epoch(self) -> int:
        """Batches in which every image is seen once."""
        return self.sampler.iterations_per_epoch


class SequentialLoader(_SampleLoader):
    """This rank's share of the records, once, in order; batches of one mapped dict. `len()` counts unreadable ones too.

    Attributes:
        skipped: image file -> how often it could not be read, as seen by this rank.
    """

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        yielded = 0
        for batch in super().__iter__():
            yielded += 1
            yield batch
        if len(self) and not yielded:
            raise DatasetError(
                f"none of {len(self)} images can be read, for example {next(iter(self.skipped))}; the warnings above "
                "say why: check the folder of the images"
            )


def build_train_loader(
    records: Sequence[Record],
    mapper: Mapper,
    *,
    batch_size: int,
    seed: int,
    start_iteration: int = 0,
    num_workers: int = 0,
    timeout: float = WORKER_TIMEOUT,
    rank: int | None = None,
    world_size: int | None = None,
) -> TrainLoader:
    """Builds the training loader. What a batch holds depends on records, seed and iteration alone.

    The generators of `random`, numpy and torch (CPU) are seeded from (seed, draw) around each call of the mapper, so
    neither the number of workers nor a restart changes an augmentation. An image that cannot be read is skipped with
    one warning; the next readable one of the data set takes its place.

    Args:
        records: dataset records.
        mapper: maps a record to the model's input, raising UnreadableImageError for an image to skip.
        batch_size: images in an iteration, over all ranks together.
        seed: base of the order of the images and of all augmentations, 0 <= seed < 2**32.
        start_iteration: the iteration of the first batch, counted from 0 over all epochs.
        num_workers: worker processes; 0 loads in this process.
        timeout: seconds to wait for a batch of the workers; 0: for ever.
        rank, world_size: which part of each batch is loaded; by default Detectron2's.

    Raises:
        DatasetError: there are no records. While iterating: no image can be read, or the mapper raised it.
        ConfigError: the batch cannot be split over the ranks, or the seed is out of range.
    """
    _check_not_empty(records)
    sampler = EpochSampler(
        len(records), batch_size, seed, start_iteration=start_iteration, rank=rank, world_size=world_size
    )
    loader: DataLoader[Any] = DataLoader(
        _DrawDataset(records, mapper, seed),
        batch_size=batch_size // sampler.world_size,
        sampler=sampler,
        collate_fn=trivial_batch_collator,
        generator=torch.Generator(),  # of its own: making an iterator would draw from the model's
        **worker_arguments(num_workers, timeout),
    )
    return TrainLoader(loader, sampler)


def build_test_loader(
    records: Sequence[Record], mapper: Mapper, *, num_workers: int = 0, timeout: float = WORKER_TIMEOUT
) -> SequentialLoader:
    """Builds the loader for evaluation: Detectron2's, one image a batch, split over the ranks in order.

    Args:
        records: dataset records.
        mapper: maps a record to the model's input.
        num_workers: worker processes; 0 loads in this process.
        timeout: seconds to wait for an image of the workers; 0: for ever.

    Raises:
        DatasetError: there are no records. While iterating: an image cannot be read (a metric over the others would be
            silently wrong).
    """
    return _build_sequential_loader(records, _Guarded(mapper, skip_unreadable=False), num_workers, timeout)


def build_bank_loader(
    records: Sequence[Record], mapper: Mapper, *, num_workers: int = 0, timeout: float = WORKER_TIMEOUT
) -> SequentialLoader:
    """Builds the loader that goes once over the training images to fill the memory banks.

    As `build_test_loader`, but an image that cannot be read is skipped with one warning: training skips it as well.

    Args:
        records: dataset records.
        mapper: maps a record to the model's input, with ground truth and without random augmentation.
        num_workers: worker processes; 0 loads in this process.
        timeout: seconds to wait for an image of the workers; 0: for ever.

    Raises:
        DatasetError: there are no records. While iterating, at the end: no image of this rank's share can be read.
    """
    return _build_sequential_loader(records, _Guarded(mapper, skip_unreadable=True), num_workers, timeout)


@contextlib.contextmanager
def seeded_rng(*entropy: int) -> Iterator[None]:
    """Seeds `random`, numpy's and torch's CPU generators from the given numbers, and restores them afterwards."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    words = np.random.SeedSequence(entropy).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(words[1])
    # Not torch.manual_seed: that would also reset the generators of the GPUs, which are not restored here.
    torch.default_generator.manual_seed(int(words[2]))
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


class _DrawDataset(Dataset[_Sample]):
    """Maps the draws of an `EpochSampler`."""

    def __init__(self, records: Sequence[Record], mapper: Mapper, seed: int) -> None:
        self._records = DatasetFromList(list(records), copy=False)
        self._map = _Guarded(mapper, skip_unreadable=True)
        self._seed = seed

    def __getitem__(self, draw: tuple[int, int]) -> _Sample:
        position, index = draw
        skipped: tuple[tuple[str, str], ...] = ()
        for step in range(len(self._records)):
            with seeded_rng(self._seed, position):
                sample = self._map(self._records[(index + step) % len(self._records)])
            skipped += sample.skipped
            if sample.data is not None:
                files = tuple(file for file, _ in skipped)
                return _Sample({**sample.data, "skipped_files": files}, None, skipped)
            if sample.error is not None:
                return replace(sample, skipped=skipped)
        return _Sample(error=DatasetError(f"none of {len(self._records)} images can be read: {skipped[0][1]}"))


class _Guarded:
    """Calls a mapper and returns its errors as values."""

    def __init__(self, mapper: Mapper, skip_unreadable: bool) -> None:
        self._mapper = PicklableWrapper(mapper)
        self._skip_unreadable = skip_unreadable

    def __call__(self, record: Record) -> _Sample:
        try:
            return _Sample(self._mapper(record))
        except UnreadableImageError as error:
            if self._skip_unreadable:
                return _Sample(skipped=((str(record["file_name"]), str(error)),))
            return _Sample(error=error)
        except PersonSearchError as error:
            return _Sample(error=error)


def _build_sequential_loader(
    records: Sequence[Record], mapper: _Guarded, num_workers: int, timeout: float
) -> SequentialLoader:
    _check_not_empty(records)
    loader = DataLoader(
        MapDataset(DatasetFromList(list(records), copy=False), mapper),
        batch_size=1,
        sampler=InferenceSampler(len(records)),
        collate_fn=trivial_batch_collator,
        **worker_arguments(num_workers, timeout),
    )
    return SequentialLoader(loader)


def _check_not_empty(records: Sequence[Mapping[str, Any]]) -> None:
    if not records:
        raise DatasetError("the data set has no images; check its annotation files and the folder of its images")
