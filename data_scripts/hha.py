"""HHA after Gupta et al. (ECCV 2014): horizontal disparity, height above ground and angle with gravity of
every depth pixel.

Camera frame: x right, y down, z ahead, metres. A plane n·P = d seen through a pinhole has 1/z = a·x/z + b·y/z
+ c with (a, b, c) = n/d: a least-squares plane through the inverse depths of a window gives the normal,
exactly where the surface is flat, and in the quantity whose noise a Kinect has at all distances alike.
"""

import numpy as np
from numpy import ndarray
from scipy.ndimage import uniform_filter

LEVEL = (0.0, -1.0, 0.0)  # up, for a camera that is held level


def rays(shape: tuple[int, int], intrinsics) -> tuple:
    """x/z and y/z of every pixel, each (H, W). ``intrinsics``: fx, fy, cx, cy in pixels, the first pixel
    being (1, 1) as in MATLAB.
    """
    fx, fy, cx, cy = intrinsics
    y, x = np.indices(shape)
    return (x + 1 - cx) / fx, (y + 1 - cy) / fy


def divide(a, b: ndarray, where: ndarray) -> ndarray:
    """a / b, and 0 where it is not wanted."""
    return np.divide(a, b, out=np.zeros(np.broadcast(a, b).shape), where=where)


def normals(depth: ndarray, intrinsics, radius: int) -> ndarray:
    """Unit normals (H, W, 3) that point towards the camera, from a square of 2·radius + 1 pixels; 0 0 0 where
    too few are measured.

    Args:
        depth: (H, W) metres along the optical axis, 0 = no measurement.
    """
    measured = (depth > 0).astype(np.float64)
    inverse = divide(1.0, depth, depth > 0)
    x, y = rays(depth.shape, intrinsics)

    def mean(values: ndarray) -> ndarray:
        return uniform_filter(values * measured, 2 * radius + 1, mode="constant") / share

    share = np.maximum(uniform_filter(measured, 2 * radius + 1, mode="constant"), 1e-9)
    mx, my, mq = mean(x), mean(y), mean(inverse)
    xx, xy, yy = mean(x * x) - mx * mx, mean(x * y) - mx * my, mean(y * y) - my * my
    xq, yq = mean(x * inverse) - mx * mq, mean(y * inverse) - my * mq
    # xx · yy of a window that is measured everywhere.
    whole = (radius * (radius + 1) / 3) ** 2 / (intrinsics[0] * intrinsics[1]) ** 2
    determinant = xx * yy - xy * xy
    valid = (determinant > 0.01 * whole) & (share * (2 * radius + 1) ** 2 > 5.5)
    a = divide(xq * yy - yq * xy, determinant, valid)
    b = divide(yq * xx - xq * xy, determinant, valid)
    # n·ray = 1/z > 0 points away, so its opposite looks at the camera.
    normal = -np.stack([a, b, mq - a * mx - b * my], -1)
    length = np.linalg.norm(normal, axis=-1, keepdims=True)
    return divide(normal, length, valid[..., None] & (length > 0))


def gravity(normal: ndarray) -> ndarray:
    """The direction up, a unit vector, from normals (..., 3): what is best parallel to floors and
    perpendicular to walls.

    Starts from a level camera. Five times with 45°, five times with 15°: normals within that angle of up or
    down count as floor or ceiling, those within that angle of the horizon as wall, and up becomes the
    direction that minimises Σ_walls (n·up)² − Σ_floors (n·up)².
    """
    surfaces = normal.reshape(-1, 3)
    surfaces = surfaces[(surfaces != 0).any(-1)]
    up = np.array(LEVEL)
    for degrees in (45.0,) * 5 + (15.0,) * 5:
        cosine = np.abs(surfaces @ up)
        floors = surfaces[cosine > np.cos(np.radians(degrees))]
        walls = surfaces[cosine < np.sin(np.radians(degrees))]
        # The last term decides where the normals leave a direction open (one wall and nothing else): up stays
        # as it is.
        scatter = walls.T @ walls - floors.T @ floors - 1e-3 * (len(surfaces) + 1) * np.outer(up, up)
        best = np.linalg.eigh(scatter)[1][:, 0]
        up = best if best @ up > 0 else -best
    return up


def hha(depth: ndarray, intrinsics, up=None) -> ndarray:
    """(H, W, 3) float64: disparity 1/m, height m, angle of the normal with up in degrees (floor 0, wall 90,
    ceiling 180).

    The ground is the lowest 1 % of the measured points; if that lies less than 0.9 m below the camera no
    floor is in view, and the camera is taken to stand 1.3 m above it (both as Gupta et al. do, who take the
    lowest point). Pixels without depth or normal are 0 0 0.

    Args:
        depth: (H, W) float64 metres, 0 = no measurement. up: unit vector in the camera's frame; None =
            estimated from this image (``gravity``).
    """
    normal = normals(depth, intrinsics, 3)
    up = gravity(normals(depth, intrinsics, 10)[::4, ::4]) if up is None else up
    x, y = rays(depth.shape, intrinsics)
    height = depth * (x * up[0] + y * up[1] + up[2])
    valid = (depth > 0) & (normal != 0).any(-1)
    if not valid.any():
        return np.zeros((*depth.shape, 3))
    ground = np.percentile(height[valid], 1)
    height = np.maximum(height - (ground if ground < -0.9 else -1.3), 0)
    angle = np.degrees(np.arccos(np.clip(normal @ up, -1, 1)))
    disparity = divide(1.0, depth, depth > 0)
    return np.where(valid[..., None], np.stack([disparity, height, angle], -1), 0.0)
