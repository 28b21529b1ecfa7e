"""Trained networks on the Hugging Face hub: `psd push RUN OWNER/NAME`, `psd.load_model("hub:OWNER/NAME")`."""

from __future__ import annotations

import json
import os
import re
import tempfile
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path, PureWindowsPath
from typing import Any

import yaml

from psd import tasks
from psd.checks import Refused, markdown, naming, printable
from psd.training.checkpoints import load_model
from psd.training.records import Record, check_whole

PREFIX = "hub:"
NAME = re.compile(r"[\w.-]+/[\w.-]+")
DATA = {
    "shapes": "Drawn from a seed by psd itself (MIT).",
    "cifar100": "CIFAR-100 (Krizhevsky 2009), of which no licence is known; for research.",
    "imagenet": "ImageNet (Deng et al. 2009), for research and teaching without profit, by its terms of access.",
    "tiny-imagenet": "Tiny-ImageNet (Stanford CS231n), of ImageNet's images, for research and teaching.",
}
OWN_DATA = "Images of whoever trained this network; ask them for the terms."


def push(run: str | os.PathLike[str], repository: str, *, private: bool = False) -> str:
    """Put a finished run's weights and record on the hub, with a model card that is written from the record.

    Paths of this machine are left out of what is sent. Who you are, and where the hub is, huggingface_hub knows: by
    `hf auth login`, or HF_TOKEN and HF_ENDPOINT.

    Args:
        run: the folder of a finished run.
        repository: owner/name; made if it is not there.
        private: only for a repository that is made.

    Returns:
        the address of the model's page.

    Raises:
        ValueError: no finished run, no owner/name, huggingface_hub is missing, or the hub refuses or cannot be reached.
    """
    api = _library()
    folder = Path(run)
    if not NAME.fullmatch(repository):
        raise Refused(f"repository must be owner/name, got {repository!r}")
    load_model(folder)  # refuses what nobody could load again
    file = folder.with_name(f"{folder.name}.json")
    record = without_paths(Record.read(file))
    with naming(file):
        check_whole(record)
    with tempfile.TemporaryDirectory() as prepared:
        weights = (folder / "model.safetensors").resolve()
        (Path(prepared) / "model.safetensors").symlink_to(weights)
        (Path(prepared) / "record.json").write_text(json.dumps(asdict(record), indent=1), encoding="utf-8")
        (Path(prepared) / "README.md").write_text(card(record, repository), encoding="utf-8")
        try:
            page = api.create_repo(repository, private=private, exist_ok=True)
            api.upload_folder(repo_id=repository, folder_path=prepared, commit_message=f"{record.name}, by psd push")
        except Exception as error:  # the library's own kinds, and those of what it calls the network by
            raise Refused(f"the hub did not take {repository}: {error}") from error
    return str(page)


def fetch(name: str) -> Path:
    """The weights of "owner/name" or "owner/name@revision", from the hub or from where they were put before.

    Raises:
        ValueError: no such name, nothing there, huggingface_hub is missing, or the hub cannot be reached.
    """
    _library()
    from huggingface_hub import hf_hub_download

    repository, _, revision = name.partition("@")
    if not NAME.fullmatch(repository):
        raise Refused(f"a network on the hub is hub:OWNER/NAME, got hub:{name}")
    endpoint = os.environ.get("HF_ENDPOINT")
    try:
        return Path(hf_hub_download(repository, "model.safetensors", revision=revision or None, endpoint=endpoint))
    except Exception as error:  # as above
        raise Refused(f"hub:{name}: {error}") from error


def card(record: Record, repository: str) -> str:
    """The model's page, in Markdown with the hub's YAML header."""
    data = record.config.get("data", {}).get("name", record.data)
    header = {"library_name": "psd", "tags": ["self-distillation", printable(record.task), printable(record.method)]}
    known = [metric for metric in tasks.find(record.task).metrics if record.final.get(metric.name) is not None]
    told = [metric.text(record.final[metric.name]).removeprefix(metric.title) for metric in known]
    rows = [f"| {markdown(metric.title)} |{markdown(text)} |" for metric, text in zip(known, told, strict=True)]
    terms = next((text for name, text in DATA.items() if record.data.startswith(name)), OWN_DATA)
    settings = yaml.safe_dump(record.config, sort_keys=False)
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", settings)), default=0))  # no text in it is its end
    what = f"{_code(record.model)}, trained by {_code(record.method)} on {_code(data)}"
    revision = markdown(record.revision or "unknown")
    versions = markdown(", ".join(f"{name} {version}" for name, version in record.versions.items()))
    return f"""---
{yaml.safe_dump(header, sort_keys=False)}---

# {repository.partition("/")[2]}

{what} with psd, self-distillation by intra-class patch swap
([paper](https://arxiv.org/abs/2505.14124)).

```python
import psd

model = psd.load_model("hub:{repository}")
```

## Figures

After the last epoch, of one run (seed {record.seed}), on {record.final.get("n_test", 0):,} test images. One run says
little on which method is better.

| figure | value |
|---|---|
{chr(10).join(rows)}

## How it was made

{record.image_passes:,} image passes on {markdown(record.device)}; {versions}; revision {revision}. The whole
record is `record.json`. Settings:

{fence}yaml
{settings}{fence}

## Data

{terms}
"""


def without_paths(record: Record) -> Record:
    """A record that tells nothing of the machine's folders: of a path the last part is kept, of the output nothing."""
    config: dict[str, Any] = deepcopy(record.config)
    config.get("data", {}).pop("root", None)
    config.get("run", {}).pop("output", None)
    for section, key in (("data", "name"), ("model", "weights"), ("method", "teacher")):
        value = config.get(section, {}).get(key)
        if isinstance(value, str) and ("/" in value or "\\" in value):
            kind, colon, path = value.partition(":") if re.match(r"[\w-]{2,}:", value) else ("", "", value)
            config[section][key] = kind + colon + PureWindowsPath(path).name  # which knows both kinds of slashes
    return replace(record, config=config)


def _code(text: object) -> str:
    return "`" + printable(text).replace("`", "'") + "`"


def _library() -> Any:
    """The hub's interface."""
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise Refused('the hub needs huggingface_hub, which is missing: pip install ".[hub]"') from error
    return HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
