"""The results page is what its command writes, and sentences that compare agree with their records."""

import copy
import functools
import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest
from course.cluster_records import healthy_trainings, settings_of
from scipy.stats import spearmanr

ROOT = Path(__file__).resolve().parents[1]
SPEC = importlib.util.spec_from_file_location("results_page", ROOT / "notebooks/results/page.py")
page = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(page)
SENTENCES = json.loads((ROOT / "notebooks/results/sentences.json").read_text(encoding="utf-8"))
RECORD = functools.cache(page.read)  # read once, never changed
RELATIONS = {
    "above": lambda difference: difference.mean > 0,
    "below": lambda difference: difference.mean < 0,
    "clearly above": lambda difference: difference.low > 0,
    "clearly below": lambda difference: difference.high < 0,
    "not clearly different from": lambda difference: not difference.clear,
}


def holds(check: dict, record: dict) -> bool:
    """Whether a and b of a check stand in its relation; b is of the record ``against``, if it is named."""
    other = RECORD(check["against"]) if "against" in check else None
    difference = page.difference(record, check["a"], check["b"], check["key"], other)
    return RELATIONS[check["is"]](difference)


def words(path: str) -> str:
    """The text of a file of Markdown or of a notebook, with single spaces."""
    text = (ROOT / path).read_text(encoding="utf-8")
    if path.endswith(".ipynb"):
        cells = json.loads(text)["cells"]
        text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    return re.sub(r"\s+", " ", text)


def test_the_results_page_is_what_its_command_writes():
    written = (ROOT / "notebooks/results/README.md").read_text(encoding="utf-8")
    assert written == page.page(), "run: python notebooks/results/page.py"


@pytest.mark.parametrize("sentence", SENTENCES, ids=[one["text"][:40] for one in SENTENCES])
def test_sentences_that_compare_agree_with_their_records(sentence):
    assert sentence["text"] in words(sentence["file"])
    wrong = [check for check in sentence["checks"] if not holds(check, RECORD(check["record"]))]
    assert sentence["checks"] and not wrong


def test_what_choosing_without_labels_is_worth_in_the_records():
    """Lesson 10 and the page: of each search the choice lies above the mean trial and below the best, and
    settings matter as said; "explained" goes with mIoU in every setting of two sensors, "agreement"
    weakly, and "silhouette" changes its sign.
    """
    searches = RECORD("cluster_search")["searches"]
    strongest = {}
    for name, found in searches.items():
        miou = [trial["scores"]["miou"] for trial in found["trials"]]
        assert found["finished"] >= 60 and np.mean(miou) < found["best"]["scores"]["miou"] < max(miou)
        ranks = found["rank correlation with mIoU"]
        assert ranks["explained"] > 0.4 and ranks["explained"] > max(ranks["agreement"], ranks["silhouette"])
        if not name.endswith("-32"):
            settings = {key: ranks[key] for key in ranks if key in found["best"]}
            strongest[name] = max(settings, key=lambda key: abs(settings[key]))
            assert settings[strongest[name]] > 0
    assert len(searches) == 6 and strongest == {
        "stego": "quantile_knn",
        "stego-conv": "quantile_knn",
        "unim2": "lr",
    }
    ranks = {name: found["rank correlation with mIoU"] for name, found in searches.items()}
    assert all(abs(ranks[name]["lambda_x"]) < 0.3 for name in ("unim2", "unim2-32"))
    assert min(ranks[name]["lr"] for name in ("stego-32", "stego-conv-32")) > 0.45
    assert min(ranks["stego-32"][f"quantile_{pair}"] for pair in ("self", "knn")) > 0.35
    moving = {*ranks["unim2-32"]} & {*searches["unim2-32"]["best"]}
    assert max(abs(ranks["unim2-32"][key]) for key in moving) < 0.35
    assert min(ranks[name]["dim"] for name in ("stego", "stego-conv")) > 0.4
    correlations = []
    for record in (RECORD("clusters"), RECORD("clusters_nyu")):
        for scene, sensors in (setting for setting in settings_of(record) if len(setting[1]) == 2):
            runs = healthy_trainings(record, scene, sensors)
            columns = [[run["criteria"][name] for run in runs] for name in page.CRITERIA]
            miou = [run["miou"] for run in runs]
            correlations.append([spearmanr(column, miou).statistic for column in columns])
    explained, agreement, silhouette = np.transpose(correlations)
    assert len(explained) == 5 and min(explained) > 0.35
    assert max(agreement) < 0.4 and all(agreement < explained)
    assert min(silhouette) < 0 < max(silhouette)


def test_a_changed_number_or_relation_is_noticed(monkeypatch):
    opposite = {"above": "below", "clearly above": "below", "clearly below": "above", "below": "above"}
    for sentence in SENTENCES:
        for check in sentence["checks"]:
            if check["is"] in opposite:
                assert not holds(check | {"is": opposite[check["is"]]}, RECORD(check["record"]))
    record = copy.deepcopy(RECORD("street_subsets"))
    record["groups"]["street-all-subsets"]["summary"]["all"]["mean"][0] += 1
    monkeypatch.setattr(page, "read", lambda name: record if name == "street_subsets" else RECORD(name))
    assert page.page() != (ROOT / "notebooks/results/README.md").read_text(encoding="utf-8")


def test_differences_are_paired_by_seed():
    runs = [
        {"scene": "room", "sensors": "R", "method": method, "seed": seed, "miou": miou}
        for method, scores in (("a", (3.0, 5.0, 7.0)), ("b", (6.0, 1.0, 4.0)))
        for seed, miou in zip((2, 0, 1) if method == "a" else (1, 2, 0), scores)
    ]
    difference = page.difference({"runs": runs}, "room R a", "room R b", "miou")  # 5 - 4, 7 - 6, 3 - 1
    assert (difference.n, difference.mean) == (3, pytest.approx(4 / 3))
