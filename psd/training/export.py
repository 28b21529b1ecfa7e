"""Trained networks as files that need no psd: ONNX, torch.export, safetensors."""

from __future__ import annotations

import copy
import json
import os
import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from psd.checks import Refused
from psd.files import replacing
from psd.training.checkpoints import load_model, save_model

Format = Literal["safetensors", "onnx", "torch_export"]
ENDINGS = {"safetensors": ".safetensors", "onnx": ".onnx", "torch_export": ".pt2"}
NEEDS = {"onnx": ("onnx", "onnxscript")}
ONNX_TORCH = "2.7"  # torch.__version__ compares as versions do
EXAMPLE = 2  # images of a batch that is traced: of one, torch would take the number for a constant


class FromPixels(nn.Module):
    """uint8 images (N, 3, H, W) -> what the network makes of them, normalised."""

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.model = model
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean)[None, :, None, None])
        self.register_buffer("std", torch.tensor(std)[None, :, None, None])

    def forward(self, images: Tensor) -> Any:
        return self.model((images.float() / 255 - self.mean) / self.std)


def export(
    run_or_model: str | os.PathLike[str] | nn.Module,
    path: str | os.PathLike[str],
    format: Format = "safetensors",
    *,
    pixels: bool = True,
    size: int | None = None,
    classes: Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a trained network into a file that other programs read.

    "onnx" and "torch_export" hold the network itself, for batches of any number of images: "images" -> "logits", (N, C)
    or (N, C, H, W). "safetensors" holds its weights, under the network's own names. Every file says, as text: input
    ("uint8 pixels" or "normalised float32"), size, classes, mean, std and name. In ONNX these are metadata_props, in
    torch.export the extra file metadata.json, in safetensors the header.

    Args:
        run_or_model: the folder of a finished run, or a network.
        path: of the file to write.
        pixels: the graph takes uint8 images (N, 3, H, W) and normalises them itself; False: float32 ones that are
            normalised. Of no meaning for safetensors.
        size: side of the images in pixels; a run's own if None.
        classes: their names; a run's own if None.
        mean, std: of pixels / 255, one number per channel; a run's own if None.
        overwrite: let the file take the place of another.

    Returns:
        the path.

    Raises:
        ValueError: an unknown format, a package that is missing, ONNX with PyTorch below 2.7, a file that is
            there, a network that cannot be traced, or what is not known and has to be given.

    >>> import psd
    >>> model = psd.models.build("resnet8", 2)
    >>> path = export(model, "net.pt2", "torch_export", size=32, mean=[0.5] * 3, std=[0.25] * 3)  # doctest: +SKIP
    >>> torch.export.load(path).module()(torch.zeros(5, 3, 32, 32, dtype=torch.uint8)).shape      # doctest: +SKIP
    torch.Size([5, 2])
    """
    path = Path(path)
    if format not in get_args(Format):
        raise Refused(f"format must be one of {', '.join(get_args(Format))}, got {format!r}")
    if path.exists() and not overwrite:
        raise Refused(f"{path} is there; give another path, or overwrite=True (--overwrite)")
    model, known = _opened(run_or_model)
    missing = [package for package in NEEDS.get(format, ()) if find_spec(package) is None]
    if missing:
        raise Refused(f'format {format} needs {missing[0]}, which is missing: pip install ".[export]"')
    if format == "onnx" and torch.__version__ < ONNX_TORCH:
        raise Refused(
            f"format onnx needs PyTorch {ONNX_TORCH} or newer, here is {torch.__version__}, whose own exporter fails "
            "on these networks; torch_export and safetensors are written by it too"
        )
    given = {"size": size, "class_names": classes, "mean": mean, "std": std}
    known = {**known, **{key: value for key, value in given.items() if value is not None}}
    graph = format != "safetensors"
    for key in ("size", *(("mean", "std") if pixels else ())) if graph else ():
        if known.get(key) is None:
            instead = ", or pixels=False for a network of normalised images" if key != "size" else ""
            raise Refused(f"{key} is not known of {_described(run_or_model)}: give {key}=...{instead}")
    metadata = {
        "input": "uint8 pixels" if pixels and graph else "normalised float32",
        **{key: known[key] if isinstance(known[key], str) else json.dumps(known[key]) for key in sorted(known)},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    if not graph:
        save_model(path, model, metadata)
        return path
    network = copy.deepcopy(model).cpu().float().eval().to(memory_format=torch.contiguous_format)
    side = int(known["size"])
    example = (
        torch.randint(256, (EXAMPLE, 3, side, side), dtype=torch.uint8)
        if pixels
        else torch.randn(EXAMPLE, 3, side, side)
    )
    if pixels:
        network = FromPixels(network, known["mean"], known["std"]).eval()
    else:
        example = example.float() / 255
    with torch.no_grad():
        output = network(example)
    if not isinstance(output, Tensor):
        raise Refused(
            f"{_described(run_or_model)} gives {type(output).__name__}, of which no graph is exported; of detectors "
            "write the weights, format safetensors"
        )
    with replacing(path) as temporary:
        _WRITERS[format](network, example, temporary, metadata)
    return path


def _opened(given: str | os.PathLike[str] | nn.Module) -> tuple[nn.Module, dict[str, Any]]:
    """The network, and what its file says of images and classes."""
    if isinstance(given, nn.Module):
        return given, {"name": type(given).__name__}
    from safetensors import safe_open

    file = Path(given)
    model = load_model(file)
    file = file / "model.safetensors" if file.is_dir() else file
    with safe_open(file, "pt") as opened:
        said = opened.metadata()
    known: dict[str, Any] = {key: said[key] for key in ("name", "model", "options", "classes") if key in said}
    known |= {key: json.loads(said[key]) for key in ("size", "class_names", "mean", "std") if key in said}
    return model, {"class_names": list(map(str, range(int(said["classes"])))), **known}


def _any_number() -> Any:
    """The shape of a batch of any number of images: with a bound, as torch 2.6 refuses one that has none."""
    return ({0: torch.export.Dim("batch", max=2**31)},)


def _write_onnx(network: nn.Module, example: Tensor, path: Path, metadata: dict[str, str]) -> None:
    import onnx

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about itself
        program = torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            verbose=False,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=_any_number(),
        )
    assert program is not None
    made = program.model_proto
    onnx.helper.set_model_props(made, metadata)
    onnx.save(made, path)


def _write_torch(network: nn.Module, example: Tensor, path: Path, metadata: dict[str, str]) -> None:
    program = torch.export.export(network, (example,), dynamic_shapes=_any_number(), strict=False)
    with path.open("wb") as file:
        torch.export.save(program, file, extra_files={"metadata.json": json.dumps(metadata)})


_WRITERS: dict[str, Callable[[nn.Module, Tensor, Path, dict[str, str]], None]] = {
    "onnx": _write_onnx,
    "torch_export": _write_torch,
}


def _described(given: Any) -> str:
    return f"the network {type(given).__name__}" if isinstance(given, nn.Module) else os.fspath(given)
