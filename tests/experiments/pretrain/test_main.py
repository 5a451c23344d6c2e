"""The command line of pretraining."""

from __future__ import annotations

import pytest

from experiments import program
from experiments.pretrain.__main__ import main
from experiments.pretrain.recipe import Pretraining, init_run_folder


def test_the_command_line_ends_with_2_and_one_line(run: Pretraining, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    init_run_folder(run)
    monkeypatch.setattr(program, "prepare_devices", lambda: None)  # this process has its devices
    monkeypatch.setattr("sys.argv", ["pretrain", "--out", str(run.out), "--steps", "7"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
