"""Figures of run times, polarization, plans and maps, as matplotlib `Figure` objects.

Users call `polarmap.planning.plot_run_times`, `plot_polarization`, `Plan.plot` and `Report.plot`. Each of
them returns a `Figure`, and also writes it to a file if a path is given (.png, .svg or .pdf). In a notebook,
a figure in the last line of a cell is displayed automatically.

matplotlib (the extra `plot`) is imported when the first figure is drawn. pyplot is not used, so figures need
no display and do not stay in memory.
"""
