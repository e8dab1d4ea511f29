"""Regrid daily fields conservatively from 2 x 2.5 to 3 x 4 degrees, with two dead workers.

python examples/regridding.py [days, 120] (needs the extra `xarray`)"""

import sys

import numpy as np
import xarray as xr

import polarmap
from polarmap.testing import Fault, FaultyExecutor


def overlap_fractions(source_edges, target_edges):
    """Return the share of each target interval that each source interval covers, both given by edges."""
    lower_edges = np.maximum(target_edges[:-1, None], source_edges[None, :-1])
    lengths = np.maximum(np.minimum(target_edges[1:, None], source_edges[None, 1:]) - lower_edges, 0)
    return lengths / np.diff(target_edges)[:, None]


def main(n_days: int = 120) -> None:
    south, west = np.linspace(-90, 90, 91), np.linspace(0, 360, 145)  # edges of the source cells
    new_south, new_west = np.linspace(-90, 90, 61), np.linspace(0, 360, 91)
    sine_edges = [np.sin(np.radians(edges)) for edges in (south, new_south)]  # proportional to areas
    by_lat, by_lon = overlap_fractions(*sine_edges), overlap_fractions(west, new_west)
    lat, lon = (south[1:] + south[:-1]) / 2, (west[1:] + west[:-1]) / 2

    wave = np.cos(np.radians(lon + 9 * np.arange(n_days)[:, None, None])) * np.cos(np.radians(lat))[:, None]
    rain = xr.DataArray(3 + 2 * wave, {"day": range(n_days), "lat": lat, "lon": lon}, attrs={"units": "mm"})
    executor = FaultyExecutor(None, {2: Fault("kill"), 7: Fault("kill")})
    new_centers = {"lat": (new_south[1:] + new_south[:-1]) / 2, "lon": (new_west[1:] + new_west[:-1]) / 2}
    options = {"dim": ("lat", "lon"), "output_dims": new_centers, "executor": executor, "retries": 0}

    def regrid(fields):
        return by_lat @ fields @ by_lon.T

    coarse, report = polarmap.xr.apply(regrid, rain, return_report=True, **options)
    print(f"{dict(coarse.sizes)} in {coarse.units}\n{report}")
    areas, new_areas = map(np.diff, sine_edges)
    before, after = (areas @ rain.mean("lon").values.T) / 2, (new_areas @ coarse.mean("lon").values.T) / 2
    error = abs(coarse.values - regrid(rain.values)).max()
    print(f"largest error {error:.1e}, relative change of global means {abs(after / before - 1).max():.1e}")
    assert error < 1e-12 and np.allclose(before, after, rtol=1e-12, atol=0)
    masked = polarmap.xr.apply(regrid, rain.where(lat[:, None] < 60), skipna=True, **options)  # north masked
    assert (masked.isnull() == (coarse.lat > 60)).all()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
