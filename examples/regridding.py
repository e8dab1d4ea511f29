"""Conservative regridding of daily fields from 2 x 2.5 to 3 x 4 degrees, with two dead workers.

python examples/regridding.py [days, 120] (needs the extra `xarray`)"""

import sys

import numpy as np
import xarray as xr

import polarmap
from polarmap.testing import Fault, FaultyExecutor


def overlaps(source, target):
    """What part of each target interval lies in each source interval, both given by their edges."""
    low = np.maximum(target[:-1, None], source[None, :-1])
    return np.maximum(np.minimum(target[1:, None], source[None, 1:]) - low, 0) / np.diff(target)[:, None]


def main(days: int = 120) -> None:
    south, west = np.linspace(-90, 90, 91), np.linspace(0, 360, 145)  # edges of the source cells
    south_to, west_to = np.linspace(-90, 90, 61), np.linspace(0, 360, 91)
    heights = [np.sin(np.radians(edges)) for edges in (south, south_to)]  # areas are proportional to these
    by_lat, by_lon = overlaps(*heights), overlaps(west, west_to)
    lat, lon = (south[1:] + south[:-1]) / 2, (west[1:] + west[:-1]) / 2
    centres = {"lat": (south_to[1:] + south_to[:-1]) / 2, "lon": (west_to[1:] + west_to[:-1]) / 2}

    wave = np.cos(np.radians(lon + 9 * np.arange(days)[:, None, None])) * np.cos(np.radians(lat))[:, None]
    rain = xr.DataArray(3 + 2 * wave, {"day": range(days), "lat": lat, "lon": lon}, attrs={"units": "mm"})
    dead = FaultyExecutor(None, {2: Fault("kill"), 7: Fault("kill")})
    options = {"dim": ("lat", "lon"), "output_dims": centres, "executor": dead, "retries": 0}

    def regrid(fields):
        return by_lat @ fields @ by_lon.T

    coarse, report = polarmap.xr.apply(regrid, rain, return_report=True, **options)
    print(f"{dict(coarse.sizes)} in {coarse.units}\n{report}")
    areas, areas_to = np.diff(heights[0]), np.diff(heights[1])
    before, after = (areas @ rain.mean("lon").values.T) / 2, (areas_to @ coarse.mean("lon").values.T) / 2
    plain = abs(coarse.values - regrid(rain.values)).max()
    print(f"off numpy's product by {plain:.1e}, global means by {abs(after / before - 1).max():.1e}")
    assert plain < 1e-12 and np.allclose(before, after, rtol=1e-12, atol=0)
    ocean = rain.where(lat[:, None] < 60)  # no data north of 60 degrees
    masked = polarmap.xr.apply(regrid, ocean, skipna=True, **options)
    assert (masked.isnull() == (coarse.lat > 60)).all()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
