"""What differs between model families, as data.

table.py            one row per family
family.py           the fields of a row
linear.py           linear layers of any make
parameter_names.py  names of what routing adds to a layer
"""
