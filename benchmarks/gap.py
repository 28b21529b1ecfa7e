"""The gap in confidence between two images of a class, before and after a swap, over a training and by size of patch.

For a pair, p is the network's probability of the pair's true class. "mean p" is that of all images, "gap" the mean of
|p_a - p_b| over pairs, "KL" the mean of the two divergences at temperature 1, over all pairs; "to the less sure" is the
share of the distillation term's gradient (its length, at the default temperature of `psd.SelfDistillationLoss`) that
reaches the prediction of the image with the lower p. "correlation" is Spearman's, of a pair's gap halfway with the rise
of the mean of its two log p from there to the end. Images are test images, pairs the same for all networks; a swap
exchanges each patch with probability 1/2. The networks are trained on the replicates, with the settings, of a shipped
recipe:

    python benchmarks/gap.py photographs --seeds 1 2 3 --out FOLDER     ResNet-14 on ten classes of CIFAR-100
    python benchmarks/gap.py shapes --seeds 1 2 3 --out FOLDER          ResNet-8 on drawn images

One file a training is written to FOLDER; a training whose file is there is not repeated. The other two train nothing:

    python benchmarks/gap.py dogs --weights FILE --out FOLDER
    python benchmarks/gap.py table --out FOLDER                         all of it, as Markdown

The trainings of the record stand in results/benchmarks/gap.jsonl, a line each: "table --out results/benchmarks".

"dogs" asks EfficientNet-Lite0, trained on ImageNet, for P(dog), the sum over ImageNet's 118 breeds, of the two
photographs of `psd.data.dogs`, over 24 masks (seeds 0 to 23) for every size of patch. With the package's own folder as
FOLDER, psd/data/photographs, it writes what `psd.data.dogs.said` reads.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from timm.data import ImageNetInfo
from torch import Tensor

import psd
import psd.data.dogs
from psd import models
from psd.data import ImageData
from psd.training.config import recipe
from psd.training.evaluation import predict
from psd.training.fit import load_data, prepared

SHARES = (0.05, 0.5, 1.0)  # of a training, at which the pairs are looked at
RECIPES = {"photographs": "photographs/methods", "shapes": "compare/shapes-tuned"}
PATCHES = {"photographs": (2, 4, 8, 16), "shapes": (4, 8, 16), "dogs": (8, 16, 32, 56, 112)}
SETTINGS: dict[str, dict[str, dict[str, Any]]] = {  # what the recipe's comparison gives the two methods
    "photographs": {
        "cross_entropy": {},
        "patch_swap": {"data": {"batch_size": 12}, "optimizer": {"lr": 0.03}},
    },
    "shapes": {"cross_entropy": {}, "patch_swap": {"data": {"batch_size": 32}}},
}
DOGS = slice(151, 269)  # of ImageNet's classes
MASKS = 24


def figures(z_a: Tensor, z_b: Tensor, y: Tensor) -> dict[str, Any]:
    """Of the logits (N, C) of N pairs and their labels (N,)."""
    z_a, z_b = z_a.clone().requires_grad_(), z_b.clone().requires_grad_()
    psd.SelfDistillationLoss()(z_a, z_b, y).distillation.backward()
    assert z_a.grad is not None and z_b.grad is not None
    p_a, p_b = (z.detach().softmax(1).gather(1, y[:, None])[:, 0] for z in (z_a, z_b))
    a_is_surer = p_a >= p_b
    on_a, on_b = z_a.grad.norm(dim=1), z_b.grad.norm(dim=1)
    to_less = torch.where(a_is_surer, on_b, on_a).sum() / (on_a + on_b).sum()
    divergence = psd.SelfDistillationLoss(temperature=1.0)(z_a.detach(), z_b.detach(), y).distillation
    return {
        "p": float(torch.cat([p_a, p_b]).mean()),
        "gap": float((p_a - p_b).abs().mean()),
        "kl": float(divergence),
        "to_less_sure": float(to_less),
        "gaps": (p_a - p_b).abs(),
        "log_p": (p_a.log() + p_b.log()) / 2,
    }


def pairs_of(test: ImageData, patches: tuple[int, ...], seed: int) -> dict[str, tuple[Tensor, Tensor]]:
    """uint8 images (N, 3, H, W) twice: as they are, and with patches of each size exchanged."""
    generator = torch.Generator().manual_seed(seed)
    other = test.images[psd.same_class_partner(test.targets, generator)]
    pairs = {"whole": (test.images, other)}
    pairs |= {str(size): psd.patch_swap(test.images, other, size, generator=generator) for size in patches}
    return pairs


def look(network: torch.nn.Module, test: ImageData, pairs: dict[str, tuple[Tensor, Tensor]]) -> dict[str, Any]:
    looked: dict[str, Any] = {}
    for kind, both in pairs.items():
        z_a, z_b = (predict(network, replace(test, images=images), batch_size=200) for images in both)
        looked[kind] = figures(z_a, z_b, test.targets)
        if kind == "whole":
            looked["top1"] = float((z_a.argmax(1) == test.targets).float().mean() * 100)
    return looked


def train(on: str, method: str, seed: int, options: argparse.Namespace) -> None:
    file = options.out / f"{on}-{method}-s{seed}.json"
    if file.exists():
        return
    settings = dict(SETTINGS[on][method])
    run = {"seed": seed, "output": str(options.out / "runs"), "device": "cpu", "progress": False}
    budget = {"epochs": None, "image_passes": options.passes} if options.passes else {}
    config = recipe(RECIPES[on], method={"name": method}, run=run, budget=budget, **settings)
    _, test = load_data(config.data)
    chosen = torch.randperm(len(test.targets), generator=torch.Generator().manual_seed(0))[: options.images].sort()[0]
    test = replace(test, images=test.images[chosen], targets=test.targets[chosen])
    pairs = pairs_of(test, PATCHES[on], seed)
    courses: dict[str, Any] = {}
    with prepared(config) as loop:
        at = {max(1, round(share * loop.steps)): share for share in SHARES}
        for step in range(loop.steps):
            loop.train_step(step // loop.per_epoch)
            loop.step += 1
            if loop.step in at:
                courses[str(at[loop.step])] = look(loop.network, test, pairs)
                loop.plan.train_mode(loop.model)
        steps = loop.steps
    correlation = {
        kind: rank_correlation(courses["0.5"][kind]["gaps"], courses["1.0"][kind]["log_p"] - half["log_p"])
        for kind, half in courses["0.5"].items()
        if kind != "top1"
    }
    for course in courses.values():
        for kind in correlation:
            del course[kind]["gaps"], course[kind]["log_p"]
    versions = {"torch": torch.__version__, "revision": psd.training.records.revision()}
    found = {"on": on, "method": method, "seed": seed, "steps": steps, "config": config.to_dict(), **versions}
    found["config"]["run"]["output"] = None
    file.write_text(json.dumps({**found, "at": courses, "correlation": correlation}) + "\n")
    end = courses["1.0"]
    print(f"{file.name}: top-1 {end['top1']:.1f} %, gap {end['whole']['gap']:.3f} of whole pairs", flush=True)


def dogs(options: argparse.Namespace) -> None:
    name = "timm:tf_efficientnet_lite0"
    network = models.build(name, 1000, weights=str(options.weights)).eval()
    statistics = models.normalisation(name, str(options.weights))
    assert statistics is not None
    mean_, std = (torch.tensor(values)[:, None, None] for values in statistics)
    a, b = ((psd.data.dogs.load() / 255 - mean_) / std).split(1)

    @torch.no_grad()
    def p_dog(images: Tensor) -> list[float]:
        p: Tensor = network(images).softmax(1)[:, DOGS].sum(1)
        return [round(float(one), 4) for one in p]

    pairs = {"whole": {"p_a": p_dog(a), "p_b": p_dog(b)}}
    for size in PATCHES["dogs"]:
        masks = [torch.Generator().manual_seed(seed) for seed in range(MASKS)]
        swapped = zip(*(psd.patch_swap(a, b, size, generator=mask) for mask in masks), strict=True)
        pairs[str(size)] = {key: p_dog(torch.cat(x)) for key, x in zip(("p_a", "p_b"), swapped, strict=True)}
    with torch.no_grad():
        best, classes = network(torch.cat([a, b])).softmax(1).topk(5)
    names = ImageNetInfo()
    breeds = [[names.index_to_description(int(k)).partition(",")[0] for k in row] for row in classes]
    top = [
        [[breed, round(float(p), 4)] for breed, p in zip(*row, strict=True)] for row in zip(breeds, best, strict=True)
    ]
    said = {"on": "dogs", "network": f"{name}, trained on ImageNet", "pairs": pairs, "top": top}
    (options.out / "said.json").write_text(json.dumps(said) + "\n")


def rank_correlation(x: Tensor, y: Tensor) -> float:
    """Spearman's."""
    return float(torch.corrcoef(torch.stack([x.argsort().argsort().double(), y.argsort().argsort().double()]))[0, 1])


def spread(values: list[float], digits: int) -> str:
    """The mean, and over how far the trainings are apart."""
    return f"{mean(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def table(options: argparse.Namespace) -> None:
    files = sorted(options.out.glob("*.json*"))
    found = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    for on in RECIPES:
        runs = [one for one in found if one["on"] == on]
        if not runs:
            continue
        seeds = sorted({one["seed"] for one in runs})
        print(f"\n## {on}: means over seeds {', '.join(map(str, seeds))} (lowest to highest)\n")
        print("| method | share of the training | top-1 % | pairs | mean p | gap | KL | to the less sure |")
        print("| --- | ---: | ---: | --- | ---: | ---: | ---: | ---: |")
        for method in SETTINGS[on]:
            mine = [one["at"] for one in runs if one["method"] == method]
            for share in map(str, SHARES):
                for kind in ("whole", *map(str, PATCHES[on])):
                    rows = [one[share][kind] for one in mine]
                    kinds = "whole" if kind == "whole" else f"patches of {kind}"
                    cells = [method, f"{float(share):.0%}", spread([one[share]["top1"] for one in mine], 1), kinds]
                    cells += [spread([row[key] for row in rows], 2) for key in ("p", "gap", "kl", "to_less_sure")]
                    print(f"| {' | '.join(cells)} |")
        print("\nRank correlation of a pair's gap halfway with the rise of its mean log p from there to the end:\n")
        print("| method | pairs | correlation |\n| --- | --- | ---: |")
        for method in SETTINGS[on]:
            for kind in ("whole", *map(str, PATCHES[on])):
                values = [one["correlation"][kind] for one in runs if one["method"] == method]
                print(f"| {method} | {'whole' if kind == 'whole' else f'patches of {kind}'} | {spread(values, 2)} |")
    for one in found:
        if one["on"] == "dogs":
            print(f"\n## Two photographs of dogs, 224 x 224, EfficientNet-Lite0, {MASKS} masks\n")
            print("| pairs | mean P(dog) | mean gap |\n| --- | ---: | ---: |")
            for kind, row in one["pairs"].items():
                kinds = "whole" if kind == "whole" else f"patches of {kind}"
                gap = mean(abs(p_a - p_b) for p_a, p_b in zip(row["p_a"], row["p_b"], strict=True))
                print(f"| {kinds} | {mean(row['p_a'] + row['p_b']):.2f} | {gap:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        epilog="example: python benchmarks/gap.py shapes --seeds 0 --passes 9600 --images 200 --out FOLDER",
    )
    parser.add_argument("what", choices=[*RECIPES, "dogs", "table"])
    parser.add_argument("--out", type=Path, required=True, help="folder of the measurements")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="(default: 1 2 3)")
    parser.add_argument("--passes", type=int, help="image passes of each training, instead of the recipe's")
    parser.add_argument("--images", type=int, default=1000, help="test images to make pairs of (default: 1000)")
    parser.add_argument("--weights", type=Path, help="dogs: tf_efficientnet_lite0.safetensors")
    options = parser.parse_args()
    if options.what == "dogs" and not options.weights:
        parser.error("dogs needs --weights")
    options.out.mkdir(parents=True, exist_ok=True)
    if options.what == "table":
        table(options)
    elif options.what == "dogs":
        dogs(options)
    else:
        for seed in options.seeds:
            for method in SETTINGS[options.what]:
                train(options.what, method, seed, options)


if __name__ == "__main__":
    main()
