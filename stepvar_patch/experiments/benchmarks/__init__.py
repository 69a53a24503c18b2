"""Official benchmarks: their prompt files, the layouts that their scorers read, and GenEval."""

from stepvar_patch.experiments.benchmarks.coco import CocoCaptions
from stepvar_patch.experiments.benchmarks.dpg import DpgBench
from stepvar_patch.experiments.benchmarks.geneval import GenEval
from stepvar_patch.experiments.benchmarks.hpsv2 import HpsV2
from stepvar_patch.experiments.benchmarks.layout import Layout
from stepvar_patch.experiments.benchmarks.mjhq import Mjhq30K

LAYOUTS: dict[str, Layout] = {
    layout.name: layout for layout in (GenEval(), DpgBench(), Mjhq30K(), HpsV2(), CocoCaptions())
}
"""Name on the command line → layout."""
