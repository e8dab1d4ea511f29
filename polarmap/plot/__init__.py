"""Figures of run times, polarization, plans and maps, as matplotlib `Figure` objects.

They are drawn by `polarmap.planning.plot_run_times` and `plot_polarization`, `Plan.plot` and `Report.plot`.
matplotlib (the extra `plot`) is imported when the first figure is drawn. Every function returns a `Figure`,
and writes it to `path` if given (.png, .svg or .pdf). pyplot is not used, so figures need no display and do
not stay in memory. A figure in the last line of a notebook cell displays itself.
"""
