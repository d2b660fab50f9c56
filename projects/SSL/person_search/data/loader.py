"""Loaders for training, evaluation and bank filling, with or without worker processes."""

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
    """Endless stream of one rank's draws, which can start at any iteration.

    Every epoch is a new permutation of all images, padded with its first entries to a multiple of the global batch, so
    an epoch is a whole number of iterations. Rank r of W gets the entries r, r + W, ... of every global batch: together
    the ranks see the batch of a single process.

    Yields (position, index): `position` counts all draws of the run from 0 (iteration * batch_size + position in the
    batch), and so identifies a draw; `index` is the image, in [0, size).
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
        """
        Args:
            size: number of images.
            batch_size: images per iteration, over all ranks.
            seed: base of every epoch's permutation, 0 <= seed < 2**32.
            start_iteration: iteration of the first draw, counted from 0 over all epochs.
            rank: rank of this process; None for Detectron2's.
            world_size: number of processes; None for Detectron2's.
            shuffle: False keeps the order of the dataset in every epoch.

        Raises:
            ConfigError: the batch cannot be split evenly over the ranks, or the seed is out of range.
            ValueError: `size`, `start_iteration` or `rank` is out of range.
        """
        self.rank = comm.get_rank() if rank is None else rank
        self.world_size = comm.get_world_size() if world_size is None else world_size
        if size < 1 or start_iteration < 0 or not 0 <= self.rank < self.world_size:
            raise ValueError(
                f"sampler of {size} images from iteration {start_iteration} on rank {self.rank} of {self.world_size}"
            )
        if batch_size < 1 or batch_size % self.world_size:
            raise ConfigError(
                f"SOLVER.IMS_PER_BATCH is {batch_size}, expected a positive multiple of the {self.world_size} "
                "processes that share a batch"
            )
        if not 0 <= seed < 2**32:
            raise ConfigError(f"SEED is {seed}, expected 0 to 4294967295 for the order of the images")
        self.size = size
        self.batch_size = batch_size
        self.seed = seed
        self.start_iteration = start_iteration
        self.shuffle = shuffle

    @property
    def iterations_per_epoch(self) -> int:
        """Number of iterations in which every image is drawn: size / batch_size, rounded up."""
        return -(-self.size // self.batch_size)

    def epoch_order(self, epoch: int) -> np.ndarray:
        """Images of an epoch, padded: int64 (iterations_per_epoch * batch_size,)."""
        if self.shuffle:
            # numpy guarantees the stream of this generator; that of newer ones (and of torch) may change.
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
    """Sample of a worker. Errors are passed as values, since torch would wrap raised ones in a traceback."""

    data: dict[str, Any] | None = None
    error: PersonSearchError | None = None
    skipped: tuple[tuple[str, str], ...] = ()  # (file, reason)


class _SampleLoader:
    """Iterator over the samples of a torch loader, which raises their errors and counts skipped images.

    Attributes:
        skipped: number of failed reads by image file. Each file is named in one warning.
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
    """Endless batches of one rank: lists of mapped dicts, with the images they replace as `skipped_files`.

    Attributes:
        skipped: number of failed reads by image file, on this rank.
        sampler: order of the images.
    """

    def __init__(self, loader: DataLoader[list[_Sample]], sampler: EpochSampler) -> None:
        super().__init__(loader)
        self.sampler = sampler

    @property
    def iterations_per_epoch(self) -> int:
        """Number of batches in which every image is drawn."""
        return self.sampler.iterations_per_epoch


class SequentialLoader(_SampleLoader):
    """One pass over this rank's records, in order; batches of one mapped dict. `len()` includes unreadable images.

    Attributes:
        skipped: number of failed reads by image file, on this rank.
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
                f"none of {len(self)} images can be read, for example {next(iter(self.skipped))}; see the warnings "
                "above, and check the image folder"
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
    """Training loader. Batches depend on records, seed and iteration alone.

    `random`, numpy and torch (CPU) are seeded from (seed, draw) around each call of the mapper, so augmentations depend
    neither on the number of workers nor on restarts. An unreadable image is skipped with one warning, and replaced by
    the next readable one of the dataset.

    Args:
        records: dataset records.
        mapper: maps a record to the model's input; raises UnreadableImageError to skip an image.
        batch_size: images per iteration, over all ranks.
        seed: base of the order of the images and of all augmentations, 0 <= seed < 2**32.
        start_iteration: iteration of the first batch, counted from 0 over all epochs.
        num_workers: number of worker processes; 0 to load in this process.
        timeout: seconds to wait for a batch of the workers; 0 to wait forever.
        rank, world_size: part of each batch to load; None for Detectron2's.

    Raises:
        DatasetError: there are no records; while iterating: no image can be read, or the mapper raised it.
        ConfigError: the batch cannot be split evenly over the ranks, or the seed is out of range.
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
        generator=torch.Generator(),  # separate, since creating an iterator draws from it
        **worker_arguments(num_workers, timeout),
    )
    return TrainLoader(loader, sampler)


def build_test_loader(
    records: Sequence[Record], mapper: Mapper, *, num_workers: int = 0, timeout: float = WORKER_TIMEOUT
) -> SequentialLoader:
    """Evaluation loader: Detectron2's, one image per batch, split over the ranks in order.

    Args:
        records: dataset records.
        mapper: maps a record to the model's input.
        num_workers: number of worker processes; 0 to load in this process.
        timeout: seconds to wait for an image of the workers; 0 to wait forever.

    Raises:
        DatasetError: there are no records; while iterating: an image cannot be read (metrics on the others would be
            silently wrong).
    """
    return _build_sequential_loader(records, _Guarded(mapper, skip_unreadable=False), num_workers, timeout)


def build_bank_loader(
    records: Sequence[Record], mapper: Mapper, *, num_workers: int = 0, timeout: float = WORKER_TIMEOUT
) -> SequentialLoader:
    """Loader for one pass over the training images, to fill the memory banks.

    Like `build_test_loader`, except that unreadable images are skipped with one warning, as in training.

    Args:
        records: dataset records.
        mapper: maps a record to the model's input, with ground truth and without random augmentation.
        num_workers: number of worker processes; 0 to load in this process.
        timeout: seconds to wait for an image of the workers; 0 to wait forever.

    Raises:
        DatasetError: there are no records; at the end of an iteration: no image of this rank can be read.
    """
    return _build_sequential_loader(records, _Guarded(mapper, skip_unreadable=True), num_workers, timeout)


@contextlib.contextmanager
def seeded_rng(*entropy: int) -> Iterator[None]:
    """Context with `random`, numpy's and torch's CPU generators seeded from the given numbers, restored afterwards."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    words = np.random.SeedSequence(entropy).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(words[1])
    # torch.manual_seed would also reset the generators of the GPUs, which are not restored here.
    torch.default_generator.manual_seed(int(words[2]))
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


class _DrawDataset(Dataset[_Sample]):
    """Samples of the draws of an `EpochSampler`."""

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
    """Mapper that returns its errors as values."""

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
        raise DatasetError("the dataset has no images; check its annotation files and image folder")
