"""The words of the pages that begin with docs/comparison."""

OPENING = """\
# How it compares

Written by `python -m benchmarks.compare` (`make compare`); nothing in a table is typed by hand. Ways not to
wait for stragglers, simulated on the same run times: replication, backup tasks, dense and Reed-Solomon codes,
LT, LDPC and polar codes, each with its best standard parameters, and what polarmap does (in bold).

* [Completion times](comparison-jobs.md): every scheme at four sizes and four distributions of run times.
* [Codes](comparison-codes.md): arrivals needed, operations, seconds and rounding errors of each code.
* [Elastic clusters](comparison-elastic.md): workers that join late and vanish.
* [Real jobs](real-jobs.md): the schemes for real, and Lithops, cubed, joblib and Dask, with tasks that sleep
  (`python -m benchmarks.stragglers`).
* [Iterations](comparison-iterations.md): least squares, logistic regression and PageRank with slow workers,
  beside Dask, joblib, Ray and cubed (`python -m benchmarks.iterations`).

![99 % quantile against cost](figures/compare-jobs.png)"""

WINNERS = """\
## Where a rival wins

* **Small n: a dense Gaussian code is as good as rotation** and simpler: same arrivals, same amplification,
  and up to n of about 64 the same speed. Below that size polarmap itself multiplies by a dense matrix.
* **Very cheap coding: sparse codes.** LDPC staircase codes encode and decode with a few additions per
  block, and need fewer arrivals than the papers' sequential polar decoder from n of about a hundred on.
  Rounding errors grow faster with n; median amplification, relative to rotation's:
  {growth}.
  Where blocks are huge, f is quick and a few per cent more arrivals do not matter, they are the better
  choice; with elimination instead of peeling they come within a few arrivals of MDS.
* **Nothing to pay for: backup tasks and on demand.** Backup tasks work for any f, linear or not, cost
  nothing extra, and need no code. No code helps where tasks do not straggle.
* **Exact integers at any n: Fermat transform codes** decode any k of n exactly, in n log n operations for
  one number of every block once a pattern of arrivals is planned (that is quadratic in k as written here;
  n log² n is known), which no polar code over the integers does; but only where all values, results
  included, fit in 16 bits.
* **Replication** works for any f. Three copies of a few dozen tasks are about as fast as a code with a
  third more tasks, at more than twice its price; two copies are not, and neither keeps up as jobs grow."""

JOBS = """\
# Completion times

Part of [how it compares](comparison.md), written by `python -m benchmarks.compare`.

Seconds until the results are determined. Tasks take about one second; `cost` is in worker-seconds
relative to a plain map, and whatever runs at completion is stopped and paid until then; `arrivals` is the
mean number of results awaited; `fails` the probability that not even all results suffice. Codes start a
third more tasks than there are blocks. Uncoded, replication and codes are exact integrals over the
distribution (of the simulated number of arrivals, where that is random); backup tasks, on demand and
subtasks are simulated. Subtasks assume that a worker is equally slow all the time and hands in its pieces
as it goes, so they can beat T_(k:n), the k-th arrival, which bounds every code of all-or-nothing workers:
the row of the dense Gaussian code is that bound.

* 2x and 3x replication start every task two or three times; the loser is stopped at once.
* Backup tasks start a late task again: cubed's rule (10 tasks or more, half of them done, later than 3 x
  the median), and Spark 4's (90 % done, later than 3 x the median).
* On demand starts the k data tasks and a parity task for each that is late (11 of 12 tasks should be back
  by then)."""

CODES = """\
# Codes side by side

Part of [how it compares](comparison.md), written by `python -m benchmarks.compare`.

![arrivals beyond k](figures/compare-arrivals.png)

`beyond k`: mean results needed beyond k in random order; `fails`: orders that do not decode with all n.
Operations are additions and multiplications for each number of a coded block; seconds are for {megabytes}
MiB of data in k blocks, the fastest of three runs, compiled loops on both sides, {cores} cores at a load
average of {load:.0f}; `plan`, timed once, is what depends on the arrivals only, not on the blocks.
`amplification`: by how much decoding multiplies the relative rounding error of what arrived, for the
worst block; median and worst over random orders, estimated from unit noise in proportion to each coded
block's size. What a code makes once, before it meets data (P of rotation and of the dense code, choosing
parameters), is in none of the columns."""

REMARKS = """\
## How each rival was given its best

* *Dense Gaussian*: normal coefficients, unit rows, systematic; decoded by least squares, as rotation is.
  *Vandermonde* at equally spaced points and *Chebyshev* points, data at random positions among them: any k
  of n decode on paper, but a quarter of the points is missing and the rest interpolates badly. Their
  amplification is computed in logarithms; above 1e15 no digit of float64 is left.
* *LT*: robust soliton, c and delta the best of 24 pairs at each size, random signs, peeling. *LDPC*:
  staircase (RFC 5170), degree three or the best of nine mixtures with a higher degree, random signs, and a
  factor of 0.7 from one parity block into the next, without which they would grow like a random walk.
  `elimination` decodes by solving (inactivation, maximum likelihood): close to k, at the price of a dense
  solve of what peeling leaves.
* *Fermat*: Reed-Solomon codes modulo 65537 by number-theoretic transforms; encoding interpolates and
  evaluates. Real data must be quantized so that sums cannot overflow: for products of normal matrices with
  {terms} the relative error is {errors}, against 1e-13 for rotation in float64. More residues (more tasks)
  would buy more digits.
* *polar, sequential*: the papers' code and decoder; *polar, optimal*: the same kernel, decoded whenever
  possible. `8 of 10 levels`: partial polarization (`PolarCode(levels=8)`), butterflies side by side that are
  cheaper, and each of which needs enough results of its own.
* Libraries: those on PyPI (zfec, raptorq, reedsolo, galois, pyldpc) code over finite fields, which a real f
  does not commute with, so none can stand in for these; the references are in `benchmarks/rivals`, tested
  against dense algebra."""

ELASTIC = """\
# Elastic: 500 uncoded against 1,500 coded workers

Part of [how it compares](comparison.md), written by `python -m benchmarks.compare`.

![elastic workers](figures/elastic.png)

500 blocks in both clusters. Workers join after 0.2 + Exp(0.3) s, compute for 1 + Exp(1) s, and vanish at a
constant rate; a lost uncoded task starts again on a new worker, a lost coded one does not. Three times the
workers do not cost three times as much, because the job is over when the fastest third is back; and no one
has to notice who is gone. Only where more than two thirds vanish do fewer than 500 results come back, and
the coded job never completes without restarts of its own (which `coded_map` makes, as `retries`)."""
