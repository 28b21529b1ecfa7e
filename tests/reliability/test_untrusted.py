"""Files of strangers: what is in them is not executed, does not leave its folder, and is shown as text."""

from __future__ import annotations

import ast
import io
import pickle
import re
import tarfile
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.datasets import utils

import psd
from psd import cli
from psd.checks import Refused, markdown, printable
from psd.data import cifar100
from psd.models.transfer import read
from psd.reporting import plots, story, tables
from psd.reporting.scenes import _write
from psd.reporting.style import in_figure
from psd.training import config, hub
from psd.training.records import Record

NAMES = [
    "\x1b[31mred",  # a colour of the terminal
    "\x1b]0;title\x07",
    "back\b\b\bspace",
    "line\nbreak",
    "\u202egpj.exe",  # turns the direction of what follows
    "\u2066isolated",
    "half \ud800",  # half a character, which no file can hold
    "\x9b2J",
    "<script>alert(1)</script>",
    "a|b",
    "`code`",
    "[link](https://example.org)",
    "$\\frac$",
    "$x^{2$",
    "&lt;",
]
CONTROL = [name for name in NAMES if printable(name) != name]
SHOWN = [name for name in NAMES if name not in CONTROL]


def record(name: str = "x", variant: str = "patch_swap", seed: int = 0, **changes: Any) -> Record:
    made: dict[str, Any] = {
        "name": f"{name}/resnet8/1ep/{variant}-s{seed}",
        "data": name,
        "model": name,
        "method": variant,
        "seed": seed,
        "budget": "1ep",
        "config": {
            "data": {"name": name, "batch_size": 8},
            "model": {"name": name, "weights": name},
            "method": {"name": variant, "note": f"a\n\n```\n\n{name}"},
            "budget": {"epochs": 1, "image_passes": None},
            "optimizer": {"name": "sgd"},
            "run": {"seed": seed},
        },
        "epochs": [{"epoch": 1, "steps": 4, "loss": 1.0, "cross_entropy": 1.0}],
        "final": {"top1": 50.0 + seed, "n_test": 10},
        "metrics": [{"name": "top1", "title": name, "unit": "%", "better": "higher", "digits": 2}],
        "image_passes": 32,
        "seconds": 1.0,
        "images_per_second": 32.0,
        "device": name,
        "versions": {name: name},
        "revision": name,
    }
    return Record(**{**made, **changes})


# --- names on a terminal


@pytest.mark.parametrize("name", NAMES)
def test_a_name_reaches_a_terminal_as_text(name, tally):
    shown = printable(name)
    assert shown.isprintable() and shown.encode()
    assert (shown == name) == (name in SHOWN)
    assert str(Refused(f"no class {name}")).replace("\n", "").isprintable()
    tally("Untrusted files", "names with control characters, HTML or formulas", "shown as text on a terminal")


@pytest.mark.parametrize("name", CONTROL)
def test_an_error_of_a_command_shows_a_name_as_text(name, capsys):
    assert cli.main(["report", f"{name}.json"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and err[:-1].isprintable()


def test_a_class_folder_s_name_reaches_the_terminal_as_text(tmp_path, capsys):
    (tmp_path / "train" / "\x1b[31mred").mkdir(parents=True)
    arguments = ["train", "shapes", "--data.name", f"folder:{tmp_path}", "--data.size", "8"]
    assert cli.main(arguments) == 2
    assert capsys.readouterr().err[:-1].isprintable()


# --- in tables, model cards and figures


@pytest.mark.parametrize("name", NAMES)
def test_a_name_reaches_a_table_as_text_or_its_record_is_refused(name, tmp_path, tally):
    record(name).write(tmp_path / "a.json")
    if name in CONTROL or ".." in name or "//" in name:
        with pytest.raises(Refused, match=r"a\.json: record\.name"):
            tables.report([tmp_path])
    else:
        text = tables.report([tmp_path], costs=True)
        rows = [line for line in text.splitlines() if line.startswith("|")]
        assert len(rows) == 3 and len({row.count("|") for row in rows}) == 1
        assert not re.search(r"[<`\[]|&(?!amp;|lt;|gt;|#\d+;)", text)
    tally("Untrusted files", "names with control characters, HTML or formulas", "shown as text in a table, or refused")


def test_a_table_keeps_what_is_harmless():
    assert markdown("wide_resnet-28 ± 0.5 (Δ)") == "wide_resnet-28 ± 0.5 (Δ)"


@pytest.mark.parametrize("name", NAMES)
def test_a_name_reaches_a_model_card_as_text(name, tally):
    card = hub.card(record(name), "me/x")
    head, _, settings = card.partition("Settings:\n\n")
    fence = re.match("`+", settings)[0]
    inside, _, after = settings[len(fence) :].partition(f"\n{fence}\n")
    assert len(fence) > 3 and fence not in inside and name not in after  # its settings hold ``` themselves
    assert head.replace("\n", "").isprintable() and card.count("\n---\n") == 1
    outside = re.sub("`[^`\n]*`", "", re.sub("(?s)```python.*?```", "", head))
    assert "<script" not in outside and "[link]" not in outside
    tally("Untrusted files", "names with control characters, HTML or formulas", "shown as text in a model card")


@pytest.mark.parametrize("name", NAMES)
def test_a_name_reaches_a_figure_as_text(name, tmp_path, tally):
    figures = [
        plots.comparison([record(name, f"{name}{k}", seed) for k in (1, 2) for seed in (0, 1)]),
        plots.image_grid([[torch.zeros(3, 4, 4)]], [name], [name], title=name),
        story.still(*2 * [torch.zeros(2, 3, 4, 4, dtype=torch.uint8)], [0, 1], [1, 0], what=name, title=name),
    ]
    _write(figures[1].axes[0], 1, 1, name, "left")
    for k, figure in enumerate(figures):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of characters that the font lacks
            plots.save(figure, tmp_path / f"{k}.png", dpi=20)
    assert in_figure(name).replace("\n", "").isprintable()
    written = [text for ax in figures[1].axes for text in (ax.get_title(), ax.yaxis.label.get_text())]
    assert set(written) == {in_figure(name)}
    tally("Untrusted files", "names with control characters, HTML or formulas", "shown as text in a figure")


@pytest.mark.parametrize("name", NAMES)
def test_a_name_reaches_an_animation_as_text(name):
    from xml.etree import ElementTree

    images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    drawn = story.exchange(images, torch.ones(2, 2, dtype=torch.bool), [0, 1], [1, 0], what=name, alt=name)
    assert printable(name) in {text for node in ElementTree.fromstring(drawn.svg).iter() for text in node.itertext()}


# --- names that lead elsewhere


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "a/../../x", ".", "..", "x\x1b[2J"])
def test_data_of_a_name_that_leads_elsewhere_are_refused(name, tmp_path, tally):
    data = psd.data.load("shapes", classes=3, count=24, size=16)
    run = {"output": tmp_path / "out", "progress": False, "device": "cpu"}
    with pytest.raises(Refused, match="the record's name"):
        psd.fit(psd.models.build("resnet8", 3), data, budget=1, batch_size=6, run=run, name=name)
    assert list(tmp_path.rglob("*")) == []
    tally("Untrusted files", "data sets whose name leads elsewhere", "refused, nothing written")


@pytest.mark.parametrize(("path", "label"), [(".", "birds"), ("..", "photos"), ("./", "birds"), ("x/..", "birds")])
def test_a_folder_without_a_name_of_its_own_keeps_its_records_below_the_output(path, label, tmp_path, monkeypatch):
    # folder:. once made records at the root of the file system
    (tmp_path / "photos" / "birds").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "photos" / "birds")
    assert psd.Config(data=f"folder:{path}").name == f"{label}/resnet8/80ep/patch_swap-s0"


# --- what is executed


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("executed"),)


@pytest.mark.parametrize("ending", ["pt", "pth", "bin"])
@pytest.mark.parametrize("write", [torch.save, lambda thing, file: file.write_bytes(pickle.dumps(thing))])
def test_weights_that_would_run_code_are_refused(write, ending, tmp_path, monkeypatch, tally):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / f"weights.{ending}"
    write({"fc.weight": Payload()}, file)
    with pytest.raises(Refused, match="not readable as weights"):
        read(file)
    assert not Path("executed").exists()
    tally("Untrusted files", "pickles that would run code", "refused, nothing executed")


@pytest.mark.parametrize("option", ["checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "weights_backbone"])
def test_options_by_which_libraries_open_files_are_refused(option):
    with pytest.raises(Refused, match=rf"model\.options\.{option} is not taken"):
        psd.models.build("torchvision:resnet18", 10, **{option: "evil.pth"})


def test_no_line_of_psd_opens_a_pickle_or_yaml_without_a_guard():
    guards = {"load": {"weights_only": True, "allow_pickle": False}}
    for path in Path(psd.__file__).parent.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for call in [node for node in ast.walk(tree) if isinstance(node, ast.Call)]:
            name = ast.unparse(call.func)
            if name in ("torch.load", "np.load"):
                given = {k.arg: getattr(k.value, "value", None) for k in call.keywords}
                assert guards["load"].items() & given.items(), f"{path}:{call.lineno}"
            assert name not in ("pickle.load", "pickle.loads", "yaml.unsafe_load", "yaml.full_load", "eval", "exec")
            assert name != "yaml.load" or path.name == "plain_yaml.py"


# --- archives


def link(name: str, target: str, kind: bytes) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, target
    return entry


ARCHIVES = {
    "a path upwards": [tarfile.TarInfo("../escaped")],
    "an absolute path": [tarfile.TarInfo("{outside}/escaped")],
    "a symbolic link": [link("away", "{outside}", tarfile.SYMTYPE), tarfile.TarInfo("away/escaped")],
    "a hard link": [link("cifar-100-python", "{outside}/mine", tarfile.LNKTYPE), tarfile.TarInfo("cifar-100-python")],
    "a link upwards": [link("away", "../..", tarfile.SYMTYPE), tarfile.TarInfo("away/escaped")],
    "a device": [link("zero", "", tarfile.CHRTYPE)],
}


@pytest.mark.parametrize("kind", ARCHIVES)
def test_an_archive_writes_nothing_outside_its_folder(kind, tmp_path, monkeypatch, tally):
    """Even one whose checksum were right."""
    outside, root = tmp_path / "outside", tmp_path / "root"
    outside.mkdir()
    root.mkdir()
    (outside / "mine").write_text("mine")
    with tarfile.open(root / "cifar-100-python.tar.gz", "w:gz") as archive:
        for entry in ARCHIVES[kind]:
            made = link(entry.name.format(outside=outside), entry.linkname.format(outside=outside), entry.type)
            made.size = 4 if made.isreg() else 0
            archive.addfile(made, io.BytesIO(b"evil") if made.isreg() else None)
    monkeypatch.setattr(utils, "check_integrity", lambda path, md5: True)
    with pytest.raises(Refused):
        cifar100.read(root, "train")
    assert [path.name for path in outside.iterdir()] == ["mine"] and (outside / "mine").read_text() == "mine"
    assert not (tmp_path / "escaped").exists() and not (root / "escaped").exists()
    tally("Untrusted files", "archives that write outside their folder", "refused, nothing written there")


@pytest.mark.parametrize("name", ["cifar-100-python.tar.gz", "cifar-100-python/train"])
def test_an_archive_or_pickle_with_a_wrong_checksum_is_not_opened(name, tmp_path, monkeypatch, tally):
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(pickle.dumps(Payload()))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Refused, match=r"MD5|missing"):
        cifar100.read(tmp_path, "train")
    assert not (tmp_path / "executed").exists()
    tally("Untrusted files", "pickles that would run code", "refused, nothing executed")


# --- YAML that would fill a memory

BOMBS = {
    "aliases": "compare:\n  a: &a [x]\n"
    + "".join(f"  {b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
    "merged keys": "compare:\n  a: &a {x: 1}\n"
    + "".join(
        f"  {b}: &{b} {{<<: [{', '.join([f'*{a}'] * 10)}]}}\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    ),
    "an alias of itself": "a: &a [*a]\n",
    "depth": "[" * 60_000,
    "mappings in depth": "{a: " * 15_000,
    "length": "a: " + "x" * 10_000_000,
    "one long number": "a: " + "9" * 60_000,
    "sixties": "data: {seed: " + "1:" * 30_000 + "1}",
}


@pytest.mark.parametrize("kind", BOMBS)
def test_yaml_that_would_fill_a_memory_is_refused_soon(kind, tmp_path, tally):
    file = tmp_path / "bomb.yaml"
    file.write_text(BOMBS[kind])
    start = time.process_time()
    with pytest.raises(Refused, match="not readable as YAML"):
        config.read_yaml(str(file))
    assert time.process_time() - start < 5
    tally("Untrusted files", "YAML that would fill a memory", "refused within seconds")


def test_xml_that_would_fill_a_memory_is_refused_soon(tmp_path, tally):
    from psd.data import voc

    entities = "".join(f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("abcdefghi", "bcdefghij", strict=True))
    file = tmp_path / "a.xml"
    file.write_text(f'<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">{entities}]><x>&j;</x>')
    start = time.process_time()
    with pytest.raises(Refused, match=r"a\.xml is not readable as XML"):
        voc._objects(file, (9, 9))
    assert time.process_time() - start < 5
    tally("Untrusted files", "XML that would fill a memory", "refused within seconds")


def test_aliases_and_merged_keys_of_a_recipe_are_read(tmp_path):
    (tmp_path / "a.yaml").write_text(
        "compare: {a: &a {p: 1, q: 2}, b: &b {<<: *a, p: 3}, c: {<<: *b, q: 4}, d: [*a, *a]}"
    )
    read = config.read_yaml(str(tmp_path / "a.yaml"))["compare"]
    assert read["b"] == {"p": 3, "q": 2} and read["c"] == {"p": 3, "q": 4} and read["d"] == [{"p": 1, "q": 2}] * 2
