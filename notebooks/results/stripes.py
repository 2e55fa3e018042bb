"""The control that looks at no image: every picture cut into as many horizontal stripes as there are classes,
scored like any clustering -> stripes.json, read by notebooks 09 and 10.

    python notebooks/results/stripes.py --nyu FOLDER       # half a minute; without --nyu the world alone

Stripes are named by Hungarian matching on the scored split, as clusters are. What a method does not score
above them may be knowledge of where things usually are.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from mmlib import world  # noqa: E402
from mmlib.data.prepared import PreparedDataset  # noqa: E402
from mmlib.evaluation.counts import score_clusters  # noqa: E402
from mmlib.modalities import IGNORE_INDEX  # noqa: E402
from mmlib.runtime import provenance, write_json  # noqa: E402

SENSORS = ("rgb", "depth", "thermal", "nir", "dolp", "aolp")  # of the scenes that clusters.py renders


@dataclass(frozen=True)
class Options:
    """Score horizontal stripes."""

    nyu: str = ""
    """Folder of prepared NYU-Depth-v2; its splits val and test are scored."""


def stripes(data: PreparedDataset) -> dict[str, float]:
    """mIoU and accuracy of horizontal stripes, in per cent."""
    classes = data.description.classes
    counts = np.zeros((len(classes), len(classes)), int)
    for index in range(len(data)):
        label = data.stored(index)[1]
        rows = np.arange(len(label)) * len(classes) // len(label)
        valid = label != IGNORE_INDEX
        np.add.at(counts, (label[valid], np.broadcast_to(rows[:, None], label.shape)[valid]), 1)
    scores = score_clusters(counts, classes)
    return {name: round(float(scores[name]["all"]), 2) for name in ("miou", "accuracy")} | {
        "images": len(data)
    }


def main(options: Options) -> None:
    rows = []
    for scene in ("room", "street"):
        folder = world.ensure(scene, modalities=SENSORS, progress=False)
        for split in ("val", "test"):
            rows.append({"scene": scene, "split": split} | stripes(PreparedDataset(folder, split)))
    if options.nyu:
        for split in ("val", "test"):
            rows.append({"scene": "nyu", "split": split} | stripes(PreparedDataset(options.nyu, split)))
    command = "python notebooks/results/stripes.py" + " --nyu FOLDER" * bool(options.nyu)
    write_json(ROOT / "notebooks/results/stripes.json", {"provenance": provenance(command), "rows": rows})
    for row in rows:
        print(row)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
