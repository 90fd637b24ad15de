"""The package knows its version, from Python and from the command line."""

import re
import subprocess
import sys

import interleaf


def test_the_package_has_a_version() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", interleaf.__version__)


def test_the_command_prints_it() -> None:
    done = subprocess.run([sys.executable, "-m", "interleaf", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"interleaf {interleaf.__version__}\n"
