"""Draw `bundled/digits`: scikit-learn's handwritten digits, coloured, moved and cluttered.

The originals are the 8x8 digits of `sklearn.datasets.load_digits`, so nothing is downloaded.
Each becomes a 64x64 RGB image: ink and paper of random colours, the digit shifted, scaled and
slightly rotated, thin strokes drawn beneath it. Three Parquet files come out:

- `train` and `test`, from disjoint originals;
- `drifted`, the images of `test` row by row, but blurred, dark and noisy.

Run it from anywhere: `python data/recipes/make_digits.py`. It takes a few seconds.
`train_vit_glyphs.py` imports `render` from here, so the model learns on the same clutter.
"""

import argparse
import io
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PILImage
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

SIZE = 64  # side of a rendered image
GLYPH = 40  # side of a glyph's ink mask, about the size at which it is drawn
# How bright red, green and blue look (ITU-R BT.601).
LUMINANCE = torch.tensor([0.299, 0.587, 0.114])


def uniform(low: float, high: float, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Draw numbers between `low` and `high`."""
    return low + (high - low) * torch.rand(shape, generator=generator)


def smooth_glyphs(blocks: Tensor) -> Tensor:
    """Turn coarse 8x8 ink counts into smooth ink masks with firm edges.

    Parameters
    ----------
    blocks : Tensor, shape (n, 8, 8), float32
        Share of each block that is ink, 0 to 1.

    Returns
    -------
    Tensor, shape (n, GLYPH, GLYPH), float32
        Ink masks, 0 (paper) to 1 (ink), with a rim of paper a tenth of the side wide.
    """
    framed = F.pad(blocks[:, None], (1, 1, 1, 1))  # a rim of paper, so that no stroke ends flat
    fine = F.interpolate(framed, size=GLYPH, mode="bicubic", align_corners=False)[:, 0]
    return ((fine - 0.5) * 4 + 0.5).clamp(0, 1)


def stroke_pool(n: int, generator: torch.Generator) -> Tensor:
    """Draw `n` thin curved strokes, to be used as clutter.

    Returns
    -------
    Tensor, shape (n, SIZE, SIZE), float32
        Masks, 0 (nothing) to 1 (stroke).
    """
    start, bend, end = uniform(-0.1, 1.1, (3, n, 1, 2), generator)
    bend = 0.6 * bend + 0.2 * (start + end)  # nearer the straight line: no hairpins
    t = torch.linspace(0, 1, 24)[None, :, None]
    points = SIZE * ((1 - t) ** 2 * start + 2 * t * (1 - t) * bend + t**2 * end)
    axis = torch.arange(SIZE) + 0.5
    pixels = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), dim=-1).reshape(1, -1, 2)
    half_width = uniform(0.5, 1.2, (n, 1), generator)
    strokes = []
    for curve, half in zip(points.split(100), half_width.split(100), strict=True):
        # Distance to each piece of the curve: project the pixel on the piece, stay within its ends.
        nearest = torch.full((len(curve), SIZE * SIZE), torch.inf)
        for a, b in zip(curve[:, :-1].unbind(1), curve[:, 1:].unbind(1), strict=True):
            a, piece = a[:, None], (b - a)[:, None]
            along = ((pixels - a) * piece).sum(-1) / (piece**2).sum(-1).clamp(min=1e-6)
            foot = a + along.clamp(0, 1)[..., None] * piece
            nearest = torch.minimum(nearest, (pixels - foot).norm(dim=-1))
        strokes.append((half + 0.5 - nearest).clamp(0, 1).reshape(-1, SIZE, SIZE))
    return torch.cat(strokes)


def tint(luminance: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Give colours of random hue to the luminances asked for.

    Parameters
    ----------
    luminance : Tensor, shape (n,), float32
    strength : float
        0 gives greys.
    generator : torch.Generator

    Returns
    -------
    Tensor, shape (n, 3, 1, 1), float32
    """
    hue = uniform(-1, 1, (len(luminance), 3), generator)
    hue = hue - (hue @ LUMINANCE)[:, None]  # changes the colour, not how bright it looks
    return (luminance[:, None] + 0.4 * strength * hue).clamp(0, 1)[..., None, None]


def render(
    glyphs: Tensor, strokes: Tensor, generator: torch.Generator, *, clutter: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw glyphs in colour, moved about, over a few stray strokes.

    Ink and paper differ by at least 0.4 in luminance, the strokes lie between the two, nearer the
    paper, and under the glyph: a person reads it at a glance.

    Parameters
    ----------
    glyphs : Tensor, shape (n, GLYPH, GLYPH), float32
        Ink masks, 0 to 1.
    strokes : Tensor, shape (m, SIZE, SIZE), float32
        A pool from `stroke_pool`; each image takes up to four.
    generator : torch.Generator
        Source of everything random here.
    clutter : float
        1 is the bundled data; 0 is black on white, centred, without strokes.

    Returns
    -------
    images : Tensor, shape (n, 3, SIZE, SIZE), float32
        Colours, 0 to 1.
    ink : Tensor, shape (n, SIZE, SIZE), float32
        Where the glyph's ink lies.
    grid : Tensor, shape (n, SIZE, SIZE, 2), float32
        For each pixel, the place (x, y) in the glyph's mask it shows; the mask's edges are -1, 1.
    """
    n = len(glyphs)
    half = 0.8 + clutter * uniform(-0.15, 0.15, (n,), generator)  # of the mask; the image's is 1
    angle = clutter * torch.deg2rad(uniform(-15, 15, (n,), generator))
    room = 1 - 0.85 * half  # the ink stays inside, its rim of paper may not
    shift = clutter * room[:, None] * uniform(-1, 1, (n, 2), generator)
    cos, sin = torch.cos(angle) / half, torch.sin(angle) / half
    turn = torch.stack([torch.stack([cos, sin], 1), torch.stack([-sin, cos], 1)], 1)
    affine = torch.cat([turn, -turn @ shift[..., None]], dim=2)  # from the image to the glyph
    grid = F.affine_grid(affine, [n, 1, SIZE, SIZE], align_corners=False)
    ink = F.grid_sample(glyphs[:, None], grid, align_corners=False)

    dark = clutter * uniform(0.05, 0.35, (n,), generator)
    light = 1 - clutter * (1 - uniform(0, 1, (n,), generator)) * (0.55 - dark)
    swap = torch.rand(n, generator=generator) < clutter / 2
    ink_level, paper_level = torch.where(swap, light, dark), torch.where(swap, dark, light)
    images = tint(paper_level, clutter, generator).expand(n, 3, SIZE, SIZE)
    for wanted in (1.0, 1.0, 0.7, 0.4):
        stroke = strokes[torch.randint(len(strokes), (n,), generator=generator)][:, None]
        drawn = (torch.rand(n, generator=generator) < wanted * clutter).float()[:, None, None, None]
        between = uniform(0.2, 0.5, (n,), generator)
        colour = tint(paper_level + between * (ink_level - paper_level), clutter, generator)
        images = torch.lerp(images, colour, stroke * drawn)
    return torch.lerp(images, tint(ink_level, clutter, generator), ink), ink[:, 0], grid


def drift(images: Tensor, generator: torch.Generator) -> Tensor:
    """Blur, darken and add noise, as a worn camera in a dim room would.

    Parameters
    ----------
    images : Tensor, shape (n, 3, height, width), float32
    generator : torch.Generator

    Returns
    -------
    Tensor, shape (n, 3, height, width), float32
    """
    reach = torch.arange(-4, 5).float()
    kernel = torch.exp(-(reach**2) / (2 * 1.3**2))
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, -1)
    images = F.conv2d(F.pad(images, (4, 4, 0, 0), mode="replicate"), kernel, groups=3)
    images = F.conv2d(F.pad(images, (0, 0, 4, 4), mode="replicate"), kernel.mT, groups=3)
    images = images * uniform(0.35, 0.55, (len(images), 1, 1, 1), generator)
    # The same grey noise in all three channels: it costs a third of the bytes as PNG.
    noise = torch.randn((len(images), 1, *images.shape[2:]), generator=generator)
    return (images + 0.03 * noise).clamp(0, 1)


def to_png(image: Tensor) -> bytes:
    """Encode one image, shape (3, height, width), 0 to 1, as PNG."""
    pixels = (image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    PILImage.fromarray(pixels).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def write_split(path: Path, images: Tensor, labels: np.ndarray) -> None:
    """Write images and their labels as one Parquet file that `datasets` reads back."""
    features = Features({"image": Image(), "label": ClassLabel(names=[str(d) for d in range(10)])})
    rows = {
        "image": [{"bytes": to_png(image), "path": None} for image in images],
        "label": labels.tolist(),
    }
    Dataset.from_dict(rows, features=features).to_parquet(path)
    print(f"{path.name}: {len(labels)} rows, {path.stat().st_size / 1e6:.2f} MB")


def main() -> None:
    """Write the three splits."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path(__file__).resolve().parents[1] / "digits",
        help="folder for the Parquet files (default: data/digits beside this recipe)",
    )
    parser.add_argument("--train", type=int, default=1000, help="rows in train (default 1000)")
    parser.add_argument("--test", type=int, default=400, help="rows in test and drifted (400)")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything random (0)")
    args = parser.parse_args()

    originals, labels = load_digits(return_X_y=True)
    blocks = torch.tensor(originals, dtype=torch.float32).reshape(-1, 8, 8) / 16
    train, test = train_test_split(
        np.arange(len(labels)),
        train_size=args.train,
        test_size=args.test,
        stratify=labels,
        random_state=args.seed,
    )
    generator = torch.Generator().manual_seed(args.seed)
    strokes = stroke_pool(500, generator)
    train_images, *_ = render(smooth_glyphs(blocks[train]), strokes, generator)
    test_images, *_ = render(smooth_glyphs(blocks[test]), strokes, generator)

    args.output.mkdir(parents=True, exist_ok=True)
    write_split(args.output / "train.parquet", train_images, labels[train])
    write_split(args.output / "test.parquet", test_images, labels[test])
    write_split(args.output / "drifted.parquet", drift(test_images, generator), labels[test])


if __name__ == "__main__":
    main()
