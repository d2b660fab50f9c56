"""Ctrl-C and SIGTERM end a training after its iteration, with a checkpoint that gives the unbroken run."""

from __future__ import annotations

import errno
import os
import signal

import pytest
import torch
from detectron2.engine.hooks import HookBase
from person_search.engine import PersonSearchTrainer
from person_search.engine.logging import ending_in_one_line
from person_search.errors import ConfigError, Interrupted


class Signal(HookBase):
    """Sends signals to this process before iteration 2."""

    def __init__(self, number, times=1):
        self.number, self.times = number, times

    def before_step(self):
        if self.trainer.iter == 2:
            for _ in range(self.times):
                os.kill(os.getpid(), self.number)


def start(cfg, *hooks, resume=False):
    os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
    trainer = PersonSearchTrainer(cfg)
    trainer.resume_or_load(resume)
    trainer.register_hooks(list(hooks))
    return trainer


@pytest.fixture
def short(cfg):
    """Five iterations, in a process that heeds Ctrl-C (the tests may run in the background, where it is ignored)."""
    cfg.merge_from_list(["DATASETS.TEST", (), "SOLVER.MAX_ITER", 5, "SOLVER.CHECKPOINT_PERIOD", 100])
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield cfg
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_checkpoint_that_gives_the_unbroken_run(short, tmp_path, number):
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    short.OUTPUT_DIR = str(tmp_path / "stopped")
    with pytest.raises(Interrupted, match="stopped after 3 of 5 iterations, checkpoint saved: .* --resume"):
        start(short, Signal(number)).train()
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert (tmp_path / "stopped" / "last_checkpoint").read_text() == "model_0000002.pth"
    resumed = start(short, resume=True)
    assert resumed.start_iter == 3
    resumed.train()
    short.OUTPUT_DIR = str(tmp_path / "unbroken")
    unbroken = start(short)
    unbroken.train()
    left, right = (t.person_search_model.state_dict() for t in (resumed, unbroken))
    assert all(torch.equal(left[key], right[key]) for key in right)


def test_a_second_signal_interrupts_at_once(short):
    with pytest.raises(KeyboardInterrupt):
        start(short, Signal(signal.SIGINT, times=2)).train()
    assert not os.path.exists(os.path.join(short.OUTPUT_DIR, "last_checkpoint"))


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (Interrupted("stopped after 3"), 130, "stopped after 3"),
        (KeyboardInterrupt(), 130, "interrupted; earlier checkpoints are intact: go on"),
        (ConfigError("SEED is wrong"), 2, "SEED is wrong"),
        (OSError(errno.ENOSPC, "No space left on device", "/out/log.txt"), 2, "/out/log.txt cannot be written"),
    ],
)
def test_programs_end_in_one_line(error, status, words, caplog, capsys):
    with pytest.raises(SystemExit) as end, ending_in_one_line("go on"):
        raise error
    assert end.value.code == status
    assert words in caplog.text + capsys.readouterr().err


def test_what_nobody_expected_goes_through():
    with pytest.raises(PermissionError), ending_in_one_line("go on"):
        raise PermissionError(errno.EACCES, "Permission denied", "/out")
