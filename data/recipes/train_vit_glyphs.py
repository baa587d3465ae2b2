"""Train `bundled/vit-glyphs`: a small ViT that knows handwritten characters, and no digit.

It learns to name the characters of Omniglot (Lake, Salakhutdinov and Tenenbaum, 2015; MIT
licence), drawn in the same colours and clutter as `bundled/digits`. Give the folder with the
dataset's zips, for instance `images_background_small1.zip` and `images_background_small2.zip`:

    python data/recipes/train_vit_glyphs.py OMNIGLOT_FOLDER

Digits are read once, after training, to measure what the embeddings are worth on images the
model was not made for; `--evaluate` does only that.

Class names alone teach so small a model next to nothing in minutes. Four things help. The clutter
grows from little to full. An early layer learns to mark the ink, which works from the first steps
on. The next layer learns to tell where in the glyph each patch lies, wherever the glyph was drawn.
And the mean of the tokens learns to redraw the glyph, upright and centred, so that like shapes get
like vectors, also shapes that no class stands for. The heads that do this are thrown away.
"""

import argparse
import io
import math
import time
import zipfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset
from make_digits import GLYPH, SIZE, render, smooth_glyphs, stroke_pool, uniform
from PIL import Image as PILImage
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn
from transformers import (
    AutoImageProcessor,
    AutoModel,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

DATA = Path(__file__).resolve().parents[1]
SOURCE = 64  # side of a drawing as it is kept in memory
PATCH = 8
INK_LAYER = 2  # the hidden state from which the ink is marked
PLACE_LAYER = 3  # the hidden state from which the place in the glyph is told


def read_omniglot(folder: Path) -> tuple[Tensor, list[str], list[int]]:
    """Read every drawing of every zip in a folder, each character once.

    Parameters
    ----------
    folder : Path
        Holds zips with `images_background.../Alphabet/characterNN/NNNN_WW.png` inside.

    Returns
    -------
    drawings : Tensor, shape (n, SOURCE, SOURCE), uint8
        Ink is 255; cut to the drawing and padded to a square.
    names : list of str
        The character of each drawing, such as `"Latin/character03"`.
    writers : list of int
        Who drew it, 1 to 20.

    Raises
    ------
    FileNotFoundError
        If the folder holds no zip with drawings.
    """
    found = {}  # two zips may hold the same alphabet
    for path in sorted(folder.glob("*.zip")):
        with zipfile.ZipFile(path) as archive:
            for entry in archive.namelist():
                if entry.endswith(".png"):
                    _, alphabet, character, file = entry.split("/")
                    writer = int(Path(file).stem.split("_")[1])
                    found[f"{alphabet}/{character}", writer] = archive.read(entry)
    if not found:
        raise FileNotFoundError(
            f"no zip with Omniglot drawings in {folder}; expected e.g. images_background_small1.zip"
        )
    drawings = []
    for key in sorted(found):
        ink = PILImage.open(io.BytesIO(found[key])).convert("L").point(lambda value: 255 - value)
        left, top, right, bottom = ink.getbbox()
        side = max(right - left, bottom - top)
        square = PILImage.new("L", (side, side))
        offset = (side - (right - left)) // 2, (side - (bottom - top)) // 2
        square.paste(ink.crop((left, top, right, bottom)), offset)
        drawings.append(np.asarray(square.resize((SOURCE, SOURCE), PILImage.Resampling.BILINEAR)))
    names, writers = zip(*sorted(found), strict=True)
    return torch.tensor(np.stack(drawings)), list(names), list(writers)


def vary(drawings: Tensor, quarters: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Turn, stretch, slant and thicken drawings, and make most as coarse as the digits.

    Parameters
    ----------
    drawings : Tensor, shape (n, SOURCE, SOURCE), uint8
    quarters : Tensor, shape (n,), int64
        Quarter turns, 0 to 3.
    generator : torch.Generator

    Returns
    -------
    glyphs : Tensor, shape (n, GLYPH, GLYPH), float32
        Ink masks for `render`.
    plain : Tensor, shape (n, 8, 8), float32
        The same shape in coarse blocks, and always of one thickness.
    """
    n = len(drawings)
    turned = torch.stack([torch.rot90(d, int(q)) for d, q in zip(drawings, quarters, strict=True)])
    turned = turned[:, None].float() / 255
    affine = torch.zeros(n, 2, 3)
    affine[:, 0, 0] = uniform(1, 1.4, (n,), generator)  # narrower
    affine[:, 1, 1] = uniform(1, 1.15, (n,), generator)  # less high
    affine[:, 0, 1] = uniform(-0.25, 0.25, (n,), generator)  # slanted
    grid = F.affine_grid(affine, [n, 1, SOURCE, SOURCE], align_corners=False)
    bent = F.grid_sample(turned, grid, align_corners=False)
    plain = F.adaptive_avg_pool2d(F.max_pool2d(bent, 5, stride=1, padding=2), 8)[:, 0]
    thick = []
    for part, width in zip(bent.chunk(4), (3, 5, 5, 7), strict=True):
        thick.append(F.max_pool2d(part, width, stride=1, padding=width // 2))
    bent = torch.cat(thick)
    coarse = smooth_glyphs(F.adaptive_avg_pool2d(bent, 8)[:, 0])
    rim = GLYPH // 10
    fine = F.pad(F.adaptive_avg_pool2d(bent, GLYPH - 2 * rim), (rim,) * 4)[:, 0]
    is_coarse = torch.rand(n, generator=generator) < 0.7
    return torch.where(is_coarse[:, None, None], coarse, fine), plain


class Heads(nn.Module):
    """What is needed in training only."""

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.ink = nn.Linear(dim, PATCH * PATCH)  # from each patch token, its ink
        self.place = nn.Linear(dim, 2)  # from each patch token, where in the glyph it lies
        self.plain = nn.Linear(dim, 64)  # from the mean token, the glyph upright and centred
        self.directions = nn.Parameter(torch.randn(classes, dim) * dim**-0.5)
        self.scale = nn.Parameter(torch.tensor(10.0))

    def name(self, mean: Tensor) -> Tensor:
        """Class scores from the cosine, for this is how the vectors will be compared."""
        return self.scale * F.normalize(mean, dim=-1) @ F.normalize(self.directions, dim=-1).T


def total_loss(
    model: ViTForImageClassification,
    heads: Heads,
    images: Tensor,
    ink: Tensor,
    grid: Tensor,
    plain: Tensor,
    labels: Tensor,
) -> dict[str, Tensor]:
    """Compute the parts of the loss for one batch.

    Parameters
    ----------
    model : ViTForImageClassification
    heads : Heads
    images : Tensor, shape (n, 3, SIZE, SIZE), float32
        Colours, 0 to 1.
    ink : Tensor, shape (n, SIZE, SIZE), float32
    grid : Tensor, shape (n, SIZE, SIZE, 2), float32
    plain : Tensor, shape (n, 8, 8), float32
    labels : Tensor, shape (n,), int64

    Returns
    -------
    dict of str to Tensor
        To be added up.
    """
    with torch.autocast("cpu", torch.bfloat16):
        output = model.vit((images - 0.5) / 0.5, output_hidden_states=True)
        tokens = output.last_hidden_state
        mean = tokens.mean(dim=1)
        from_cls = model.classifier(tokens[:, 0])
        marked = heads.ink(output.hidden_states[INK_LAYER][:, 1:])
        placed = heads.place(output.hidden_states[PLACE_LAYER][:, 1:])
        redrawn = heads.plain(mean)
    patches = F.unfold(ink[:, None], PATCH, stride=PATCH).mT
    places = F.avg_pool2d(grid.permute(0, 3, 1, 2), PATCH).flatten(2).mT.clamp(-1.5, 1.5)
    return {
        "cls": F.cross_entropy(from_cls.float(), labels, label_smoothing=0.1),
        "mean": F.cross_entropy(heads.name(mean.float()), labels, label_smoothing=0.1),
        "ink": F.binary_cross_entropy_with_logits(marked.float(), patches),
        "place": F.mse_loss(placed.float(), places),
        "plain": 30 * F.mse_loss(redrawn.float(), plain.flatten(1)),
    }


@torch.inference_mode()
def embed(model: nn.Module, pixel_values: Tensor) -> dict[str, np.ndarray]:
    """Embed images with a ViT, without its classifier.

    Parameters
    ----------
    model : nn.Module
        A `ViTModel`.
    pixel_values : Tensor, shape (n, 3, SIZE, SIZE), float32
        As the image processor gives them, -1 to 1.

    Returns
    -------
    dict of str to ndarray, shape (n, dim), float32
        `"mean"` over all tokens, and `"cls"`.
    """
    model.eval()
    states = torch.cat([model(pixel_values=p).last_hidden_state for p in pixel_values.split(100)])
    return {"mean": states.mean(dim=1).numpy(), "cls": states[:, 0].numpy()}


def knn(
    train: np.ndarray, train_labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray
) -> dict[str, float]:
    """5-NN accuracy, with the cosine and with the Euclidean distance."""
    scores = {}
    for metric in ("cosine", "euclidean"):
        classifier = KNeighborsClassifier(5, metric=metric).fit(train, train_labels)
        scores[metric] = float(classifier.score(test, test_labels))
    return scores


def evaluate(folder: Path, digits: Path) -> None:
    """Print 5-NN accuracies on the bundled digits, of a saved model and of raw pixels."""
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    model = AutoModel.from_pretrained(folder, add_pooling_layer=False)
    vectors: dict[str, dict[str, np.ndarray]] = {}
    labels = {}
    for split in ("train", "test", "drifted"):
        data = Dataset.from_parquet(str(digits / f"{split}.parquet"))
        images = list(data["image"])
        labels[split] = np.array(data["label"])
        vectors[split] = embed(model, processor(images, return_tensors="pt")["pixel_values"])
        pixels = np.stack([np.asarray(image, dtype=np.float32) for image in images])
        vectors[split]["pixels"] = pixels.reshape(len(pixels), -1) / 255
    print("5-NN accuracy on bundled/digits, neighbours from train")
    for kind in ("mean", "cls", "pixels"):
        for split in ("test", "drifted"):
            scores = knn(
                vectors["train"][kind], labels["train"], vectors[split][kind], labels[split]
            )
            shown = "  ".join(f"{metric} {score:.3f}" for metric, score in scores.items())
            print(f"  {kind:7s} {split:8s} {shown}")
    # For comparison: the originals, without colour, clutter and shift. Any split will do.
    originals, names = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(names))
    near, far = order[:1000], order[1000:1400]
    scores = knn(originals[near], names[near], originals[far], names[far])
    shown = "  ".join(f"{metric} {score:.3f}" for metric, score in scores.items())
    print(f"  pixels of the 8x8 originals, another split of the same sizes: {shown}")


def train(args: argparse.Namespace) -> None:
    """Train, and save what `from_pretrained` needs."""
    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    drawings, names, writers = read_omniglot(args.omniglot)
    characters = sorted(set(names))
    # Every tenth character is kept back, to see how well shapes never seen are told apart.
    kept_back = characters[5::10]
    seen = [character for character in characters if character not in kept_back]
    classes = [
        character if turn == 0 else f"{character} turned {90 * turn}"
        for character in seen
        for turn in range(4)
    ]
    index = {character: 4 * i for i, character in enumerate(seen)}
    rows = torch.tensor([i for i, name in enumerate(names) if name in index])
    first = torch.tensor([index.get(name, -1) for name in names])
    print(f"{len(rows)} drawings, {len(seen)} characters, {len(classes)} classes")

    strokes = stroke_pool(2000, generator)
    new = torch.tensor([i for i, name in enumerate(names) if name not in index])
    new_labels = np.array([kept_back.index(names[i]) for i in new])
    is_reference = np.array([writers[i] <= 13 for i in new])
    glyphs, _ = vary(drawings[new], torch.zeros(len(new), dtype=torch.int64), generator)
    new_images = (render(glyphs, strokes, generator)[0] - 0.5) / 0.5

    config = ViTConfig(
        image_size=SIZE,
        patch_size=PATCH,
        hidden_size=args.dim,
        intermediate_size=4 * args.dim,
        num_hidden_layers=args.layers,
        num_attention_heads=4,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        id2label=dict(enumerate(classes)),
        label2id={name: i for i, name in enumerate(classes)},
    )
    # On a CPU, plain attention over 65 tokens is the quickest.
    model = ViTForImageClassification._from_config(config, attn_implementation="eager")
    heads = Heads(args.dim, len(classes))
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters")
    weights = [*model.parameters(), *heads.parameters()]
    groups = [
        {"params": [w for w in weights if w.ndim > 1], "weight_decay": 0.05},
        {"params": [w for w in weights if w.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98))
    warmup = 0.05 * args.steps
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(step / warmup, 0.5 + 0.5 * math.cos(math.pi * step / args.steps)),
    )

    begun = time.perf_counter()
    for step in range(args.steps):
        model.train()
        clutter = min(1.0, 0.2 + 1.6 * step / args.steps)
        chosen = rows[torch.randint(len(rows), (args.batch,), generator=generator)]
        quarters = torch.randint(4, (args.batch,), generator=generator)
        glyphs, plain = vary(drawings[chosen], quarters, generator)
        images, ink, grid = render(glyphs, strokes, generator, clutter=clutter)
        losses = total_loss(model, heads, images, ink, grid, plain, first[chosen] + quarters)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == args.steps - 1:
            shown = "  ".join(f"{name} {loss.item():.3f}" for name, loss in losses.items())
            if step % 500 == 0 or step == args.steps - 1:
                vectors = embed(model.vit, new_images)["mean"]
                reference, query = vectors[is_reference], vectors[~is_reference]
                scores = knn(reference, new_labels[is_reference], query, new_labels[~is_reference])
                shown += f"  5-NN on new characters {scores['cosine']:.3f}"
            minutes = (time.perf_counter() - begun) / 60
            print(f"{minutes:5.1f} min  step {step:5d}  clutter {clutter:.2f}  {shown}", flush=True)

    model.save_pretrained(args.output)
    processor = ViTImageProcessorPil(
        size={"height": SIZE, "width": SIZE}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    processor.save_pretrained(args.output)


def main() -> None:
    """Train and evaluate, or evaluate only."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("omniglot", type=Path, nargs="?", help="folder with Omniglot's zips")
    parser.add_argument("--evaluate", action="store_true", help="measure the saved model only")
    parser.add_argument("--output", type=Path, default=DATA / "vit-glyphs", help="model folder")
    parser.add_argument("--digits", type=Path, default=DATA / "digits", help="bundled digits")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch", type=int, default=64, help="images a step")
    parser.add_argument("--lr", type=float, default=1e-3, help="highest learning rate")
    parser.add_argument("--dim", type=int, default=128, help="hidden size")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if not args.evaluate:
        if args.omniglot is None:
            parser.error("give the folder with Omniglot's zips, or --evaluate")
        train(args)
    evaluate(args.output, args.digits)


if __name__ == "__main__":
    main()
