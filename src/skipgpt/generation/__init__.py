"""Text in, text out: generation, what runs for each token as it comes, and where a text ends.

text.py          `generate`, from text to text
run.py           the call of transformers' `generate` that all callers share
end_of_text.py   the stopping criterion
stop_strings.py  new text up to a stop string
live.py          what ran for each token as it comes
"""

from skipgpt.generation.text import Generation as Generation
from skipgpt.generation.text import generate as generate
