# %% [markdown]
# # A map in a cloud
#
# In this notebook you run a map through Lithops. The same code runs on your machine and on a thousand cloud
# functions, because `executor=` names a configuration file. The file below starts processes on your machine.
# For a cloud, copy a recipe (`polarmap config list`), fill in your values, and pass the name of your file.

# %%
import sys
import tempfile
from pathlib import Path

import numpy as np

import polarmap
from polarmap import planning
from polarmap.clouds.limits import WorkerSpec

CONFIGURATION = f"""
lithops:
  backend: localhost        # aws_lambda, gcp_functions, azure_functions, k8s, ...
  storage: localhost        # aws_s3, ...
  monitoring_interval: 0.05
localhost:
  version: 1
  worker_processes: 8
  runtime: {sys.executable}
"""

# %%
A, x = np.random.default_rng(0).standard_normal((4_000, 100)), np.ones(100)
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder, "my_cloud.yaml")
    path.write_text(CONFIGURATION)
    y = polarmap.coded_map(lambda block: block @ x, A, blocks=6, tasks=8, executor=path)
assert np.allclose(y.concatenate(), A @ x)
print(y.report)

# %%
y.report.plot()

# %% [markdown]
# A plan can tell you what a map would cost on AWS Lambda. It estimates the cost from list prices:

# %%
lambda_worker = WorkerSpec("aws_lambda", "aws_s3", memory_mb=1769)
run_times = planning.with_stragglers(planning.ShiftedExponential(2.0, 0.3), 0.03, 5.0)
plan = polarmap.plan(24, run_times, worker_spec=lambda_worker)
print(f"{plan.n} functions for {plan.k} blocks: {plan.cost}")
