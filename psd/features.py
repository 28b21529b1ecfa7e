"""What the final linear layer of a classification network is, and what it is given."""

from __future__ import annotations

from torch import Tensor, nn

from psd.checks import Refused


def classifier(model: nn.Module) -> nn.Linear:
    """The final linear layer of a classification network: its last `nn.Linear` with one output per class.

    The number of classes is the model's attribute `num_classes` (set by `build` and by timm); a model without
    one gives its last `nn.Linear`.

    Raises:
        ValueError: no such layer, as in torchvision's SqueezeNet, which classifies by a convolution.
    """
    modules = list(model.modules())
    # The first that says so: a wrapper such as DistributedDataParallel hides the model's attributes.
    classes = next((c for m in modules if isinstance(c := getattr(m, "num_classes", None), int)), None)
    linears = [m for m in modules if isinstance(m, nn.Linear) and classes in (None, m.out_features)]
    if not linears:
        raise Refused(
            f"model {type(model).__name__} has no nn.Linear with num_classes={classes} outputs, so its "
            "penultimate features are unknown; use another model, or feature_weight=0"
        )
    return linears[-1]


def features_and_logits(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """One forward pass that also returns what the final linear layer is given.

    Args:
        model: a network whose last step is a linear layer (see `classifier`).
        x: images (N, 3, H, W).

    Returns:
        (features (N, D), logits (N, num_classes)), both with gradients: logits = features W^T + b.

    Raises:
        ValueError: the final linear layer is missing, or is not called exactly once with (N, D); a network with two of
            them, as a distilled DeiT has.
    """
    model = getattr(model, "_orig_mod", model)  # torch.compile would compile anew for the hook of every step
    inputs: list[Tensor] = []
    last = classifier(model)
    twins = [name for name, module in model.named_modules() if name.rpartition(".")[2] == "head_dist"]
    if twins:
        raise Refused(
            f"model {type(model).__name__} has two final layers ({twins[0]} is the second), so that no features give "
            "its logits; use another model, or feature_weight=0"
        )
    handle = last.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    try:
        logits: Tensor = model(x)
    finally:
        handle.remove()
    if len(inputs) != 1 or inputs[0].dim() != 2:
        raise Refused(
            f"model {type(model).__name__} gave its final nn.Linear inputs of shapes "
            f"{[tuple(i.shape) for i in inputs]}, expected one (N, D); use another model, or feature_weight=0"
        )
    return inputs[0], logits
