"""A user whom the system knows by number alone."""

from __future__ import annotations

import getpass
import os

import pytest
from person_search import name_user


@pytest.mark.parametrize("error", [KeyError("getpwuid(): uid not found: 54321"), OSError("No username set")])
def test_a_nameless_user_gets_a_name(monkeypatch, error):
    def nobody():
        raise error

    for variable in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("LOGNAME", "")
    with monkeypatch.context() as patch:
        patch.setattr(getpass, "getuser", nobody)
        name_user()
    assert getpass.getuser() == os.environ["LOGNAME"] == f"user{os.getuid()}"


def test_a_name_is_kept(monkeypatch):
    monkeypatch.setenv("LOGNAME", "ada")
    name_user()
    assert os.environ["LOGNAME"] == "ada"
