"""Instances in a picture by a Mask2Former in a local folder, and their colours by CLIP."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from infinity.errors import UserError
from stepvar_patch.experiments.benchmarks.geneval_rules import Detection
from stepvar_patch.experiments.metrics.clip import Clip, from_folder

CLASSES = (
    *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat"),
    *("traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat"),
    *("dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "backpack"),
    *("umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball"),
    *("kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket"),
    *("bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple"),
    *("sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair"),
    *("couch", "potted plant", "bed", "dining table", "toilet", "tv", "laptop"),
    *("computer mouse", "tv remote", "computer keyboard", "cell phone", "microwave", "oven"),
    *("toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear"),
    *("hair drier", "toothbrush"),
)
"""The benchmark's names of COCO's 80 classes, in COCO's order."""

COLOURS = (
    *("red", "orange", "yellow", "green", "blue"),
    *("purple", "pink", "brown", "black", "white"),
)
_TEMPLATES = (
    "a photo of a {c} {name}",
    "a photo of a {c}-colored {name}",
    "a photo of a {c} object",
)
_GREY = 0x99
"""What surrounds an object when its colour is asked."""

_SHORT_PX, _LONG_PX = 800, 1333
_MOST_INSTANCES = 100
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Detector:
    """Mask2Former trained on COCO instances.

    Args:
        folder: transformers layout, such as mask2former-swin-small-coco-instance.
        device: where it runs.

    Raises:
        UserError: the folder holds something else, or scipy is not installed.

    Source: Cheng et al. 2022, sec. 3 and appendix (instance inference: class probability × mean
    mask probability, the 100 best pairs of query and class).
    """

    def __init__(self, folder: str | Path, device: str) -> None:
        if find_spec("scipy") is None:
            raise UserError("Mask2Former needs scipy; install it with: pip install 'stepvar[eval]'")
        from transformers import Mask2FormerForUniversalSegmentation

        model = from_folder(Mask2FormerForUniversalSegmentation, folder, "a Mask2Former")
        if model.config.num_labels != len(CLASSES):
            raise UserError(
                f"{folder}: a detector of {model.config.num_labels} classes; GenEval needs COCO's "
                f"{len(CLASSES)}"
            )
        self._model: Any = model.to(device).eval().requires_grad_(False)

    @torch.inference_mode()
    def __call__(self, image: UInt8[Tensor, "h w 3"]) -> list[Detection]:
        """All instances of a picture, sure or not.

        Args:
            image: sRGB, on the detector's device.
        """
        height, width = image.shape[:2]
        scale = min(_SHORT_PX / min(height, width), _LONG_PX / max(height, width))
        size = (round(height * scale), round(width * scale))
        x = image.permute(2, 0, 1)[None].float() / 255
        x = F.interpolate(x, size=size, mode="bilinear", antialias=True)
        mean, std = (x.new_tensor(values).view(1, 3, 1, 1) for values in (_MEAN, _STD))
        out = self._model(pixel_values=(x - mean) / std)
        return instances(out.class_queries_logits[0], out.masks_queries_logits[0], (height, width))


def instances(
    classes: Float[Tensor, "q c+1"], masks: Float[Tensor, "q mh mw"], size: tuple[int, int]
) -> list[Detection]:
    """Detections from a Mask2Former's outputs.

    Args:
        classes: logits per query, the last for "no object".
        masks: logits per query.
        size: height and width of the picture.
    """
    shares = classes.softmax(-1)[:, :-1]
    number = shares.shape[1]
    scores, flat = shares.flatten().topk(min(_MOST_INSTANCES, shares.numel()))
    logits = F.interpolate(masks[None], size=size, mode="bilinear")[0]
    found = []
    for score, index in zip(scores.tolist(), flat.tolist(), strict=True):
        query, label = divmod(index, number)
        mask = logits[query] > 0
        box = _box(mask)
        if box is not None:
            sure = score * float(logits[query][mask].sigmoid().mean())
            found.append(Detection(name=CLASSES[label], score=sure, box=box, mask=mask))
    return found


class ColourJudge:
    """The colour of objects: CLIP's choice among ten names, on the object cut out of grey.

    Args:
        clip: the model; the benchmark uses ViT-L/14.

    Source: Ghosh et al. 2023, sec. 3; background, templates and names of the official program.
    """

    def __init__(self, clip: Clip) -> None:
        self._clip = clip
        self._names: dict[str, Float[Tensor, "10 e"]] = {}

    def __call__(self, image: UInt8[Tensor, "h w 3"], objects: Sequence[Detection]) -> list[str]:
        """A colour per object.

        Args:
            image: sRGB, on CLIP's device.
            objects: of one class.
        """
        names, crops = self._directions(objects[0].name), []
        for one in objects:
            seen = image
            if one.mask is not None:
                seen = torch.where(one.mask[..., None], image, image.new_tensor(_GREY))
            left, top, right, bottom = (round(edge) for edge in one.box)
            crops.append(seen[top : max(bottom, top + 1), left : max(right, left + 1)])
        found = torch.cat([self._clip.images(crop[None]) for crop in crops]) @ names.T
        return [COLOURS[index] for index in found.argmax(1).tolist()]

    def _directions(self, name: str) -> Float[Tensor, "10 e"]:
        if name not in self._names:
            texts = [t.format(c=c, name=name) for c in COLOURS for t in _TEMPLATES]
            each = self._clip.texts(texts).view(len(COLOURS), len(_TEMPLATES), -1)
            self._names[name] = F.normalize(each.mean(1), dim=-1)
        return self._names[name]


def _box(mask: Bool[Tensor, "h w"]) -> tuple[float, float, float, float] | None:
    rows, columns = (mask.any(axis).nonzero()[:, 0].tolist() for axis in (1, 0))
    if not rows:
        return None
    return (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
