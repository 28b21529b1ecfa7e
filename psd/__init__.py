"""Self-distillation by intra-class patch swap, for PyTorch.

The method is three small files that need torch alone: `psd.swap`, `psd.pairs`, `psd.losses`. Everything else
(models, data, training, tables) is loaded on first use, so that `import psd` costs no more than `import torch`.

Source of the method: Choi, Jeon, Shukla, Turaga, "Intra-class Patch Swap for Self-Distillation",
Neurocomputing 645 (2025) 130408, arXiv 2505.14124.
"""

from __future__ import annotations

import importlib
import signal
from typing import TYPE_CHECKING, Any

from psd import threads

# OpenMP reads its settings when torch is loaded, which the next imports do. Python runs this file before any other of
# psd, before __main__.py and cli.py too: nothing but this place is early enough for the command. A program of somebody
# else that imports psd keeps its environment as it is.
if threads.asked():
    threads.prepare()
# Until the command is loaded and can answer with a line (psd.cli.main), Ctrl-C ends it without a traceback.
if threads.is_command() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from psd.losses import LossTerms, SelfDistillationLoss
from psd.pairs import ClassPairs, PairedBatchSampler, same_class_partner
from psd.swap import PatchSwap, patch_mask, patch_swap

if TYPE_CHECKING:
    from psd import data, methods, models, tasks
    from psd.calibration import Temperature
    from psd.reporting import plots
    from psd.reporting.tables import report
    from psd.tasks import Metrics, Task
    from psd.training import config
    from psd.training.checkpoints import load_model
    from psd.training.config import Config
    from psd.training.evaluation import calibrate, evaluate
    from psd.training.export import export
    from psd.training.fit import fit, train
    from psd.training.records import Record

__version__ = "0.1.0"

_LAZY = {
    "Config": "psd.training.config",
    "Temperature": "psd.calibration",
    "calibrate": "psd.training.evaluation",
    "Metrics": "psd.tasks",
    "Task": "psd.tasks",
    "evaluate": "psd.training.evaluation",
    "export": "psd.training.export",
    "fit": "psd.training.fit",
    "Record": "psd.training.records",
    "load_model": "psd.training.checkpoints",
    "train": "psd.training.fit",
    "report": "psd.reporting.tables",
}
_MODULES = {
    "config": "psd.training.config",
    "data": "psd.data",
    "methods": "psd.methods",
    "models": "psd.models",
    "plots": "psd.reporting.plots",
    "tasks": "psd.tasks",
}

__all__ = [
    "ClassPairs",
    "Config",
    "LossTerms",
    "Metrics",
    "PairedBatchSampler",
    "PatchSwap",
    "Record",
    "SelfDistillationLoss",
    "Task",
    "Temperature",
    "calibrate",
    "config",
    "data",
    "evaluate",
    "export",
    "fit",
    "load_model",
    "methods",
    "models",
    "patch_mask",
    "patch_swap",
    "plots",
    "report",
    "same_class_partner",
    "tasks",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    if name in _MODULES:
        return importlib.import_module(_MODULES[name])
    raise AttributeError(f"module 'psd' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
