# %% [markdown]
# # Choose the number of workers from measured times
#
# In this notebook you measure how long tasks take, and let polarmap compute how many workers pay off. With
# more workers, slow workers matter less, but the job costs more.

# %%
import numpy as np

import polarmap
from polarmap import planning
from polarmap.testing import Fault, FaultyExecutor

# %% [markdown]
# `planning.measure` runs tasks of `task_seconds` seconds on an executor, for example on processes of this
# machine or in a cloud. It runs them twice, because the first map also starts the workers. Two of the tasks
# sleep.

# %%
slow_executor = FaultyExecutor(None, {task: Fault("sleep", seconds=0.1 + 0.01 * task) for task in (3, 17)})
measurement = planning.measure(slow_executor, tasks=40, task_seconds=0.005)
print(measurement)

# %%
planning.plot_run_times(measurement.warm)

# %% [markdown]
# Now make a plan for 24 blocks. It shows the expected times, in seconds:

# %%
distribution = planning.Empirical(measurement.warm)
plan = polarmap.plan(24, distribution)
print(plan)

# %%
plan.plot()

# %% [markdown]
# Pass the plan to a map, and it determines the numbers of blocks and tasks. You can use the run times in the
# report of this map for your next plan.

# %%
A = np.random.default_rng(0).standard_normal((240, 50))
result = polarmap.coded_map(lambda block: block @ np.ones(50), A, schedule=plan)
print(result.report)
