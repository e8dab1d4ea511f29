# %% [markdown]
# # How many workers, from measured times
#
# With more workers, slow ones matter less, but the job costs more. Measure the run times of your tasks, and
# let polarmap compute how many workers pay off.

# %%
import numpy as np

import polarmap
from polarmap import planning
from polarmap.testing import Fault, FaultyExecutor

# %% [markdown]
# `planning.measure` runs tasks that compute for `task_seconds` on an executor: processes of this machine,
# or a cloud. It runs them twice, since the first map also starts the workers. Two of the tasks sleep.

# %%
slow_executor = FaultyExecutor(None, {task: Fault("sleep", seconds=0.1 + 0.01 * task) for task in (3, 17)})
measurement = planning.measure(slow_executor, tasks=40, task_seconds=0.005)
print(measurement)

# %%
planning.plot_run_times(measurement.warm)

# %% [markdown]
# This is the plan for 24 blocks with these run times, in seconds:

# %%
distribution = planning.Empirical(measurement.warm)
plan = polarmap.plan(24, distribution)
print(plan)

# %%
plan.plot()

# %% [markdown]
# Pass the plan to a map: it determines the numbers of blocks and tasks. The report of the map provides the
# run times for the next plan.

# %%
A = np.random.default_rng(0).standard_normal((240, 50))
result = polarmap.coded_map(lambda block: block @ np.ones(50), A, schedule=plan)
print(result.report)
