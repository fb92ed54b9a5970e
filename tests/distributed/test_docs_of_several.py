"""Every command of README and docs that starts several processes runs as it stands there."""

import pytest

from support.docs import assert_runs, commands


@pytest.mark.parametrize("command", commands(processes=True))
def test_every_command_for_several_processes_runs(command, tiny_flags):
    assert_runs(command, tiny_flags)
