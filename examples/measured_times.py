# %% [markdown]
# # How many workers, from measured times
#
# More workers make the slow ones matter less, and cost more. Measure how the run times of your tasks
# spread, and ask polarmap how many are worth it.

# %%
import numpy as np

import polarmap
from polarmap import planning
from polarmap.testing import Fault, FaultyExecutor

# %% [markdown]
# `planning.measure` runs tasks that compute for so long on an executor: processes of this machine, or a
# cloud. It runs them twice, as the first map also starts workers. Two of the tasks are made late.

# %%
slow_executor = FaultyExecutor(None, {task: Fault("sleep", seconds=0.1 + 0.01 * task) for task in (3, 17)})
measurement = planning.measure(slow_executor, tasks=40, task_seconds=0.005)
print(measurement)

# %%
planning.plot_run_times(measurement.warm)

# %% [markdown]
# On a cloud that runs 24 tasks at once, with such times, in seconds:

# %%
distribution = planning.Empirical(measurement.warm)
plan = polarmap.plan(24, distribution)
print(plan)

# %%
plan.plot()

# %% [markdown]
# A plan is what a map runs by: it says how many blocks and tasks there are. The report of that map is
# where the next plan gets its times from.

# %%
A = np.random.default_rng(0).standard_normal((240, 50))
result = polarmap.coded_map(lambda block: block @ np.ones(50), A, schedule=plan)
print(result.report)
