"""Values of the wrong kind, given to the Python interface: told in a sentence as well."""

import json
import subprocess
import sys

import pytest

CASES = {
    "settings(guidance_scale='high')": "guidance_scale is 'high'; allowed: a number, or one per",
    "settings(temperature=[None] * 7)": "temperature is [None, None",
    "settings(guidance_layers=0)": "guidance_layers is 0; allowed: a list of 0",
    "settings(guidance_layers=['0'])": "guidance_layers is ['0']; allowed: a list of 0",
    "settings(top_p='0.9')": "top_p is '0.9'; allowed: a number in [0, 1]",
    "settings(top_k=1.5)": "top_k is 1.5; allowed: 0 (off) or a positive integer",
    "listed_seeds(1.5, 1, 1, shared=False)": "seed is 1.5; allowed: an integer in [0, 2^63)",
    "listed_seeds([1.9], 1, 1, shared=False)": "seed is [1.9]; allowed: an integer",
    "listed_seeds('7', 1, 1, shared=False)": "seed is '7'; allowed: an integer",
    "listed_prompts(5)": "prompts holds 5; allowed: a text, or a list of texts",
    "listed_negatives([None], 1)": "negative_prompt holds None; allowed: a text",
    "picture_schedule(config, aspect_ratio='16:9')": "aspect_ratio is '16:9'; allowed: a number",
    "picture_schedule(config, height='32', width=32)": "allowed: positive pixels",
    "refuse_mode('graph', torch.device('cpu'))": "engine is 'graph'; allowed: auto, plain,",
}
PROGRAM = """
import json, sys
from functools import partial

import torch

from infinity.arguments import listed_negatives, listed_prompts, listed_seeds
from infinity.config import PRESETS, SamplingDefaults
from infinity.engine import refuse_mode
from infinity.errors import UserError
from infinity.picture import picture_schedule
from infinity.sampling.settings import resolve_settings

config = PRESETS["infinity-2b"]
settings = partial(resolve_settings, SamplingDefaults(), 7, 4)
said = {}
for call in json.load(sys.stdin):
    try:
        eval(call)
        said[call] = "nothing"
    except UserError as error:
        said[call] = str(error)
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def said() -> dict[str, str]:
    """What each call says; in a process of its own, for this one checks types at every call."""
    words = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(words, input=json.dumps(list(CASES)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("call", CASES)
def test_a_value_of_the_wrong_kind_is_told_with_what_is_allowed(
    said: dict[str, str], call: str
) -> None:
    assert CASES[call] in said[call]
