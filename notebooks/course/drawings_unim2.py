"""Part B's drawing: how UniM2 trains a code that every sensor judges, and which of it remains afterwards."""

from __future__ import annotations

from mmlib.figures import INK
from mmlib.modalities import SENSORS

from .drawings import MUTED, Drawing, dark


def unim2() -> str:
    """Figure 2 of the paper: frozen tokens, MSN, Ψ, S; CMCS, with CMH before the second sensor."""
    draw = Drawing(
        "UniM2: one code, two judges",
        "From left to right: a colour image and a depth image pass the same frozen backbone. Their tokens "
        "pass a modality-specific network (MSN) each, are fused by Psi, and the head S makes a code s, which "
        "k-means cuts into segments. Above: the correspondences of colour's tokens judge the code itself. "
        "Below: the correspondences of depth's tokens judge the code after the harmonizer (CMH) has bent it. "
        "Dashed parts serve the training only.",
        860,
        410,
    )
    rgb, depth = SENSORS["rgb"], SENSORS["depth"]
    rows = {rgb: 134, depth: 240}
    draw.box(130, 128, 60, 154, "back-\nbone\nF", size=12.5)
    draw.box(442, 170, 48, 70, "Ψ", size=15)
    draw.box(530, 170, 48, 70, "S", size=15)
    draw.box(612, 183, 44, 44, "s", "#FFFFFF", INK, 15)
    draw.box(690, 183, 92, 44, "k-means", size=13)
    for sensor, y in rows.items():
        name = {"rgb": "rgb", "depth": "X"}[sensor.name]
        middle, colour = y + 19, {"colour": dark(sensor)}
        draw.sensor(sensor, 14, y, 88, 38)
        draw.sensor(sensor, 232, y, 60, 38, f"f_{{{name}}}")
        draw.sensor(sensor, 344, y, 56, 38, "MSN")
        draw.arrow((102, middle), (130, middle), **colour)
        draw.arrow((190, middle), (232, middle), **colour)
        draw.arrow((292, middle), (344, middle), **colour)
        draw.arrow((400, middle), (442, 190 if sensor is rgb else 220), **colour)
    draw.arrow((490, 205), (530, 205))
    draw.text(510, 198, "f_{fus}", 11, MUTED, halo=True)
    draw.arrow((578, 205), (612, 205))
    draw.arrow((656, 205), (690, 205))
    draw.arrow((782, 205), (798, 205))
    draw.text(801, 209, "segments", 11, anchor="start")
    # The judges: F of each sensor's own tokens, S of the code.
    for sensor, y in ((rgb, 30), (depth, 316)):
        name = {"rgb": "rgb", "depth": "X"}[sensor.name]
        middle, colour = y + 21, {"colour": dark(sensor), "dashed": True}
        draw.sensor(sensor, 200, y, 124, 42, f"F^{{{name}}} = cos(f, f)", size=12.5)
        draw.sensor(sensor, 690, y, 92, 42, f"L_{{{name}}}", size=14)
        words = "S = cos(s, s)" if sensor is rgb else "S^X = cos(s^X, s^X)"
        draw.box(572, y, 106, 42, words, "#FFFFFF", size=11.5, dashed=True)
        ends = (134, 72) if sensor is rgb else (278, 316)
        draw.arrow((262, ends[0]), (262, ends[1]), **colour)
        draw.arrow((678, middle), (690, middle), **colour)
    draw.line((324, 42), (556, 42), (556, 20), (736, 20), colour=dark(rgb), dashed=True)
    draw.arrow((736, 20), (736, 30), colour=dark(rgb))
    draw.line((324, 346), (556, 346), (556, 370), (736, 370), colour=dark(depth), dashed=True)
    draw.arrow((736, 370), (736, 358), colour=dark(depth))
    draw.arrow((634, 183), (634, 72), dashed=True)
    draw.box(596, 252, 76, 38, "CMH", "#FFFFFF", dark(depth), 13, dark(depth), dashed=True)
    draw.arrow((634, 227), (634, 252), dashed=True)
    draw.arrow((634, 290), (634, 316), dashed=True)
    draw.text(648, 307, "s^X", 11.5, MUTED, "start")
    for x, words in (
        (58, "images"),
        (160, "frozen"),
        (262, "tokens"),
        (372, "refine"),
        (466, "fuse"),
        (554, "head"),
        (634, "code"),
        (736, "after training"),
    ):
        draw.text(x, 116, words, 12, MUTED, halo=True)
    draw.text(440, 33, "where are colour's tokens alike?", 11.5, MUTED)
    draw.text(440, 338, "where are depth's tokens alike?", 11.5, MUTED)
    remark = (
        "CMCS: training lowers L = L_{rgb} + λ L_X, over pairs of an image with itself, a neighbour, others."
    )
    draw.text(430, 398, remark, 12, MUTED)
    return str(draw)


DRAWINGS = {"unim2": unim2}
