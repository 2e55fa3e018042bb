"""Killed at any moment, the same command given again ends in the bytes of an undisturbed run, and leaves
nothing else behind.

A server process imports the library once and forks a process for every attempt, so that hundreds of real
kills take seconds. They come at random moments; before every opening for writing, renaming and removing of a
file; and in the middle of writing one.
"""

import json
import os
import random
import resource
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import toy
from killing import SERVER
from safetensors import safe_open
from small_runs import configured

from mmlib import world
from mmlib.data.prepared import Description, PreparedDataset, Writer, is_finished
from mmlib.runtime import atomic_path, write_json
from mmlib.unsupervised.inference import EvaluationConfig

# ---- the commands: each runs in a process and a folder of its own, and goes on where an earlier process was
# killed ----


def render(data):
    world.render_dataset("out", "room", 3, 1, 1, (32, 48), ("rgb", "depth", "event"), progress=False)


def render_into_the_cache(data):
    world.ensure("room", 3, 1, 1, (32, 48), ("rgb", "depth"), progress=False)


def prepare(data):
    """As the scripts of data_scripts/ do it, with several threads."""
    with (
        Writer("out", Description("toy", toy.CLASSES, toy.PALETTE, toy.MODALITIES)) as writer,
        ThreadPoolExecutor(2) as pool,
    ):
        waiting = [i for i in range(6) if f"s{i}" not in writer.rows]
        list(
            pool.map(
                lambda i: writer.add(
                    f"s{i}", ("train", "val")[i % 2], *toy.sample(i), ("day", "night")[i % 2]
                ),
                waiting,
            )
        )


def cache_tokens(data):
    from mmlib.unsupervised.backbone import load_backbone
    from mmlib.unsupervised.extraction import TokenConfig, extract_tokens

    names = ["rgb", "depth", "aolp", "rgb+depth+aolp"]
    extract_tokens(
        PreparedDataset(data),
        load_backbone("test_efficientnet", "random"),
        names,
        TokenConfig(size=(64, 96)),
        progress=False,
    )


def train(data):
    from mmlib.segmentation.train import TrainConfig, train

    train(
        TrainConfig(
            data, "out", epochs=2, save_every=0.1, eval_every=0.5, information_samples=1, progress=False
        )
    )


def cluster(data):
    from mmlib.unsupervised.train import cluster

    cluster(
        configured(
            data,
            "out",
            steps=2,
            eval_every=1,
            save_every=1,
            select="criterion",
            evaluation=EvaluationConfig(restarts=2, repeats=1, maps=1),
        )
    )


JOBS = [render, render_into_the_cache, prepare, cache_tokens, train, cluster]


def attempt(job, data, folder, fatal, largest):
    """Run ``job`` in ``folder``. The process dies before its file operation number ``fatal`` and while it
    writes a file larger than ``largest`` bytes; 0 = it does not.
    """
    os.makedirs(folder, exist_ok=True)
    os.chdir(folder)
    os.environ["MMLIB_DATA"] = str(Path(folder) / "cache")
    seen = 0

    def watch(event, arguments):
        nonlocal seen
        writes = (
            event == "open"
            and isinstance(arguments[0], str | os.PathLike)
            and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        )
        if (writes and not str(arguments[0]).startswith("/dev")) or event in (
            "os.rename",
            "os.remove",
            "os.rmdir",
        ):
            seen += 1
            if seen == fatal:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    if largest:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it, and would raise OSError
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    job(data)


def start(job, data, folder, fatal=0, largest=0):
    process = SERVER.Process(target=attempt, args=(job, str(data), str(folder), fatal, largest))
    process.start()
    return process


def finish(job, data, folder) -> dict:
    process = start(job, data, folder)
    process.join(120)
    assert process.exitcode == 0
    return content(folder)


def content(folder: Path) -> dict:
    """What is in every file, by name: tensors, JSON without the times taken, else bytes. Raises where one is
    half-written.
    """

    def timeless(value):
        if isinstance(value, dict):
            return {k: timeless(v) for k, v in value.items() if k not in ("seconds", "cpu_seconds", "date")}
        return [timeless(v) for v in value] if isinstance(value, list) else value

    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir() or ".tmp/" in name or path.suffix == ".lock":  # a lock says who had it last
            found[name] = b""
        elif path.match("tokens/*.json"):
            continue  # digests of images that are some seconds old: it depends on when it was written
        elif path.suffix == ".json":
            found[name] = timeless(json.loads(path.read_text()))
        elif name.endswith("history.jsonl"):
            found[name] = [
                timeless(json.loads(line))
                for line in path.read_text().splitlines(True)
                if line.endswith("\n")
            ]
        elif path.suffix == ".safetensors":
            with safe_open(path, "np") as file:
                arrays = {key: file.get_tensor(key) for key in file.keys()}
                header = timeless(json.loads(file.metadata()["mmlib"]))
            found[name] = header, {key: (a.dtype.str, a.shape, a.tobytes()) for key, a in arrays.items()}
        else:
            found[name] = path.read_bytes()
    return found


def check_what_is_left(folder: Path, whole: dict) -> None:
    """After a kill: a file under its own name is whole, and a data set that counts as finished lacks none."""
    found = content(folder)
    for name in found:
        if name.endswith((".png", ".npy", ".csv")) and ".tmp/" not in name:
            assert found[name] == whole[name], name
    for root in (Path(name).parent for name in whole if name.endswith("index.csv")):
        if is_finished(folder / root):
            assert {name for name in whole if name.startswith(str(root))} <= set(found)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    return str(toy.make(tmp_path_factory.mktemp("toy"), 8, 3))


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory):
    """job -> (folder of a run that nothing disturbs, its content, the seconds it took)."""
    known = {}
    finish(
        os.chdir, "/", tmp_path_factory.mktemp("nothing")
    )  # the server starts, and imports what it preloads

    def run(job):
        if job not in known:
            folder, begun = tmp_path_factory.mktemp(job.__name__), time.monotonic()
            known[job] = folder, finish(job, data, folder), time.monotonic() - begun
        return known[job]

    return run


def per_job(test):
    return pytest.mark.parametrize("job", JOBS, ids=lambda job: job.__name__)(test)


@per_job
def test_killed_before_its_first_second_third_file_operation(job, data, undisturbed, tmp_path):
    """Every process gets one operation further than the one before, from where that one died, until one comes
    to the end.
    """
    whole, folder, kills = undisturbed(job)[1], tmp_path / "run", 0
    while True:
        process = start(job, data, folder, fatal=kills + 1)
        process.join(120)
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL, f"attempt {kills + 1}"
        kills += 1
        check_what_is_left(folder, whole)
    assert kills >= 5 and content(folder) == whole


@per_job
def test_killed_at_random_moments(job, data, undisturbed, tmp_path):
    _, whole, seconds = undisturbed(job)
    folder, seed = tmp_path / "run", random.randrange(10**6)
    draw, kills = random.Random(seed), 0
    print("seed", seed)
    for attempt in range(8):  # each as long as an undisturbed run at most, the first ones a part of it
        process = start(job, data, folder)
        process.join(draw.uniform(0, seconds * (attempt + 1) / 8))
        process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
        assert process.exitcode in (0, -signal.SIGKILL)
        check_what_is_left(folder, whole)
        if process.exitcode == 0 or content(folder) == whole:
            break
    else:
        finish(job, data, folder)
    assert kills and content(folder) == whole


@per_job
def test_killed_in_the_middle_of_a_file(job, data, undisturbed, tmp_path):
    """The system kills a process whose file grows too large: among others half of a checkpoint or of an image
    is on disk by then.
    """
    (example, whole, _), folder = undisturbed(job), tmp_path / "run"
    sizes = sorted({path.stat().st_size for path in example.rglob("*") if path.is_file()} - {0})
    for largest in dict.fromkeys(size // 2 for size in sizes[-1:] + sizes[:: max(1, len(sizes) // 3)]):
        process = start(job, data, folder, largest=largest)
        process.join(120)
        assert process.exitcode == -signal.SIGXFSZ
        check_what_is_left(folder, whole)
    assert any(".tmp" in name for name in content(folder)) and finish(job, data, folder) == whole


def search(data):
    from mmlib.unsupervised.search import SearchConfig, search

    once = EvaluationConfig(restarts=2, repeats=1)
    search(
        SearchConfig(
            configured(data, "out", steps=2, save_every=1, modalities=("rgb", "depth"), evaluation=once),
            trials=3,
        )
    )


def test_a_search_killed_many_times_ends_with_the_asked_number_of_trials(data, tmp_path):
    kills = 0
    for attempt in range(4):
        process, deadline = start(search, data, tmp_path), time.monotonic() + 60
        if attempt % 2 == 0:  # in the middle of a trial that has written weights
            while (
                process.is_alive()
                and not list(tmp_path.glob("out/trials/*/*.safetensors"))
                and time.monotonic() < deadline
            ):
                time.sleep(0.001)
        else:
            process.join(random.uniform(0.2, 0.8))
        process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
    found = finish(search, data, tmp_path)
    assert kills and found["out/report.json"]["finished"] == 3
    assert not [
        name for name in found if ".tmp" in name or name.startswith("out/") and name.endswith(".safetensors")
    ]


@pytest.mark.parametrize("job", [render_into_the_cache, cache_tokens, prepare], ids=lambda job: job.__name__)
def test_two_processes_at_once_go_on_where_one_was_killed(job, data, undisturbed, tmp_path):
    _, whole, seconds = undisturbed(job)
    victim = start(job, data, tmp_path)
    victim.join(seconds / 2)
    victim.kill()
    victim.join()
    both = [start(job, data, tmp_path) for _ in range(2)]
    for process in both:
        process.join(120)
    codes = {process.exitcode for process in both}
    assert codes <= ({0, 1} if job is prepare else {0})  # 1: another one has finished it
    assert content(tmp_path) == whole


def write_slowly(path, begun, end):
    with atomic_path(path) as temporary:
        temporary.write_text("1")
        begun.set()
        end.wait(60)


def test_temporaries_of_the_dead_are_removed_and_no_others(tmp_path):
    """A writer is told by the lock it holds: a number of a process says nothing in another container."""
    killed, living = [(SERVER.Event(), SERVER.Event()) for _ in range(2)]
    writers = [
        SERVER.Process(target=write_slowly, args=(tmp_path / name, *events))
        for name, events in (("a.json", killed), ("b", living))
    ]
    for writer, (begun, _) in zip(writers, (killed, living)):
        writer.start()
        assert begun.wait(60)
    writers[0].kill()
    writers[0].join()
    (theirs,) = tmp_path.glob(".b.*")
    others = [".mine.tmp", ".a.json.tmp", "1.mmlib.tmp", theirs.name]
    for name in others[:-1]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.json").touch()
    (tmp_path / ".old.12345678.mmlib.tmp").mkdir()  # killed before it had its lock
    with atomic_path(tmp_path / "c.json") as temporary:
        assert temporary.name == "c.json" and temporary.parent.parent == tmp_path
        temporary.write_text("1")
        assert not (tmp_path / "c.json").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*others, "c.json"])
    living[1].set()
    writers[1].join()
    assert (tmp_path / "b").read_text() == "1" and not theirs.exists()


def write(folder, numbers):
    for number in numbers:
        write_json(Path(folder) / "shared.json", [number] * 2000)


def test_live_processes_write_one_file_while_others_are_killed(tmp_path):
    """The reader always finds a whole file; nobody's temporary is taken away while it is written."""
    live = [SERVER.Process(target=write, args=(str(tmp_path), range(150))) for _ in range(2)]
    for process in live:
        process.start()
    while any(process.is_alive() for process in live):
        victim = SERVER.Process(target=write, args=(str(tmp_path), range(10**6)))
        victim.start()
        victim.join(random.uniform(0.01, 0.06))
        victim.kill()
        victim.join()
        if (tmp_path / "shared.json").exists():
            assert len(set(json.loads((tmp_path / "shared.json").read_text()))) == 1
    assert [process.exitcode for process in live] == [0, 0]
    finish(write_last, tmp_path, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["shared.json"]


def write_last(folder):
    write(folder, [0])
