"""Text in, text out: generation, what runs for each token as it comes, and where a text ends."""

from skipgpt.generation.text import Generation as Generation
from skipgpt.generation.text import generate as generate
