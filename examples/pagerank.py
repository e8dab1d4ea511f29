# %% [markdown]
# # PageRank with late workers
#
# In this notebook you rank 20,000 pages by their links. In every step two of 16 tasks sleep for half a
# minute, but the steps do not wait for them.
#
# The rank of a page is the share of time that a random surfer spends there. One step of the iteration is a
# product with the sparse matrix of links.

# %%
import matplotlib.pyplot as plt
import numpy as np
from scipy import sparse

from polarmap import CodedOperator
from polarmap.testing import Fault, FaultyExecutor

N_PAGES, N_LINKS, DAMPING = 20_000, 200_000, 0.85
rng = np.random.default_rng(0)
sources, targets = rng.integers(N_PAGES, size=N_LINKS), (N_PAGES * rng.random(N_LINKS) ** 3).astype(int)
links = sparse.csr_array((np.ones(N_LINKS), (targets, sources)), (N_PAGES, N_PAGES))
links = links @ sparse.diags_array(1 / np.maximum(links.sum(axis=0), 1))

# %% [markdown]
# For a matrix as sparse as this one, polarmap starts backup tasks by default. `code="rotation"` requests
# parity blocks instead.

# %%
ranks, changes = np.full(N_PAGES, 1 / N_PAGES), []
slow_executor = FaultyExecutor(None, {2: Fault("sleep", seconds=30), 9: Fault("sleep", seconds=30)})
with CodedOperator(links, blocks=12, tasks=16, code="rotation", executor=slow_executor) as operator:
    while not changes or changes[-1] > 1e-9:
        before = ranks
        ranks = DAMPING * (operator @ before)
        ranks += (1 - ranks.sum()) / N_PAGES  # surfers without a link restart anywhere
        changes.append(np.abs(ranks - before).sum())
    report = operator.report
print(f"{len(changes)} steps; pages with the highest ranks: {ranks.argsort()[:-6:-1].tolist()}")
print(report)

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(7, 3.2), layout="constrained")
left.semilogy(changes, ".-")
left.set(xlabel="step", ylabel="change of the ranks")
right.loglog(np.sort(ranks)[::-1])
right.set(xlabel="pages, sorted by rank", ylabel="rank")
plt.show()
