"""Checkpoints, written atomically and rejected with a reason if they do not fit."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode

from ..errors import CheckpointError
from ..io import is_disk_full, replacing
from .files import (
    EXPECTED,
    PACKAGE_PREFIX,
    TIMM_PREFIX,
    TORCHVISION_PREFIX,
    UNREADABLE,
    WeightFile,
    read_file,
    read_weights,
    unwrap,
)
from .pretrained import is_own, place_pretrained, refuse_frozen_scratch, refuse_random_parts
from .resnet import complete_exemplar_backbone

CONFIG_KEY = "config"
"""Key of the model's config, as YAML text, in a checkpoint."""
AVERAGED_MODEL = "averaged_model"
"""Key of the teacher's weights in a checkpoint; they are used for evaluation (SSL.TEACHER)."""
# State used in training only: ignored for inference and fine-tuning, required to fit for resuming.
_TRAINING_STATE = "objective."
# Meaning of the rows of a tensor; the default is annotated persons.
_ROWS = {"objective.lookup_table": "identities", "objective.queue": "slots in OIM.QUEUE_SIZE"}


class PersonSearchCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer, which also loads pretrained networks, runs no code from files, and writes
    atomically."""

    def __init__(
        self,
        model: torch.nn.Module,
        save_dir: str = "",
        config: CfgNode | None = None,
        check_resumed: Callable[[str | None], None] | None = None,
        **kwargs: Any,
    ) -> None:
        """
        Args:
            model: model, possibly wrapped for distributed training.
            save_dir: folder of the checkpoints.
            config: config of the model, stored in every checkpoint as text so that it can be used on its own.
            check_resumed: called with the config of a checkpoint before training is resumed from it; raises if that
                is not possible.
            kwargs: see `DetectionCheckpointer`.
        """
        super().__init__(model, save_dir, **kwargs)
        self._config = {} if config is None else {CONFIG_KEY: config.dump()}
        self._check_resumed = check_resumed
        self._resuming = self._for_inference = False
        self._incompatible: Any = None
        self._path, self._file = "", WeightFile({})
        self._pretrained = False

    # ------------------------------------------------------------------ writing

    def save(self, name: str, **kwargs: Any) -> None:
        """Writes `<name>.pth` and marks it as the last checkpoint. If killed, the previous or the new state remains."""
        if not self.save_dir or not self.save_to_disk:
            return
        data = {"model": self.model.state_dict(), **{k: o.state_dict() for k, o in self.checkpointables.items()}}
        path = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info("Saving checkpoint to %s", path)
        _write_whole(path, lambda f: torch.save({**data, **self._config, **kwargs}, f))
        self.tag_last_checkpoint(f"{name}.pth")

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Marks a checkpoint as the one to resume from."""
        path = os.path.join(self.save_dir, "last_checkpoint")
        _write_whole(path, lambda f: f.write(last_filename_basename.encode()))

    # ------------------------------------------------------------------ reading

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Loads everything from the last checkpoint if `resume` and there is one, else only weights from `path`.

        Raises:
            CheckpointError: see `load`; also if banks or labels of the checkpoint belong to another training set, or
                the weights to another backbone.
        """
        self._resuming = resume and self.has_checkpoint()
        try:
            rest = super().resume_or_load(path, resume=resume)
            if not path and not self._resuming:
                refuse_frozen_scratch(self.model)
            elif not self._resuming and not self._pretrained:
                self._check_backbone(path)
                refuse_random_parts(self._file.state, path, self.model)
            return rest
        finally:
            self._resuming = False

    def _check_backbone(self, path: str) -> None:
        """Checks that the weights are of the same backbone; of another, only those that happen to fit would be used."""
        wrong = [x for x in self._incompatible.incorrect_shapes if x[0].startswith("backbone.")]
        if wrong:
            name, theirs, own = wrong[0]
            raise CheckpointError(
                f"weights {path} are of another backbone: {name} is {tuple(theirs)}, and {tuple(own)} with this config "
                f"({len(wrong)} such weights); give weights that fit, change MODEL.RESNETS, or start from scratch with "
                'MODEL.WEIGHTS ""'
            )

    def load_for_inference(self, path: str) -> None:
        """Loads weights for evaluation: the teacher's if the checkpoint has one.

        Raises:
            CheckpointError: there is no path, or the file lacks weights of the model, as one of a backbone alone does.
        """
        if not path:
            raise CheckpointError(
                "MODEL.WEIGHTS is empty: name the checkpoint to evaluate, as in MODEL.WEIGHTS model.pth"
            )
        self._for_inference = True
        try:
            self.load(path, checkpointables=[])
        except CheckpointError as error:
            if not self._pretrained:
                raise
            raise CheckpointError(
                f"{path} is not a trained person search model of this config ({error}). Evaluate a checkpoint "
                "written by training with this config"
            ) from error
        finally:
            self._for_inference = False
        missing = [
            k for k in self._incompatible.missing_keys
            if not k.startswith("exemplar_branch.") and not k.endswith("num_batches_tracked")
        ]  # fmt: skip
        wrong = [f"{k} is {a}, expected {b}" for k, a, b in self._incompatible.incorrect_shapes]
        if missing or wrong:
            what = "; ".join(wrong[:3] + [f"{k} is missing" for k in missing[:3]])
            raise CheckpointError(
                f"{path} is not a trained person search model of this config ({len(missing)} weights missing, "
                f"{len(wrong)} of another shape: {what}). Evaluate a checkpoint written by training with this config"
            )

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Loads a checkpoint of this project, or a pretrained network (see docs/weights.md).

        Raises:
            CheckpointError: the file is missing or damaged, or does not fit the model.
        """
        self._path = path
        if path.startswith((TORCHVISION_PREFIX, TIMM_PREFIX, PACKAGE_PREFIX)):
            self._file = read_weights(path)
            self._incompatible = self._load_model({"model": self._file.state})
            return {}
        if path and "://" not in path and not os.path.isfile(path):
            if path in (self.get_checkpoint_file(), self.save_dir):
                tag = os.path.join(self.save_dir, "last_checkpoint")
                raise CheckpointError(
                    f"{tag} names {path}, which does not exist: write the name of a checkpoint there, or start over "
                    "without --resume"
                )
            raise CheckpointError(f"weights {path} do not exist: check MODEL.WEIGHTS")
        try:
            return super().load(path, *args, **kwargs)
        except CheckpointError as error:
            raise error if path in str(error) else CheckpointError(f"{path}: {error}") from error
        except UNREADABLE as error:
            if isinstance(error, OSError) and "://" in path:
                raise CheckpointError(
                    f"MODEL.WEIGHTS {path}: could not be downloaded ({error}). Download that file elsewhere, and give "
                    "its path"
                ) from error
            reason = (str(error).strip() or "it is empty").splitlines()[0][:200]
            raise CheckpointError(
                f"weights {path} cannot be read ({type(error).__name__}: {reason}); {EXPECTED}"
            ) from error
        finally:
            self._parsed_url_during_load = None

    def _load_file(self, filename: str) -> dict[str, Any]:
        self._file = unwrap(read_file(Path(filename)), filename)
        return {**self._file.rest, "model": self._file.state}

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        state: Mapping[str, Any] = checkpoint["model"]
        if self._resuming and not self.checkpointables.keys() <= checkpoint.keys():
            lacking = ", ".join(sorted(self.checkpointables.keys() - checkpoint.keys()))
            raise CheckpointError(
                f"it has weights but no state of a training ({lacking}), so it cannot be resumed: start from its "
                "weights in another OUTPUT_DIR, without --resume and with MODEL.WEIGHTS"
            )
        self._pretrained = not self._resuming and not is_own(self._file, self.model)
        if self._pretrained:
            start = place_pretrained(self._file, self._path, self.model)
            self.logger.info(start.message)
            checkpoint["model"] = start.state
        elif self._resuming:
            if self._check_resumed is not None:
                self._check_resumed(checkpoint.get(CONFIG_KEY))
            self._check_training_state(checkpoint["model"])
        else:
            if self._for_inference:
                state = checkpoint.get(AVERAGED_MODEL, state)
            weights = {k: v for k, v in state.items() if not k.startswith(_TRAINING_STATE)}
            checkpoint["model"] = complete_exemplar_backbone(weights, self.model.state_dict())
            self._file = WeightFile(dict(checkpoint["model"]), key=self._file.key)
        checkpoint.pop("matching_heuristics", None)  # names are correct already
        self._incompatible = super()._load_model(checkpoint)
        if not self._resuming:  # ignored on purpose, so no warning
            missing = self._incompatible.missing_keys
            missing[:] = [k for k in missing if not k.startswith(_TRAINING_STATE)]
        if self._resuming:
            self._check_complete()
        return self._incompatible

    def _log_incompatible_keys(self, incompatible: Any) -> None:
        if not self._pretrained:  # reported in its own message
            super()._log_incompatible_keys(incompatible)

    def _check_complete(self) -> None:
        """Checks that a checkpoint to resume from has all weights; missing ones would be random."""
        missing = [f"{k} is missing" for k in self._incompatible.missing_keys if not k.endswith("num_batches_tracked")]
        wrong = [f"{k} is {tuple(a)}, expected {tuple(b)}" for k, a, b in self._incompatible.incorrect_shapes]
        unfit = wrong + missing
        if unfit:
            raise CheckpointError(
                f"the checkpoint is of another model than this config's ({unfit[0]}; {len(unfit)} "
                "such weights): resume with the config of its training, or start over in another OUTPUT_DIR"
            )

    def _check_training_state(self, state: Mapping[str, Any]) -> None:
        own = self.model.state_dict()
        for key, value in state.items():
            if key.startswith(_TRAINING_STATE) and key in own and value.shape != own[key].shape:
                raise CheckpointError(
                    f"the checkpoint's {key} has {len(value)} rows, the training set has {len(own[key])} "
                    f"{_ROWS.get(key, 'annotated persons')}: resume with the training set and the config of its "
                    "training, or start over without --resume"
                )


def _write_whole(path: str, write: Any) -> None:
    """Writes a file so that neither a kill nor a power failure leaves half of it.

    Raises:
        CheckpointError: it cannot be written; an existing file is unchanged.
    """
    whole = "earlier checkpoints are intact, and --resume continues from the last"
    try:
        with replacing(path, error=CheckpointError, durable=True) as temporary, temporary.open("wb") as f:
            write(f)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; {whole}") from error
    except RuntimeError as error:  # PyTorch's writer hides the system's error
        reason = "disk full" if is_disk_full(error) else str(error).splitlines()[0][:120]
        raise CheckpointError(f"cannot write {path}: {reason}; check free space; {whole}") from error
