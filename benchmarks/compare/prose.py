"""The words of the pages that begin with docs/comparison."""

OPENING = """\
# How it compares

Written by `python -m benchmarks.compare` (`make compare`); nothing in a table is typed by hand. Ways not to
wait for stragglers, simulated on the same run times: replication, backup tasks, dense, Reed-Solomon,
product, LT, Raptor, LDPC and polar codes, each with parameters chosen for these sizes, and what polarmap
does (in bold).

* [Completion times](comparison-jobs.md): every scheme, with coding and transfer and without, under four
  distributions of run times.
* [Codes](comparison-codes.md): arrivals needed, operations, seconds and rounding errors of each code.
* [Elastic clusters](comparison-elastic.md): workers that join late and vanish.
* [Real jobs](real-jobs.md): the schemes for real, and Lithops, cubed, joblib and Dask, with tasks that sleep
  (`python -m benchmarks.stragglers`).
* [Iterations](comparison-iterations.md): least squares, logistic regression and PageRank with slow workers,
  beside Dask, joblib, Ray and cubed (`python -m benchmarks.iterations`).

![99 % quantile against cost](figures/compare-jobs.png)"""

AIMS = """\
24 blocks, 32 coded tasks, arrivals alone, unless a goal says more. `Best backup tasks`: whichever of
cubed's rule, Spark's, and cubed's with the multiple that suits the distribution best has the least 99 %
quantile. The limits were set against cubed's rule as it is: relative to that, in the order of the columns,
upfront has {upfront}, on demand {demanded}."""

FASTEST = """\
Mean seconds with encoding, planning, decoding and transfer: the fastest rival, and the fastest of what
polarmap does, of those that take at most 1.4 times the worker-seconds of a plain map. Tasks take about one
second whatever the size of the blocks ([completion times](comparison-jobs.md) say what is counted)."""

WINNERS = """\
## Where a rival wins

* **A dense Gaussian code is as good as rotation**, and simpler: same arrivals, same amplification.
  Core-seconds of encoding and of decoding, in terms of rotation's:
  {dense}.
  It has to hold its coefficients, 150 MB of them for 10,000 tasks, and rotation has not; at small n polarmap
  itself multiplies by a dense matrix.
* **Sparse codes with inactivation**, LDPC staircase, LT and Raptor codes whose decoder solves a small dense
  system where peeling stops, await at most a few results more than rotation, with a fraction of its
  operations. The LDPC code's core-seconds, as above:
  {sparse};
  its median amplification: {growth}.
  With a thousand blocks or more, where coding takes longer than f and some digits may be lost, they are the
  better choice.
* **Local product codes** take the fewest operations of all and have the smallest rounding errors, and their
  grids can be coded by workers; but of many grids one is unlucky, and all wait for it.
* **Backup tasks** work for any f, linear or not, cost nothing extra, and need no code. Tuned to their
  distribution they are about as fast as parity on demand. Where one driver has to code blocks of 64 MB, or a
  thousand of 1 MB, for a second of work each, they are the fastest of all: data as large as that is better
  encoded once, by workers, and mapped many times ([coded arrays](coded-arrays.md)). No code helps where tasks
  do not straggle.
* **Replication** works for any f, and has nothing to encode: where coding and transfer take longer than
  tasks, three copies are the fastest there is, at more than twice the price. Arrivals alone, three copies of
  a few dozen tasks are about as fast as a code with a third more tasks; two copies are not, and neither
  keeps up as jobs grow.
* **Exact integers at any n: Fermat transform codes** decode any k of n exactly, in n log n operations for
  one number of every block once a pattern of arrivals is planned (that is quadratic in k as written here; n
  log² n is known), which no polar code over the integers does; but only where all values, results included,
  fit in 16 bits."""

JOBS = """\
# Completion times

Part of [how it compares](comparison.md), written by `python -m benchmarks.compare`.

Codes start a third more tasks than there are blocks, local product codes as many as their grids have.

**Everything included** is the sum of encoding, transfer, the wait for results, planning and decoding, as if
nothing overlapped. One driver holds the data: it codes, with the core-seconds of [codes side by
side](comparison-codes.md) on one core; sends the blocks and takes the results awaited, as large as blocks,
at 1.25 GB/s (10 Gbit/s); every worker takes its block and hands in its result at 75 MB/s. Coding is
measured on blocks of 1 MB where there are 128 or fewer and on smaller ones where there are more, 128 MB
together, and scaled linearly in bytes: every column of numbers is coded by itself. Tasks take the same time
whatever the size of their blocks. What a code makes once in its life (`first use` there) is not counted,
nor requests. Parity on demand is charged all the coding of parity upfront. Columns but those of seconds
are those of the first distribution. At thousands of blocks of 64 MB one driver
is the bottleneck of every scheme: `encode(executor=)` has the workers encode instead.

**Arrivals alone** are seconds until the results are determined. Tasks take about one second; `cost` is in
worker-seconds relative to a plain map, and whatever runs at completion is stopped and paid until then;
`arrivals` is the mean number of results awaited; `fails` the probability that not even all results suffice.
Uncoded, replication and codes are exact integrals over the distribution (of the simulated number of
arrivals, where that is random); backup tasks, on demand and small blocks are simulated. The tests simulate
all of the first size once more, with run times, decoders and rules of their own, to within 3 %.

* 2x and 3x replication start every task two or three times; the loser is stopped at once.
* Backup tasks start a late task again: cubed's rule (10 tasks or more, half of them done, later than 3 x
  the median), Spark 4's (90 % done, later than 3 x the median), and cubed's tuned, with the multiple of
  nine between 1 and 3 that has the least 99 % quantile under that very distribution.
* On demand starts the k data tasks and a parity task for each that is late (11 of 12 tasks should be back
  by then). It knows the distribution, as the tuned backup tasks do.
* 4x and 16x as many blocks, and tasks that are so much shorter, are for the same n workers, which stay: each
  takes the next task when it is done, and a millisecond longer for each (`small_blocks` of
  [completion_time](reference/planning.md)). That assumes that a worker is equally slow all the time, and that
  tasks are short where blocks are small; of other schemes that is not assumed, so the tables with everything
  included leave these out. They can beat T_(k:n), the k-th arrival, which bounds every code of workers that
  return all or nothing: the row of the dense Gaussian code is that bound."""

CODES = """\
# Codes side by side

Part of [how it compares](comparison.md), written by `python -m benchmarks.compare`.

![arrivals beyond k](figures/compare-arrivals.png)

`beyond k`: mean results needed beyond k in random order; `fails`: orders that do not decode with all n.
Operations are additions and multiplications for each number of a coded block. Seconds are core-seconds:
processor time of all threads, at a load average of {load:.0f}, compiled loops on both sides (24 blocks are
too few bytes for polarmap to load its own). `encode` and `decode`: for a GB of data, the least of five runs
on {megabytes} MB in k blocks of at most 1 MB, eight bytes a number; `plan`, the median of five, is what
depends on the arrivals only, not on the blocks; `first use` is what a code takes once: to be made, and
to code two columns, beyond what it takes to code them again (P of rotation and of the dense code; not
the choice of parameters, nor compiling). `amplification`: by how much decoding multiplies the relative
rounding error of what arrived, for the worst block; median and worst over random orders, estimated from
unit noise in proportion to each coded block's size. `error`: the largest of decoding unit normal data
once, rounding within the decoder included."""

REMARKS = """\
## How each rival was given its best

* *Dense Gaussian*: normal coefficients, unit rows, systematic; decoded by least squares, as rotation is.
  *Vandermonde* at equally spaced points and *Chebyshev* points, data at random positions among them: any k
  of n decode on paper, but a quarter of the points is missing and the rest interpolates badly. Their
  amplification is computed in logarithms; above 1e15 no digit of float64 is left.
* *Rotation matrix embedding* (Ramamoorthy and Tang): any k of n decode, by Fourier transforms of the least
  odd length and a dense product for what is missing. The authors leave out a few workers, for which errors
  grow little; of a quarter missing, 256 blocks keep one or two digits and 1,024 none, so only the first size
  has this code among the completion times.
* *Local product* (Gupta et al. 2020): grids of data blocks with a parity block for each row and column,
  decoded by peeling; the grid, of up to 14 x 14, that awaits the smallest share of its tasks. Grids of 24
  blocks do not fit into 32 tasks, so up to a tenth more are allowed, at all sizes.
* *LT*: robust soliton, c and delta the best of 24 pairs at each size, random signs. *LDPC*: staircase (RFC
  5170), degree three or the best of nine mixtures with a higher degree, random signs, and a factor of 0.7
  from one parity block into the next, without which they would grow like a random walk. *Raptor*: degrees
  and precode of RFC 5053 with random signs, the best of twenty seeds, of those in which the data determine
  all hidden blocks (of 7,500 one does, and errors leave it one digit: no row). All are decoded by peeling;
  `inactivation` and Raptor, where peeling stops, set the block aside that most equations wait for, and
  solve for those set aside in the end. Their parameters are chosen for that decoder.
* *Fermat*: Reed-Solomon codes modulo 65537 by number-theoretic transforms; encoding interpolates and
  evaluates. Real data must be quantized so that sums cannot overflow: for products of normal matrices with
  {terms} the relative error is {errors}, against 1e-13 for rotation in float64. More residues (more tasks)
  would buy more digits.
* *polar, sequential*: the papers' code and decoder; *polar, optimal*: the same kernel, decoded whenever
  possible. `8 of 10 levels`: partial polarization (`PolarCode(levels=8)`), butterflies side by side that
  are cheaper, and each of which needs enough results of its own.
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
