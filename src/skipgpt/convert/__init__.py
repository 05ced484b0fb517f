"""Convert the authors' router files into checkpoints."""

from skipgpt.convert.authors_file import read_authors_file as read_authors_file
from skipgpt.convert.authors_file import router_keys as router_keys
from skipgpt.convert.into_checkpoint import convert as convert
