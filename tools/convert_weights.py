#!/usr/bin/env python3
"""Converts weights of SeqNet's public code or torchvision's ResNet-50 to this project's, and the latter to SeqNet's.

    python tools/convert_weights.py seqnet_prw.pth seqnet_prw_ssl.pth
    python tools/convert_weights.py resnet50-0676ba61.pth resnet50_ssl.pth
    python tools/convert_weights.py model_final.pth model_final_seqnet.pth --to-seqnet

The kind of IN is inferred from its names, or given by --from. OUT is a checkpoint {"model": weights}, to be used as
MODEL.WEIGHTS or, with --to-seqnet, as SeqNet's --ckpt. For the names see docs/weights.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from person_search.errors import CheckpointError, exit_status
from person_search.io import replacing
from person_search.weights.files import read_weights
from person_search.weights.resnet import convert_torchvision_resnet50, is_torchvision_resnet
from person_search.weights.seqnet import convert_seqnet, convert_to_seqnet, is_person_search, is_seqnet
from torch import Tensor

CONVERSIONS = {"seqnet": convert_seqnet, "torchvision": convert_torchvision_resnet50, "ours": convert_to_seqnet}


def read_state(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """State dict of a file, bare or under the key "model" of a checkpoint.

    Args:
        path: file readable by `person_search.weights.files`. Nothing in it is executed: it may only have tensors,
            arrays and plain values.

    Returns:
        the state dict, and the names of other entries of the checkpoint.

    Raises:
        CheckpointError: the file is missing, damaged or no state dict.
    """
    file = read_weights(str(path))
    return file.state, sorted(str(key) for key in file.rest)


def detect_source(state: Mapping[str, Tensor]) -> str:
    """Code base of a state dict: "seqnet", "torchvision" or "ours".

    Raises:
        CheckpointError: it is none of them.
    """
    for source, matches in (("seqnet", is_seqnet), ("torchvision", is_torchvision_resnet), ("ours", is_person_search)):
        if matches(state):
            return source
    raise CheckpointError(
        f"these weights are neither SeqNet's, nor torchvision's ResNet-50, nor this project's: {len(state)} names, the "
        f"first is {next(iter(state))}"
    )


def write_checkpoint(state: dict[str, Tensor], path: Path) -> None:
    """Writes {"model": state}, atomically.

    Raises:
        CheckpointError: the file cannot be written.
    """
    if not path.parent.is_dir():
        raise CheckpointError(f"{path} cannot be written: there is no folder {path.parent}; create it first")
    try:
        with replacing(path, error=CheckpointError) as temporary, temporary.open("wb") as file:
            torch.save({"model": state}, file)
    except RuntimeError as error:  # raised by torch.save for a full disk
        raise CheckpointError(f"{path} cannot be written: {str(error).splitlines()[0]}") from error


def convert(source_path: Path, target_path: Path, source: str | None = None, to_seqnet: bool = False) -> None:
    """Converts a file, and lists unused names on stderr.

    Args:
        source_path, target_path: IN and OUT.
        source: "seqnet", "torchvision" or "ours"; None to infer it from the names.
        to_seqnet: whether to write SeqNet's names; only from ours.

    Raises:
        CheckpointError: IN is unknown, incomplete or already converted, or OUT cannot be written.
    """
    if target_path.exists() and source_path.exists() and target_path.samefile(source_path):
        raise CheckpointError(f"{target_path} is both IN and OUT: give OUT another name")
    state, others = read_state(source_path)
    try:
        source = source or detect_source(state)
        if source == "ours" and not to_seqnet:
            raise CheckpointError("these are this project's weights already: --to-seqnet converts them to SeqNet's")
        if source != "ours" and to_seqnet:
            raise CheckpointError(f"these are {source} weights, but --to-seqnet takes this project's only")
        converted, unused = CONVERSIONS[source](state)
    except CheckpointError as error:
        raise CheckpointError(f"{source_path}: {error}") from error
    write_checkpoint(converted, target_path)
    for name in unused:
        print(f"not used: {name} {tuple(state[name].shape)}", file=sys.stderr)
    if others:
        print(f"not used: besides the weights, {', '.join(others)}", file=sys.stderr)
    print(f"{target_path}: {len(converted)} weights from {len(state)} of {source_path} ({source})", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source_path", metavar="IN", type=Path, help="checkpoint, or bare state dict")
    parser.add_argument("target_path", metavar="OUT", type=Path, help="checkpoint to write")
    parser.add_argument("--from", dest="source", choices=list(CONVERSIONS), help="kind of IN (default: inferred)")
    parser.add_argument("--to-seqnet", action="store_true", help="convert this project's weights to SeqNet's")
    args = parser.parse_args(arguments)
    return exit_status(lambda: convert(**vars(args)))


if __name__ == "__main__":
    sys.exit(main())
