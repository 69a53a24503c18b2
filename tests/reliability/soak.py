"""Draws thousands of small pictures in one process and watches its memory.

    OMP_NUM_THREADS=1 nice python tests/reliability/soak.py FOLDER --images 2000

The embedded model at 128², through everything that ``stepvar generate`` does but its command line.
The last line is a JSON summary; the exit code is 1 when memory grew after the first tenth.
"""

import argparse
import json
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))

from resident import resident_mib

from infinity.io.manifest import read_rows
from infinity.output import PipelineOutput
from infinity.pipeline import InfinityPipeline
from infinity.schedule import ScaleSchedule
from stepvar_patch.experiments.generate import run
from stepvar_patch.experiments.schema import GenerateConfig

ALLOWED_GROWTH_MIB = 32.0
RESOLUTION = "0.06M"


class SmallPipeline(InfinityPipeline):
    """Draws the smallest resolution class whatever is asked for."""

    def __call__(self, *args: Any, **kwargs: Any) -> PipelineOutput:
        return super().__call__(*args, **kwargs, resolution=RESOLUTION)

    def schedule(self, **kwargs: Any) -> ScaleSchedule:
        return super().schedule(**{**kwargs, "resolution": RESOLUTION})


class Watch:
    """Resident memory after every hundredth of the run."""

    def __init__(self) -> None:
        self.samples: list[tuple[int, float]] = []
        self._total = self._done = 0

    def start(self, total: int, finished: int) -> None:
        self._total, self._done = total, finished

    def loading(self) -> nullcontext[None]:
        return nullcontext()

    def advance(self, images: int) -> None:
        self._done += images
        if self._done * 100 // self._total > len(self.samples):
            self.samples.append((self._done, round(resident_mib(), 1)))


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=2000)
    given = parser.parse_args()
    repository = Path(__file__).parents[2]
    prompts = repository / "configs" / "prompts" / "heldout60.jsonl"
    count = -(-given.images // 60)
    config = GenerateConfig(
        model=str(repository / "weights"),
        prompts=str(prompts),
        output=str(given.folder),
        images_per_prompt=count,
        device="cpu",
    )
    watch, begun = Watch(), time.monotonic()
    run(config, watch, SmallPipeline.from_pretrained)
    later = [mib for done, mib in watch.samples if done >= 60 * count // 10]
    growth = max(later) - later[0]
    rows = len(read_rows(given.folder))
    summary = {
        "images": rows,
        "seconds": round(time.monotonic() - begun, 1),
        "resident_mib_after_a_tenth": later[0],
        "resident_mib_at_the_end": later[-1],
        "largest_growth_mib": round(growth, 1),
        "samples": watch.samples[::10],
    }
    print(json.dumps(summary))
    return int(growth > ALLOWED_GROWTH_MIB or rows != 60 * count)


if __name__ == "__main__":
    sys.exit(main())
