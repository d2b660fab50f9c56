#!/usr/bin/env python3
"""Trains or evaluates a person search model.

python train_net.py --config-file projects/SSL/configs/prw.yaml --num-gpus 1
python train_net.py --config-file projects/SSL/configs/prw.yaml --num-gpus 1 --eval-only MODEL.WEIGHTS model.pth
torchrun --nproc_per_node 4 train_net.py --config-file projects/SSL/configs/prw.yaml
"""

from __future__ import annotations

import argparse
import signal
import sys
from typing import Any

try:
    import person_search  # noqa: F401  (reports a missing Detectron2 in one line)
except ImportError as error:
    sys.exit(f"error: {error}")

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.engine import default_argument_parser, default_setup
from detectron2.utils import comm
from person_search import add_ssl_config
from person_search.config import get_config_file, merge_file_and_options
from person_search.data import register_custom
from person_search.data.registration import check_registered
from person_search.engine import PersonSearchCheckpointer, PersonSearchTrainer
from person_search.engine.checks import check_inference, visible_device
from person_search.engine.logging import ending_in_one_line, log_start, quiet_expected_errors, setup_logging
from person_search.engine.processes import run_processes
from person_search.engine.run_folder import check_output_dir
from person_search.engine.testing import check_expected_results, verify_expected_results
from person_search.errors import ConfigError
from person_search.modeling.layers import fold_batch_norms


def setup(args: argparse.Namespace) -> CfgNode:
    """Config of a run, with logging set up.

    Raises:
        ConfigError: a key is unknown, or a value is invalid.
    """
    args.config_file = args.config_file and get_config_file(args.config_file)
    cfg = get_cfg()
    add_ssl_config(cfg)
    merge_file_and_options(cfg, args.config_file, args.opts)
    cfg.MODEL.DEVICE = visible_device(cfg.MODEL.DEVICE)
    register_custom(cfg.DATASETS.CUSTOM)
    check_machine(cfg)
    cfg.freeze()
    setup_logging(cfg.OUTPUT_DIR)
    default_setup(cfg, args)
    log_start(cfg.OUTPUT_DIR, cfg.MODEL.DEVICE)
    return cfg


def main(args: argparse.Namespace) -> Any:
    """Runs one process of a training or an evaluation."""
    quiet_expected_errors()
    if comm.get_world_size() > 1:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # the launcher ignores Ctrl-C
    how_to_go_on = "run the same command to continue" if args.eval_only else "run with --resume to continue"
    with ending_in_one_line(how_to_go_on):
        cfg = setup(args)
        check_test_sets(cfg)
        if args.eval_only:
            return evaluate(cfg, args.resume)
        trainer = PersonSearchTrainer(cfg)
        trainer.resume_or_load(resume=args.resume)
        return trainer.train()


def check_machine(cfg: CfgNode) -> None:
    """Checks device, seed and output folder, which Detectron2's set-up does not.

    Raises:
        ConfigError: a value is invalid, or the folder cannot be written; the message names the key.
    """
    try:
        torch.device(cfg.MODEL.DEVICE)
    except RuntimeError:
        raise ConfigError(f"MODEL.DEVICE is {cfg.MODEL.DEVICE!r}, expected a device such as cpu or cuda") from None
    if cfg.SEED >= 2**32:
        raise ConfigError(f"SEED is {cfg.SEED}, expected less than 2**32, or below 0 for a random seed")
    check_output_dir(cfg.OUTPUT_DIR)


def check_test_sets(cfg: CfgNode) -> None:
    """Reads frames and queries of the test sets, so that errors in them show before training.

    Raises:
        ConfigError: a dataset is not registered, or a value of TEST.PERSON_SEARCH is invalid.
        DatasetError: a file of a dataset is missing, damaged or malformed.
    """
    for name in cfg.DATASETS.TEST:
        check_registered(name)
        PersonSearchTrainer.build_evaluator(cfg, name)  # reads the frames and the queries


def evaluate(cfg: CfgNode, resume: bool) -> dict[str, Any]:
    """Metrics of MODEL.WEIGHTS, or with `resume` of the last checkpoint in OUTPUT_DIR, on DATASETS.TEST.

    Features are stored: evaluating the same weights with another protocol does not run the network again.

    Raises:
        ConfigError: DATASETS.TEST is empty, or a value is invalid.
        CheckpointError: see `PersonSearchCheckpointer.load_for_inference`.
        ExpectationError: a metric differs from TEST.EXPECTED_RESULTS.
    """
    if not cfg.DATASETS.TEST:
        raise ConfigError("DATASETS.TEST is empty: name a registered dataset to evaluate on")
    check_inference(cfg)
    check_expected_results(cfg)
    model = PersonSearchTrainer.build_model(cfg)
    checkpointer = PersonSearchCheckpointer(model, cfg.OUTPUT_DIR)
    last = checkpointer.get_checkpoint_file() if resume else ""
    checkpointer.load_for_inference(last or cfg.MODEL.WEIGHTS)
    if cfg.TEST.FOLD_BATCH_NORM:
        fold_batch_norms(model)
    results = PersonSearchTrainer.test(cfg, model, keep_features=True)
    if comm.is_main_process():
        verify_expected_results(cfg, results)
    return results


if __name__ == "__main__":
    with ending_in_one_line("--resume goes on from there"):
        run_processes(main, default_argument_parser().parse_args())
