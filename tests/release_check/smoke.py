"""Use an installed polarmap: `python smoke.py base`, or the name of an extra.

The release check copies this file out of the checkout and runs it with each new environment. Every function
imports what it needs itself, since each environment has the packages of one extra only.
"""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

# The configurations in config/ that work with each extra for a cloud.
CONFIGURATIONS = {
    "aws": ["aws_lambda", "aws_batch", "aws_ec2"],
    "azure": ["azure_functions", "azure_containers", "azure_vms"],
    "gcp": ["gcp_functions", "gcp_cloudrun", "gcp_compute_engine"],
    "ibm": ["code_engine"],
    "k8s": ["k8s"],
}


def use_base() -> None:
    import numpy as np

    import polarmap

    assert Path(polarmap.__file__).is_relative_to(sys.prefix), f"{polarmap.__file__} is not the wheel"
    A, x = np.arange(96.0).reshape(24, 4), np.ones(4)
    y = polarmap.coded_map(lambda block: block @ x, A, blocks=6, tasks=8)
    np.testing.assert_allclose(y.concatenate(), A @ x)
    assert list(polarmap.hedged_map(len, ["a", "bc"])) == [1, 2]
    total = polarmap.coded_sum(lambda block: block.T @ block, np.split(A, 4))
    np.testing.assert_allclose(total.value, A.T @ A)
    with polarmap.Executor() as executor:
        assert list(executor.map(abs, [-1, -2])) == [1, 2]
    coded = polarmap.encode(A, blocks=4, tasks=6, name="A", storage="arrays")
    np.testing.assert_allclose(polarmap.coded_map(lambda block: block @ x, coded).concatenate(), A @ x)
    coded.store.delete([coded.block_segments(1)[0].key])
    assert coded.repair().damaged_blocks == [1]
    run_times = polarmap.planning.load_training_trace()
    assert polarmap.plan(4, run_times, max_workers=8, n_trials=10).n >= 4


def use_fast() -> None:
    import numpy as np

    from polarmap.codes import PolarCode
    from polarmap.codes.compute.block_matmul import MIN_COMPILED_BYTES

    code = PolarCode(192, 128)
    blocks = np.random.default_rng(0).standard_normal((128, MIN_COMPILED_BYTES // 128 // 8))
    parity = code.encode_parity(blocks)
    np.testing.assert_allclose(parity[0], code.generator_matrix[128] @ blocks, rtol=1e-9, atol=1e-9)
    assert "numba" in sys.modules, "the compiled loops were not used"


def use_linalg() -> None:
    import numpy as np
    import scipy.sparse

    import polarmap

    A = scipy.sparse.random(60, 20, 0.3, random_state=0, format="csr")
    with polarmap.CodedOperator(A, blocks=4, tasks=6) as operator:
        np.testing.assert_allclose(operator @ np.ones(20), A @ np.ones(20))
        np.testing.assert_allclose(operator.T @ np.ones(60), A.T @ np.ones(60))


def use_glm() -> None:
    import numpy as np
    from sklearn.linear_model import Ridge

    import polarmap

    X = np.random.default_rng(0).standard_normal((60, 4))
    y = X @ [1, 2, 3, 4] + 1
    model = polarmap.glm.Ridge(alpha=1.0, blocks=4).fit(X, y)
    np.testing.assert_allclose(model.coef_, Ridge(alpha=1.0).fit(X, y).coef_, rtol=1e-5)


def use_convex() -> None:
    import numpy as np
    from sklearn.linear_model import Lasso

    import polarmap

    X = np.random.default_rng(0).standard_normal((60, 4))
    y = X @ [1, 0, 3, 0] + 1
    model = polarmap.convex.Lasso(alpha=0.1, blocks=4).fit(X, y)
    np.testing.assert_allclose(model.coef_, Lasso(alpha=0.1, tol=1e-10).fit(X, y).coef_, atol=1e-4)
    with polarmap.CodedOperator(X, blocks=4) as operator:  # pyproximal projects onto the simplex.
        loss, simplex = polarmap.convex.SquaredLoss(y), polarmap.convex.simplex(4)
        shares = polarmap.convex.fista(operator, loss, simplex).x
    np.testing.assert_allclose(shares.sum(), 1)


def use_crypto() -> None:
    import os
    import secrets

    import numpy as np

    import polarmap

    os.environ["POLARMAP_KEY"] = secrets.token_hex(32)
    A, key = np.arange(96.0).reshape(24, 4), "env:POLARMAP_KEY"
    polarmap.encode(A, blocks=4, tasks=6, name="secret", storage="arrays", key=key)
    assert np.array_equal(polarmap.open_coded("secret", storage="arrays", key=key)[:], A)


def use_plot() -> None:
    import numpy as np

    import polarmap

    y = polarmap.coded_map(np.negative, np.arange(96.0).reshape(24, 4), blocks=4, tasks=6)
    y.report.plot().savefig("report.png")
    assert Path("report.png").stat().st_size > 1000


def use_opentelemetry() -> None:
    import numpy as np
    from opentelemetry import trace

    import polarmap

    assert trace.get_tracer("polarmap") is not None
    y = polarmap.coded_map(np.negative, np.arange(96.0).reshape(24, 4), blocks=4, tasks=6)
    assert len(y) == 4


def use_live() -> None:
    import urllib.request

    import numpy as np

    import polarmap

    importlib.import_module("rich")
    with polarmap.dashboard() as url:
        polarmap.coded_map(np.negative, np.arange(96.0).reshape(24, 4), blocks=4, tasks=6)
        with urllib.request.urlopen(url, timeout=30) as page:
            assert b"polarmap" in page.read()
    package = Path(polarmap.__file__).parent
    assert (package / "live" / "page" / "dashboard.css").is_file()


def use_storage() -> None:
    import h5py
    import numpy as np
    import zarr

    import polarmap

    for name in ("boto3", "redis"):
        importlib.import_module(name)
    A = np.arange(96.0).reshape(24, 4)
    coded = polarmap.encode(A, blocks=4, tasks=6, name="A", storage="arrays")
    assert np.array_equal(zarr.open(coded.zarr_path)["data"][:], A)
    with h5py.File("A.h5", "w") as file:
        file["A"] = A
    command = ["encode", "A.h5::A", "B", "--blocks", "4", "--tasks", "6", "--storage", "arrays"]
    subprocess.run(["polarmap", *command], check=True)
    assert np.array_equal(polarmap.open_coded("B", storage="arrays")[:], A)


def use_xarray() -> None:
    import numpy as np
    import xarray as xr

    import polarmap

    heat = xr.DataArray(np.arange(120.0).reshape(10, 3, 4), dims=("time", "lat", "lon"))
    mean = polarmap.xr.apply(lambda rows: rows.mean(axis=-1), heat, dim="time", blocks=4)
    xr.testing.assert_allclose(mean, heat.mean("time"))


def use_dask() -> None:
    import numpy as np
    from distributed import Client

    import polarmap

    with Client(n_workers=1, threads_per_worker=2, dashboard_address=None) as client:
        y = polarmap.coded_map(np.negative, np.arange(96.0).reshape(24, 4), blocks=4, executor=client)
        np.testing.assert_allclose(y.concatenate(), -np.arange(96.0).reshape(24, 4), atol=1e-9)


def use_ray() -> None:
    import numpy as np
    import ray

    import polarmap

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=128 << 20)
    y = polarmap.coded_map(np.negative, np.arange(96.0).reshape(24, 4), blocks=4, executor=ray)
    np.testing.assert_allclose(y.concatenate(), -np.arange(96.0).reshape(24, 4), atol=1e-9)
    ray.shutdown()


def use_cloud(extra: str) -> None:
    """Import the modules of Lithops that the configurations of a cloud use, with all their dependencies."""
    import yaml

    import polarmap

    for name in CONFIGURATIONS[extra]:
        text = (Path(polarmap.__file__).parent / "_templates" / "config" / f"{name}.yaml").read_text()
        used = yaml.safe_load(text)["lithops"]
        compute = [f"lithops.{kind}.backends.{used['backend']}" for kind in ("serverless", "standalone")]
        importlib.import_module(next(path for path in compute if importlib.util.find_spec(path)))
        importlib.import_module(f"lithops.storage.backends.{used['storage']}")


PROGRAMS: dict[str, Callable[[], None]] = {
    "base": use_base,
    "fast": use_fast,
    "linalg": use_linalg,
    "glm": use_glm,
    "convex": use_convex,
    "crypto": use_crypto,
    "plot": use_plot,
    "opentelemetry": use_opentelemetry,
    "live": use_live,
    "storage": use_storage,
    "xarray": use_xarray,
    "dask": use_dask,
    "ray": use_ray,
    **{extra: partial(use_cloud, extra) for extra in CONFIGURATIONS},
}

if __name__ == "__main__":  # Workers that are new interpreters import this file again.
    PROGRAMS[sys.argv[1]]()
