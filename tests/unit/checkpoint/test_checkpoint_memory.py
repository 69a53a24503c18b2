"""How much memory loading takes beyond the weights themselves."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from spec_shapes import transformer_shapes

from infinity.config import PRESETS

_LOAD = """
import re, sys, torch
from pathlib import Path
from infinity.checkpoint import load_into
from infinity.checkpoint.official import read_transformer
from infinity.config import PRESETS
from infinity.transformer.model import InfinityTransformer

def kib(field):
    return int(re.search(field + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

with torch.device("meta"):
    module = InfinityTransformer(PRESETS["infinity-125m"].transformer)
path = Path(sys.argv[1])
before = kib("VmRSS")
load_into(module, read_transformer(path), context=str(path))
assert float(module.head.bias[3]) == 3.0
print((kib("VmHWM") - before) * 1024 / path.stat().st_size)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_full_size_125m_file_loads_in_little_more_than_its_size(
    tmp_path: Path, suffix: str
) -> None:
    shapes = transformer_shapes(PRESETS["infinity-125m"].transformer)
    state = {key: torch.zeros(shape) for key, shape in shapes.items()}
    state["head.bias"] += torch.arange(32.0)
    path = tmp_path / f"infinity_125M_256x256{suffix}"
    if suffix == ".pth":
        torch.save(state, path)
    else:
        save_file(state, path)
    assert path.stat().st_size > 450e6
    out = subprocess.run(
        [sys.executable, "-c", _LOAD, str(path)], capture_output=True, text=True, check=False
    )
    assert out.returncode == 0, out.stderr
    assert 0.9 < float(out.stdout) < 1.3
