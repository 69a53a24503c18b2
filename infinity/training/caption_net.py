"""A small network that guesses the words of an image's caption, trained on the spot.

Its feature maps tell what a pixel loss hardly sees: whether a texture, an edge or a shading still
looks like its style. It stands where the original tokenizer uses a packaged perceptual network
(spec bsq-vae §7), which is neither packaged for offline use nor trained on drawings.
"""

import re
import time
from collections import Counter

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from infinity.training.source import ImageSource

WIDTHS = (32, 64, 96, 128, 192)
BATCH = 128
VOCABULARY_BATCHES = 40
LEAST_OCCURRENCES = 8
LEARNING_RATE = 2e-3
_WORD = re.compile(r"[a-z0-9]+")


class CaptionNet(nn.Module):
    """Five halving stages of two 3×3 convolutions, then one logit per word of the vocabulary.

    Args:
        words: of the vocabulary.
    """

    def __init__(self, words: int) -> None:
        super().__init__()
        self.stages = nn.ModuleList()
        width = 3
        for out in WIDTHS:
            self.stages.append(
                nn.Sequential(
                    nn.Conv2d(width, out, 3, stride=2, padding=1, bias=False),
                    nn.BatchNorm2d(out),
                    nn.ReLU(),
                    nn.Conv2d(out, out, 3, padding=1, bias=False),
                    nn.BatchNorm2d(out),
                    nn.ReLU(),
                )
            )
            width = out
        self.head = nn.Linear(width, words)

    def features(self, image: Float[Tensor, "b 3 H W"]) -> list[Float[Tensor, "b _ _ _"]]:
        """The maps of every stage, finest first."""
        maps, x = [], image
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps

    def forward(self, image: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b words"]:
        return self.head(self.features(image)[-1].mean(dim=(2, 3)))


def perceptual_distance(
    net: CaptionNet, decoded: Float[Tensor, "b 3 H W"], image: Float[Tensor, "b 3 H W"]
) -> Float[Tensor, ""]:
    """Squared difference of the feature vectors, each scaled to length 1; mean over positions and
    stages.

    Source: the distance of Zhang et al. 2018 (arXiv 1801.03924, eq. 1) with all channel weights 1.
    """
    with torch.no_grad():
        wanted = net.features(image)
    pairs = zip(net.features(decoded), wanted, strict=True)
    parts = [
        (F.normalize(a.float(), dim=1) - F.normalize(b.float(), dim=1)).square().sum(1).mean()
        for a, b in pairs
    ]
    return torch.stack(parts).mean()


def train_caption_net(
    source: ImageSource, device: torch.device, seconds: float, max_steps: int
) -> tuple[CaptionNet, dict[str, float]]:
    """A frozen :class:`CaptionNet` trained for so long, and how it went.

    Args:
        source: of images and captions.
        device: where the images are.
        seconds: training time, at least one step.
        max_steps: at most so many steps.
    """
    counts = Counter(
        word
        for _ in range(VOCABULARY_BATCHES)
        for caption in source.batch(BATCH)[1]
        for word in set(_WORD.findall(caption))
    )
    vocabulary = {
        word: i
        for i, word in enumerate(sorted(w for w, n in counts.items() if n >= LEAST_OCCURRENCES))
    }
    net = CaptionNet(len(vocabulary)).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(net.parameters(), lr=LEARNING_RATE, weight_decay=0.05)
    begun, steps, progress = time.monotonic(), 0, 0.0
    while progress < 1:
        image, captions = source.batch(BATCH)
        target = _word_table(captions, vocabulary).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits = net(image.contiguous(memory_format=torch.channels_last))
        loss = F.binary_cross_entropy_with_logits(logits.float(), target) * len(vocabulary)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        steps += 1
        progress = max(steps / max_steps, (time.monotonic() - begun) / seconds)
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * max(0.02, 1 - progress)
    record = {
        "words": float(len(vocabulary)),
        "steps": float(steps),
        "seconds": time.monotonic() - begun,
        "nats_per_image": float(loss.detach()),
    }
    return net.eval().requires_grad_(False), record


def _word_table(captions: list[str], vocabulary: dict[str, int]) -> Float[Tensor, "b words"]:
    table = torch.zeros(len(captions), len(vocabulary))
    for row, caption in enumerate(captions):
        for word in _WORD.findall(caption):
            if word in vocabulary:
                table[row, vocabulary[word]] = 1.0
    return table
