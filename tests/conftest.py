"""Options of every Python test: where the program is, and which tests are for `scripts/test --all` only."""

import os

import program
import pytest


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: part of a complete set, run only with RESHARD_TEST_ALL=1")
    if not config.option.collectonly and not os.access(program.BINARY, os.X_OK):
        pytest.exit(f"{program.BINARY} does not exist; build it, or set RESHARD to the program to test", returncode=2)


def pytest_collection_modifyitems(config, items):
    if os.environ.get("RESHARD_TEST_ALL") == "1":
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    items[:] = [item for item in items if item not in slow]
    config.hook.pytest_deselected(items=slow)
