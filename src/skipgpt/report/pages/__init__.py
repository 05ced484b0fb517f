"""Reports as HTML pages.

page.py               one checkpoint
side_by_side_page.py  several checkpoints
run_page.py           a training run
page_frame.py         the frame of each page, with style and script
summary.py            the first two sections
details.py            the other sections
"""
