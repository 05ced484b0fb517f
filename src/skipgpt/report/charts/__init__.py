"""Charts and maps, for pages, pictures and terminals.

svg.py          line charts as SVG
heat_map.py     keep rates by layer and step as SVG
curves.py       charts of a checkpoint
run_curves.py   charts of a run
figures.py      a report as one picture
keep_bars.py    keep rates as bars on a terminal
routing_map.py  which token ran which module, on a terminal
"""
