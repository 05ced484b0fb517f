"""Reports of what was skipped: terminal output, pages and charts.

gather.py        measures everything that a report shows
analyses.py      its analyses, in order
content.py       what was measured; pages, Markdown, JSON and pictures are made of it
side_by_side.py  several checkpoints on the same text
run_files.py     run.json and metrics.jsonl
markup.py        pieces of HTML
markdown.py      a report as Markdown
writing.py       a report in any format, as a file
terminal.py      tokens on a terminal
live_text.py     text on a terminal as it is generated
charts/          charts and maps
pages/           HTML pages
"""
