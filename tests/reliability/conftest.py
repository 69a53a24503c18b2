"""The reliability suites drive the same command line, models and folders as the e2e tests."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))

from fixtures import model, work

__all__ = ["model", "work"]
