"""Figures: workers' run times, polarization, the frontier of a plan, the timeline of a map.

`polarmap.planning.plot_run_times` and `plot_polarization`, `Plan.plot` and `Report.plot` show them. Needs
matplotlib (the extra `plot`), imported when the first figure is drawn. Every function returns a matplotlib
Figure, and writes it where `path` says (.png, .svg, .pdf). None touches pyplot, so nothing is kept or needs
a display; as the last line of a cell a figure shows itself.
"""
