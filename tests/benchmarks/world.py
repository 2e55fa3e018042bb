"""Milliseconds per frame of the sensor world: ``OMP_NUM_THREADS=1 python tests/benchmarks/world.py [--size 96
128] [--frames 24] [--repeats 5]``.

Prints the median over repeats of the mean over frames (different scenes, conditions taking turns); asserts
nothing about time.
"""

import argparse
import statistics
import time

from mmlib.world import ALL, SCENE_CONDITIONS, render_frame

SETS = [
    ("rgb",),
    ("depth",),
    ("lidar",),
    ("rgb", "event"),
    ("rgb", "depth"),
    ("rgb", "depth", "event", "lidar"),
    ALL,
]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, nargs=2, default=(96, 128))
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    print(
        f"{args.size[0]}x{args.size[1]}, {args.frames} frames, "
        f"median of {args.repeats} repeats, ms per frame (process CPU time in brackets)"
    )
    for scene, conditions in SCENE_CONDITIONS.items():
        render_frame(scene, 0, "day", size=tuple(args.size))  # build the textures once
        for names in SETS:
            walls, cpus = [], []
            for _ in range(args.repeats):
                wall, cpu = time.perf_counter(), time.process_time()
                for k in range(args.frames):
                    render_frame(scene, k, conditions[k % len(conditions)], "", tuple(args.size), names)
                walls.append(1e3 * (time.perf_counter() - wall) / args.frames)
                cpus.append(1e3 * (time.process_time() - cpu) / args.frames)
            print(
                f"{scene:7s} {' '.join(names):48s} {statistics.median(walls):7.1f}  [{statistics.median(cpus):.1f}]"
            )


if __name__ == "__main__":
    main()
