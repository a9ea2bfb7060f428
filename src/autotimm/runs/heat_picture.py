"""The picture of an explanation: the photograph, the heat over it, and a legend with the figures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

from autotimm.runs.draw import plain_letters

__all__ = ["heat_picture", "strength"]

_SIDE = 448  # pixels of the longer side of a panel
_MARGIN, _LETTERS = 12, 15
_PAPER, _INK, _MARK = (255, 255, 255), (30, 30, 30), (0, 230, 255)
_TOP = 99.0  # percentile of the values that is the hottest: single pixels must not make the rest cold
_SMOOTH = 64  # of noisy maps a share of the longer side, as the standard deviation of a blur
_UNSEEN = 0.35  # how bright the parts are that the network never saw


def strength(values: NDArray[np.float32], method: str) -> NDArray[np.float32]:
    """How hot each pixel is shown, in [0, 1]: what speaks for the score, as a share of the largest value.

    Args:
        values: The map (h, w); NaN where the network saw nothing.
        method: The method. Neighboring values of integrated gradients jump, so they are blurred, and the largest is
            the 99th percentile. Those of attention
            rollout have no zero, so the smallest is taken for it.
    """
    least = float(np.nanmin(values)) if method == "attention-rollout" else 0.0
    positive = np.clip(np.nan_to_num(values - least), 0, None).astype(np.float32)
    if method == "integrated-gradients":
        positive = _blurred(positive, max(positive.shape) / _SMOOTH)
    top = float(positive.max())
    if method == "integrated-gradients":
        top = float(np.percentile(positive[~np.isnan(values)], _TOP)) or top
    return np.asarray(np.clip(positive / top, 0, 1), np.float32) if top > 0 else positive


def _blurred(values: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    from scipy.ndimage import gaussian_filter  # late: only noisy maps need it

    blurred: NDArray[np.float32] = gaussian_filter(values, sigma)
    return blurred


def heat_picture(
    photo: Tensor,
    values: NDArray[np.float32],
    method: str,
    lines: Sequence[str],
    *,
    box: tuple[float, float, float, float] | None = None,
    region: Tensor | None = None,
) -> Image.Image:
    """Draw an explanation.

    Args:
        photo: RGB ``uint8`` (3, H, W).
        values: The map (h, w), of any size, over the whole photograph; NaN where the network saw nothing.
        method: The method that made it, see :func:`strength`.
        lines: The text below.
        box: x1, y1, x2, y2 of the explained object, in pixels of the photograph.
        region: The explained region, bool (H, W).
    """
    from matplotlib import colormaps  # late: it comes with captum

    height, width = photo.shape[-2:]
    scale = _SIDE / max(height, width)
    size = max(1, round(height * scale)), max(1, round(width * scale))
    plain = _resized(photo.as_subclass(Tensor)[None].float(), size)[0].permute(1, 2, 0).clamp(0, 255).numpy()
    unseen = _resized(torch.from_numpy(np.isnan(values).astype(np.float32))[None, None], size)[0, 0].numpy() > 0.5
    hot = _resized(torch.from_numpy(strength(values, method))[None, None], size)[0, 0].clamp(0, 1).numpy()
    colors = 255 * colormaps["turbo"](hot)[..., :3]
    gray = np.repeat(plain.mean(axis=2, keepdims=True), 3, axis=2)
    cover = (0.15 + 0.6 * hot)[..., None]  # cold parts stay a photograph
    heat = np.where(unseen[..., None], _UNSEEN * gray, (1 - cover) * gray + cover * colors)
    panels = [Image.fromarray(np.rint(panel).astype(np.uint8)) for panel in (plain, heat)]
    for panel in panels if box is not None else ():
        corners = [edge * scale for edge in box or ()]
        ImageDraw.Draw(panel).rectangle(corners, outline=_MARK, width=2)
    if region is not None:
        inside = F.interpolate(region[None, None].float(), size, mode="nearest-exact")
        edge = (inside > 0) & (F.max_pool2d(1 - inside, 5, stride=1, padding=2) > 0)
        for panel in panels:
            panel.paste(_MARK, mask=Image.fromarray(edge[0, 0].to(torch.uint8).numpy() * 255))
    cold = "least" if method == "attention-rollout" else "none, or against it"
    return _page(panels, lines, cold, any_unseen=bool(unseen.any()))


def _resized(layers: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(layers, size, mode="bilinear", align_corners=False, antialias=True)


def _page(panels: Sequence[Image.Image], lines: Sequence[str], cold: str, *, any_unseen: bool) -> Image.Image:
    """Both panels side by side, and below them the text and the scale of colors."""
    from matplotlib import colormaps

    font = ImageFont.load_default(_LETTERS)
    wide, high = panels[0].size
    text = [plain_letters(line) for line in lines]
    text += ["dark: cut off, the network never saw it"] if any_unseen else []
    pen = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    needed = max(round(pen.textlength(line, font=font)) for line in text)
    step = round(1.45 * _LETTERS)
    page = Image.new(
        "RGB",
        (max(2 * wide + 3 * _MARGIN, needed + 2 * _MARGIN), high + 3 * _MARGIN + step * (len(text) + 1)),
        _PAPER,
    )
    page.paste(panels[0], (_MARGIN, _MARGIN))
    page.paste(panels[1], (wide + 2 * _MARGIN, _MARGIN))
    pen, top = ImageDraw.Draw(page), high + 2 * _MARGIN
    for at, line in enumerate(text):
        pen.text((_MARGIN, top + step * at), line, _INK, font)
    cold = f"part in the score: {cold}"
    x, y = _MARGIN, top + step * len(text)
    pen.text((x, y), cold, _INK, font)
    x += round(pen.textlength(cold, font=font)) + 8
    ramp = 255 * colormaps["turbo"](np.linspace(0, 1, 120))[:, :3]
    page.paste(Image.fromarray(np.repeat(np.rint(ramp).astype(np.uint8)[None], _LETTERS, axis=0)), (x, y + 2))
    pen.text((x + 128, y), "most", _INK, font)
    return page
