"""Options and settings that several commands share."""
