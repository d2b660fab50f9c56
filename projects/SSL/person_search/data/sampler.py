"""The order in which training sees its images: a pure function of seed, epoch and place in the epoch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from detectron2.utils import comm
from torch.utils.data.sampler import Sampler

from ..errors import ConfigError


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
