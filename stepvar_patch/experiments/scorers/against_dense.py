"""How far pictures are from the dense ones of the same prompts and seeds."""

import torch

from stepvar_patch.experiments.estimate import NO_DENSE, Bootstrap, Estimate
from stepvar_patch.experiments.metrics.lpips import Lpips
from stepvar_patch.experiments.metrics.psnr import psnr
from stepvar_patch.experiments.metrics.ssim import ssim
from stepvar_patch.experiments.scorers.base import Batch, MetricFiles


class AgainstDense:
    """PSNR, SSIM and, with its weights, LPIPS.

    Args:
        files: of LPIPS.
        device: where it runs.
    """

    def __init__(self, files: MetricFiles, device: str) -> None:
        self._missing = files.missing("lpips_backbone", "lpips_heads")
        self._lpips = None
        if not self._missing:
            self._lpips = Lpips.load(files.lpips_backbone, files.lpips_heads).to(device)
        self._psnr: list[float] = []
        self._ssim: list[float] = []
        self._distances: list[float] = []

    def add(self, batch: Batch) -> None:
        if batch.reference is None:
            return
        images, reference = (
            (x.permute(0, 3, 1, 2).float() / 255) for x in (batch.images, batch.reference)
        )
        self._psnr += psnr(images, reference).tolist()
        self._ssim += ssim(images, reference).tolist()
        if self._lpips is not None:
            with torch.inference_mode():
                self._distances += self._lpips(images * 2 - 1, reference * 2 - 1).tolist()

    def results(self, bootstrap: Bootstrap) -> dict[str, Estimate]:
        if not self._psnr:
            absent = Estimate.absent(NO_DENSE)
            return dict.fromkeys(("psnr_db", "ssim", "lpips"), absent)
        found = {"psnr_db": bootstrap.mean(self._psnr), "ssim": bootstrap.mean(self._ssim)}
        if self._missing:
            return {**found, "lpips": Estimate.absent(self._missing)}
        return {**found, "lpips": bootstrap.mean(self._distances)}
