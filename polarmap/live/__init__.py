"""Show the maps of a program while they run: in a terminal, in a notebook, or in a browser.

    running maps --reports--> hub --ProgramSnapshot--> descriptions --> terminal, notebook
                                        |
                                  program socket --> `polarmap top`, dashboard in a browser

Nothing of this package is imported unless a program asks for a live view. Viewers pull snapshots (the state
of all maps at one moment) from the hub. A map never waits for a viewer.
"""
